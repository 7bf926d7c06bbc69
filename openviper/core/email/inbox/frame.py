"""The HTML part of a message as a document that can be shown in a sandboxed frame."""

import re
from collections.abc import Iterator

from openviper.core.email.message import PreparedMessage
from openviper.markup import read_tags

__all__ = ["SANDBOX", "frame_policy", "framed_html", "inline_image"]

# No scripts, no forms, no navigation of anything but the frame itself; links open a page of their own.
SANDBOX = "allow-popups allow-popups-to-escape-sandbox"

_CID = re.compile(r"cid:([^\s\"'<>)\\]{1,250})", re.IGNORECASE)
_IMAGE_TYPE = re.compile(r"image/[a-z0-9.+-]{1,40}", re.IGNORECASE)
_PREFERENCE = re.compile(r"\(\s*+prefers-color-scheme\s*+:\s*+(dark|light)\s*+\)", re.IGNORECASE)
_DOCTYPE = "<!doctype"
_ALWAYS, _NEVER = "(min-width: 0px)", "(max-width: 0px)"
_SCHEME = re.compile("(?:supported-)?(color-scheme)")
_SCHEMES = re.compile(
    r"(?:(?<![\w-])color-scheme[\s\"']*+[:=]|(?<![\w-])(?:supported-)?color-schemes?[\"']?\s++content\s*+=)"
    r"[\s\"']*+([a-z ]{0,40})",
    re.IGNORECASE,
)
# Policies keep these from loading anything; browsers connect to where they lead all the same.
_FRAMES = re.compile(r"<(?=(?:i?frame|object|embed|portal|fencedframe)\b)", re.IGNORECASE)
_LINKS = re.compile(r"<(?=link\b)", re.IGNORECASE)


def frame_policy(images: str, *, remote: bool) -> str:
    """The Content-Security-Policy of the framed document.

    ``images`` is the address below which the message's inline images lie; ``remote`` lets images, fonts and style
    sheets come from elsewhere.
    """
    elsewhere = " http: https:" if remote else ""
    media = elsewhere or " 'none'"
    return (
        f"default-src 'none'; style-src 'unsafe-inline'{elsewhere}; img-src data: {images}{elsewhere}; "
        f"font-src data:{elsewhere}; media-src{media}; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'self'; sandbox {SANDBOX}"
    )


def framed_html(html: str, *, images: str, theme: str, remote: bool) -> str:
    """``html`` as it is to be framed: inline images (``cid:name``) come from ``images`` + name, links open new pages.

    ``theme`` is "light" or "dark": what asks for the reader's preference is answered with it, since browsers do not
    tell a frame another one than their own. The time is proportional to the length.
    """
    # A name is percent-encoded there as it is in an address (RFC 2392).
    html = _CID.sub(lambda match: images + match[1].replace("?", "%3F").replace("#", "%23"), html)
    html = _PREFERENCE.sub(lambda match: _ALWAYS if match[1].lower() == theme else _NEVER, html)
    html = _FRAMES.sub("<x-", html)
    if not remote:
        html = _LINKS.sub("<x-", html)
    end = _end_of_doctype(html)
    return f'{html[:end]}<base target="_blank">{html[end:]}{_scheme_style(html, theme)}'


def inline_image(message: PreparedMessage, name: str) -> tuple[bytes, str] | None:
    """The image that the HTML calls ``cid:name``: content and MIME type; None if there is none."""
    for part in message.attachments:
        if part.inline and (part.content_id or part.filename) == name and _IMAGE_TYPE.fullmatch(part.mimetype):
            return part.content, part.mimetype
    return None


def _end_of_doctype(html: str) -> int:
    """Return where the doctype ends, before which markup would show the message in quirks mode; 0 without one."""
    position = 0
    for tag in read_tags(html):
        if tag.kind != "comment" or html[position : tag.start].strip(" \t\n\f\r"):
            break
        position = tag.end
        if html[tag.start : tag.start + len(_DOCTYPE)].lower() == _DOCTYPE:
            return position
    return 0


def _schemes(lowered: str) -> Iterator[str]:
    # Looked at only where it may be: the pattern at every place takes a third of a second for each megabyte.
    for found in _SCHEME.finditer(lowered):
        match = _SCHEMES.match(lowered, found.start()) or _SCHEMES.match(lowered, found.start(1))
        if match is not None:
            yield match[1]


def _scheme_style(html: str, theme: str) -> str:
    """A style that sets the colours of ``theme``, if the message says somewhere that it can be shown in them."""
    supported = any(theme in schemes.split() for schemes in _schemes(html.lower()))
    # Behind everything, where it is sure to win; what keeps it from being read merely keeps the browser's colours.
    return f"<style>:root{{color-scheme:only {theme}!important}}</style>" if supported else ""
