"""Convert Markdown to HTML with python-markdown; without it only headings, paragraphs and links."""

import logging
import re
import threading
from functools import lru_cache
from html import escape
from types import ModuleType
from typing import Any

from openviper.conf.imports import require
from openviper.core.email.templates.links import quote_stand_ins
from openviper.core.email.templates.values import STAND_IN, autolink
from openviper.exceptions import MissingDependency

__all__ = ["basic_html", "load_converter", "to_html"]

_logger = logging.getLogger("openviper.email")

_CACHED = 16_000  # characters; longer sources are converted each time
_HEADING = re.compile(r"(#{1,6})[ \t]+(.*)")
_LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]*)\)")
_VALUE_LINK = re.compile(f"&lt;({STAND_IN})&gt;")


class _Converters(threading.local):
    """Converters by thread, because a converter stores the document it is working on."""

    converter: Any = None


_converters = _Converters()
_library: ModuleType | MissingDependency | None = None
_warned = False
_loading = threading.Lock()


def load_converter() -> None:
    """Import python-markdown if it is installed, which is slow the first time; do it in a thread."""
    global _library
    with _loading:
        if _library is None:
            try:
                _library = require("markdown", extra="markdown", purpose="Markdown in templates")
            except MissingDependency as error:
                _library = error


def to_html(source: str) -> str:
    """Convert ``source``, in which values are stand-ins; they come out as they went in, in attributes always quoted.

    Where python-markdown is missing, the first call logs what a substitute does without.
    """
    load_converter()
    if isinstance(_library, MissingDependency):
        _warn_once(_library)
    return _kept(source) if len(source) <= _CACHED else quote_stand_ins(_convert(source))


def _warn_once(missing: MissingDependency) -> None:
    global _warned
    with _loading:
        before, _warned = _warned, True
    if not before:
        _logger.warning("%s; until then only headings, paragraphs and links of .md templates become HTML", missing)


@lru_cache(maxsize=64)
def _kept(source: str) -> str:
    # The same template gives the same source for every recipient, since the values are not in it.
    return quote_stand_ins(_convert(source))


def _convert(source: str) -> str:
    if not isinstance(_library, ModuleType):
        return basic_html(source)
    converter = _converters.converter
    if converter is None:
        converter = _converters.converter = _new_converter(_library)
    converter.reset()
    return str(converter.convert(source))


def _new_converter(library: ModuleType) -> Any:
    converter = library.Markdown(extensions=["extra", "sane_lists"])
    patterns = library.inlinepatterns

    class ValueLink(patterns.InlineProcessor):  # type: ignore[misc,name-defined]
        """``<{{ value }}>``; decided when the value is put back."""

        ANCESTOR_EXCLUDES = ("a",)

        def handleMatch(self, match: re.Match[str], _data: str) -> tuple[str, int, int]:  # noqa: N802
            return autolink(match[1]), match.start(), match.end()

    class AddressLink(patterns.InlineProcessor):  # type: ignore[misc,name-defined]
        """``<name@example.com>``. The library's own spells every letter as an entity, stand-ins as well."""

        ANCESTOR_EXCLUDES = ("a",)

        def handleMatch(self, match: re.Match[str], _data: str) -> tuple[Any, int, int]:  # noqa: N802
            address = self.unescape(match[1])
            element = patterns.etree.Element("a")
            element.text = library.util.AtomicString(address)
            element.set("href", f"mailto:{address}")
            return element, match.start(), match.end()

    converter.inlinePatterns.deregister("automail")
    converter.inlinePatterns.register(AddressLink(r"<(?:mailto:)?([^<> !]+@[^@<> ]+)>", converter), "automail", 110)
    # After raw HTML (90), so that an attribute cannot be taken for a link.
    converter.inlinePatterns.register(ValueLink(f"<({STAND_IN})>", converter), "value-link", 85)
    return converter


def basic_html(source: str) -> str:
    """Convert headings, paragraphs and inline links to HTML; everything else is text, raw HTML too."""
    parts: list[str] = []
    paragraph: list[str] = []

    def end_paragraph() -> None:
        if paragraph:
            parts.append(f"<p>{_inline(' '.join(paragraph))}</p>")
            paragraph.clear()

    for line in source.splitlines():
        heading = _HEADING.match(line)
        if heading:
            end_paragraph()
            level = len(heading[1])
            title = heading[2].rstrip(" \t#")
            parts.append(f"<h{level}>{_inline(title)}</h{level}>")
        elif line.strip():
            paragraph.append(line.strip())
        else:
            end_paragraph()
    end_paragraph()
    return "\n".join(parts)


def _inline(text: str) -> str:
    linked = _LINK.sub(r'<a href="\2">\1</a>', escape(text))
    return _VALUE_LINK.sub(lambda match: autolink(match[1]), linked)
