"""Responses of the inbox page: headers, rendered pages, JSON and downloads."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from email.utils import format_datetime
from functools import partial
from importlib.resources import files
from time import localtime, strftime, time
from typing import Any, Literal
from urllib.parse import quote

from jinja2 import DictLoader, Environment
from markupsafe import Markup
from markupsafe import escape as escape_html
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Message, Send

from openviper.core.email.delivery.pause.state import Pause
from openviper.terminal import escape
from openviper.text import find_urls

__all__ = ["GuardedSend", "PageRenderer", "as_download", "as_json", "disposition", "redirect_home"]

_GUARDS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
}

_QUOTED_NAME = re.compile(r'"((?:[^"\\]|\\.)*+)" <')
_NEEDS_QUOTES = re.compile(r'[()<>\[\]:;@\\,."]')
_CODE = re.compile("`([^`]+)`")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class GuardedSend:
    """Adds the headers that guard the page to a response, also to an error's, except those that it sets itself.

    ``started`` is True once the status and the headers are sent.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        """Send a message of the response."""
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in _GUARDS.items():
                headers.setdefault(name, value)
        await self._send(message)


class PageRenderer:
    """Renders the inbox's own pages; their files are read once.

    ``find_pauses`` returns the pauses that each page shows.
    """

    def __init__(self, find_pauses: Callable[[], Sequence[Pause]]) -> None:
        self._find_pauses = find_pauses
        self._environment: Environment | None = None
        self._files: Mapping[str, str] = {}

    async def open(self) -> None:
        """Read the files, off the event loop."""
        if self._environment is None:
            self._files = await asyncio.to_thread(_read_files)
            environment = Environment(
                loader=DictLoader(dict(self._files)), autoescape=True, trim_blocks=True, lstrip_blocks=True
            )
            environment.filters |= {
                "clock": _clock,
                "moment": _moment,
                "filesize": _filesize,
                "gap": _gap,
                "linked": _linked,
                "mailboxes": _mailboxes,
                "markdown": _as_markup,
                "rfc_date": format_datetime,
                "time_zone": _time_zone,
                "visible": escape,
                "visible_text": partial(escape, body=True),
            }
            self._environment = environment

    async def render(self, request: Request, name: str, status: int = 200, **values: Any) -> Response:
        """Render the page ``name`` in a thread, because a list of hundreds of messages takes long."""
        body = await asyncio.to_thread(self._render, name, request.scope["root_path"], values)
        return HTMLResponse(body, status)

    def _render(self, name: str, base: str, values: Mapping[str, Any]) -> str:
        assert self._environment is not None
        return self._environment.get_template(name).render(base=base, pauses=self._find_pauses(), **values)

    def file(self, name: str) -> Response:
        """Send a style sheet, script or picture."""
        return Response(self._files[name], media_type=_TYPES[name[name.rindex(".") :]])


def redirect_home(request: Request) -> Response:
    """Redirect to the list after a change."""
    return RedirectResponse(f"{request.scope['root_path']}/", 303)


async def as_json(value: object, status: int = 200) -> Response:
    """Send ``value`` as JSON."""
    return Response(await asyncio.to_thread(json.dumps, value), status, media_type="application/json")


def as_download(content: bytes, filename: str, media_type: str = "application/octet-stream") -> Response:
    """Send a file that browsers store and never show, because it may be a page with scripts."""
    headers = {"Content-Disposition": disposition("attachment", filename)}
    return Response(content, 200, headers, media_type)


def disposition(kind: Literal["attachment", "inline"], filename: str) -> str:
    """Return a Content-Disposition with the exact file name by RFC 8187, and a plain one for older clients."""
    plain = "".join(char if char.isascii() and (char.isalnum() or char in "._- ") else "_" for char in filename)
    exact = quote(filename.encode("utf-8", "replace"), safe="")
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{exact}"


def _read_files() -> Mapping[str, str]:
    folder = files("openviper.core.email.inbox") / "pages"
    return {file.name: file.read_text("utf-8") for file in folder.iterdir() if file.is_file()}


def _clock(seconds: float) -> str:
    """Return the local time, with the date unless it is today."""
    at = localtime(seconds)
    return strftime("%H:%M" if at[:3] == localtime(time())[:3] else "%d %b %H:%M", at)


def _moment(seconds: float) -> str:
    return f"{strftime('%H:%M:%S', localtime(seconds))}.{int(seconds * 1000) % 1000:03d}"


def _time_zone(seconds: float) -> str:
    """Return the offset of the local time at this Unix time, such as "UTC+01:00"."""
    offset = strftime("%z", localtime(seconds))
    return f"UTC{offset[:3]}:{offset[3:5]}"


def _gap(seconds: float) -> str:
    if seconds < 0.9995:
        return f"+{max(seconds, 0) * 1000:.0f} ms"
    return f"+{seconds:.1f} s" if seconds < 120 else f"+{seconds / 60:.0f} min"


def _filesize(size: int) -> str:
    return f"{size} B" if size < 1000 else f"{size / 1000:.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:.1f} MB"


def _mailboxes(addresses: object) -> str:
    """Return one or several addresses as headers spell them, with quotation marks only where a name needs them."""
    several = addresses if isinstance(addresses, list | tuple) else (addresses,)
    return _QUOTED_NAME.sub(_unquoted, ", ".join(map(str, several)))


def _unquoted(match: re.Match[str]) -> str:
    return match[0] if _NEEDS_QUOTES.search(match[1]) else f"{match[1]} <"


def _linked(text: str) -> Markup:
    """Return a text part as HTML, with links that open a new page."""
    pieces: list[str] = []
    end = 0
    for start, _, url in find_urls(text):
        address = escape_html(url)
        pieces += (escape_html(text[end:start]), f'<a href="{address}" target="_blank" rel="noopener">{address}</a>')
        end = start + len(url)
    return Markup("".join([*pieces, escape_html(text[end:])]))  # noqa: S704 - escaped above


def _as_markup(text: str) -> Markup:
    """Return a cell of the documentation's tables as HTML: code, and links as their text."""
    html = str(escape_html(_LINK.sub(r"\1", text)))
    return Markup(_CODE.sub(r"<code>\1</code>", html))  # noqa: S704 - escaped above
