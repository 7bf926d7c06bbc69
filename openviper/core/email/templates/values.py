"""Stand-ins for the values of a template while the text around them is converted to HTML."""

import re
import secrets
from html import escape, unescape

from openviper.core.email.errors import TemplateFailed

__all__ = ["AUTOLINK", "FIRST_STAND_IN", "STAND_IN", "AuthorText", "Values", "autolink", "has_private_characters"]

# A value is held by one character of the last private plane, which no converter changes, splits or takes for syntax.
# Until the template is rendered a secret of the plane before stands in front of it, so that no value can name another.
_FIRST, _LAST = 0x100000, 0x10FFFD
_STAND_IN = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")
_PRIVATE = re.compile("[\U000f0000-\U0010ffff]")
_SECRET = re.compile("[\U000f0000-\U000fffff]")

STAND_IN = f"[{chr(_FIRST)}-{chr(_LAST)}]"
"""A stand-in in converted text, as a character class of a pattern."""

FIRST_STAND_IN = chr(_FIRST)


AUTOLINK = re.compile(f"\U000f0001({STAND_IN})\U000f0002")
"""A stand-in that :func:`autolink` has marked."""


def autolink(stand_in: str) -> str:
    """Mark a stand-in written as ``<{{ value }}>``, which becomes a link if its value is an address."""
    return f"\U000f0001{stand_in}\U000f0002"


class AuthorText(str):
    """What a macro, a block or ``set`` has put together: text of the template, whose values are stand-ins already."""

    __slots__ = ()


def has_private_characters(source: str) -> bool:
    """True if a template uses characters that are reserved for stand-ins."""
    return _PRIVATE.search(source) is not None


class Values:
    """The values of one rendering, each kept as the text that it shows and as the HTML that shows it."""

    def __init__(self, template: str) -> None:
        self._template = template
        self._secret = "".join(chr(0xF0000 + part) for part in secrets.token_bytes(8))
        self._texts: list[str] = []
        self._html: list[str] = []

    def keep(self, value: object) -> str:
        """Return the stand-in for ``value``, as it comes out of a template expression.

        An object with ``__html__`` (Markup: ``|safe``, a form field) is HTML that is trusted as it is.

        Raises:
            TemplateFailed: the template writes more values than there are stand-ins.
        """
        if isinstance(value, AuthorText):
            return value
        html: str | None = None
        if hasattr(value, "__html__"):
            html = str(value.__html__())
            text = unescape(html)
        else:
            text = str(value)
        if not text:
            return ""
        if self._secret in text or (html is not None and self._secret in html):
            # A filter has changed the text of a macro or block; what stood in it are values, and so is the whole.
            html = None if html is None else self._resolved(html, self._html)
            text = self._resolved(text, self._texts)
        if len(self._texts) > _LAST - _FIRST:
            raise TemplateFailed(self._template, f"more than {len(self._texts)} values in one Markdown template")
        self._texts.append(text)
        self._html.append(escape(text) if html is None else html)
        return f"{self._secret}{chr(_FIRST + len(self._texts) - 1)}"

    def source(self, rendered: str) -> str:
        """Return rendered text with bare stand-ins, ready for the converter."""
        return _SECRET.sub("", rendered.replace(self._secret, ""))

    def as_text(self, source: str) -> str:
        """Return the text part, with each value unchanged."""
        return self._fill(source, self._texts)

    def as_html(self, html: str) -> str:
        """Return the HTML, with each value escaped for text and quoted attributes."""
        return self._fill(html, self._html)

    def _fill(self, text: str, kept: list[str]) -> str:
        def restore(match: re.Match[str]) -> str:
            index = ord(match[0]) - _FIRST
            return kept[index] if index < len(kept) else ""

        return _STAND_IN.sub(restore, text)

    def _resolved(self, text: str, kept: list[str]) -> str:
        first, *others = text.split(self._secret)
        return first + "".join(kept[ord(part[0]) - _FIRST] + part[1:] if part else "" for part in others)
