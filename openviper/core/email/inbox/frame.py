"""Show a message's HTML part in a sandboxed frame: the document, its policy, and the choices above it."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from hashlib import blake2s
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from openviper.core.email.message import PreparedMessage
from openviper.markup import read_tags

__all__ = [
    "SANDBOX",
    "VALUE",
    "choice",
    "frame_choices",
    "framed_html",
    "framed_response",
    "html_version",
    "inline_image",
    "is_image_type",
]

# No scripts, no forms, and navigation only inside the frame; links open a new page. The page measures the document,
# for which it must have the page's own origin: that is harmless only as long as no scripts are allowed.
SANDBOX = "allow-same-origin allow-popups allow-popups-to-escape-sandbox"

# Parameters of a preview's values, which its parts need as well, begin with this.
VALUE = "value-"
_KEPT = ("variant", "values", VALUE)

_WIDTHS = {"fit": "Fit", "phone": "Phone", "tablet": "Tablet", "desktop": "Desktop"}
_THEMES = {"light": "Light", "dark": "Dark", "inverted": "Inverted"}

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
# As clients do that darken every message, whether it has colours of its own for that or not: they keep its pictures.
_INVERSION = (
    "<style>:where(:root){background:#fff}:root,:root :is(img,svg,video){filter:invert(1) hue-rotate(180deg)!important}"
    "</style>"
)
# Content policies block what these load, but browsers still connect to the servers that they name.
_FRAMES = re.compile(r"<(?=(?:i?frame|object|embed|portal|fencedframe)\b)", re.IGNORECASE)
_LINKS = re.compile(r"<(?=link\b)", re.IGNORECASE)


async def framed_response(request: Request, html: str, images: str) -> Response:
    """Send ``html`` as the sandboxed frame's document, with the theme and remote content that the URL chooses."""
    choices = frame_choices(request)
    remote = bool(choices["remote"])
    document = await asyncio.to_thread(framed_html, html, images=images, theme=str(choices["theme"]), remote=remote)
    address = f"{request.url.scheme}://{request.headers['host']}{images}"
    return HTMLResponse(document, headers={"Content-Security-Policy": _policy(address, remote=remote)})


def frame_choices(request: Request, *, kept: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Return the width, theme and remote content that the URL chooses, and a function that links other choices.

    ``kept`` are further parameters of the URL, which the links keep.
    """
    chosen = {
        "width": choice(request, "width", _WIDTHS),
        "theme": choice(request, "theme", _THEMES),
        "remote": "1" if request.query_params.get("remote") == "1" else "",
    }
    chosen.update({name: value for name, value in request.query_params.items() if name.startswith(_KEPT)})

    def link(**changes: str) -> str:
        """Return the URL of the same page with other choices."""
        return "?" + urlencode({name: value for name, value in {**chosen, **kept, **changes}.items() if value})

    return {**chosen, "link": link, "widths": _WIDTHS, "themes": _THEMES}


def choice(request: Request, name: str, allowed: Mapping[str, str]) -> str:
    """Return the URL's parameter ``name`` if it is in ``allowed``, else the first of ``allowed``."""
    value = request.query_params.get(name, "")
    return value if value in allowed else next(iter(allowed))


def _policy(images: str, *, remote: bool) -> str:
    """Return the framed document's Content-Security-Policy.

    ``images`` is the URL of the message's inline images; ``remote`` allows remote images, fonts and style sheets.
    """
    remote_sources = " http: https:" if remote else ""
    media = remote_sources or " 'none'"
    return (
        f"default-src 'none'; style-src 'unsafe-inline'{remote_sources}; img-src data: {images}{remote_sources}; "
        f"font-src data:{remote_sources}; media-src{media}; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'self'; sandbox {SANDBOX}"
    )


def framed_html(html: str, *, images: str, theme: str, remote: bool) -> str:
    """Return ``html`` for the frame: ``cid:name`` becomes ``images`` + name, and links open new pages.

    ``theme`` is "light", "dark" or "inverted", which is the light one with its colours inverted. It replaces queries
    for the reader's preference, because browsers give a frame no preference but their own. The time is proportional to
    the length.
    """
    scheme = "dark" if theme == "dark" else "light"
    # RFC 2392 percent-encodes names in cid: URLs as URLs do, except for these two characters.
    html = _CID.sub(lambda match: images + match[1].replace("?", "%3F").replace("#", "%23"), html)
    html = _PREFERENCE.sub(lambda match: _ALWAYS if match[1].lower() == scheme else _NEVER, html)
    html = _FRAMES.sub("<x-", html)
    if not remote:
        html = _LINKS.sub("<x-", html)
    end = _end_of_doctype(html)
    style = _scheme_style(html, scheme) + (_INVERSION if theme == "inverted" else "")
    return f'{html[:end]}<base target="_blank">{html[end:]}{style}'


def html_version(html: str) -> str:
    """Return a short value that differs when ``html`` differs, for the frame's address: it then loads anew."""
    return blake2s(html.encode("utf-8", "replace"), digest_size=4).hexdigest()


def is_image_type(mimetype: str) -> bool:
    """True for the MIME type of an image, without parameters."""
    return _IMAGE_TYPE.fullmatch(mimetype) is not None


def inline_image(message: PreparedMessage, name: str) -> tuple[bytes, str] | None:
    """Return the content and MIME type of the image ``cid:name``; None if there is none; may block."""
    for part in message.attachments:
        if part.inline and (part.content_id or part.filename) == name and is_image_type(part.mimetype):
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
    # Search for the fixed text first: matching the pattern everywhere takes a third of a second for each megabyte.
    for found in _SCHEME.finditer(lowered):
        match = _SCHEMES.match(lowered, found.start()) or _SCHEMES.match(lowered, found.start(1))
        if match is not None:
            yield match[1]


def _scheme_style(html: str, theme: str) -> str:
    """Return a style that selects ``theme``'s colours if the message declares that it supports them, else ``""``."""
    supported = any(theme in schemes.split() for schemes in _schemes(html.lower()))
    # At the end it overrides the other styles; HTML that hides it merely keeps the browser's colours.
    return f"<style>:root{{color-scheme:only {theme}!important}}</style>" if supported else ""
