"""The inbox page as an ASGI application."""

import asyncio
import ipaddress
from collections.abc import Mapping
from email.utils import format_datetime
from importlib.resources import files
from time import localtime, strftime
from typing import Any
from urllib.parse import urlsplit

from jinja2 import DictLoader, Environment
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from openviper.core.email.mailbox.frame import FRAME_POLICY, framed_html
from openviper.core.email.mailbox.store import Entry, Store
from openviper.core.email.settings import EmailSettings

__all__ = ["PATH", "Inbox", "is_inbox_path"]

PATH = "/_mail"

_PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def is_inbox_path(scope: Scope) -> bool:
    """Whether a request is for the inbox page, which lies directly under the application's root path."""
    path = _path_below_root(scope)
    return path == PATH or path.startswith(f"{PATH}/")


def _path_below_root(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


class Inbox:
    """Shows every message that leaves this process while it is open.

    Only for a Host that is this machine or listed in ``EMAIL["inbox_hosts"]``, so that a foreign name which resolves
    here cannot read mail (DNS rebinding); changes need a request from the page itself.
    """

    def __init__(self, settings: EmailSettings) -> None:
        self._hosts = frozenset(host.lower() for host in settings.inbox_hosts or ())
        self._store = Store()
        self._unfollow = self._store.follow()
        self._templates: Environment | None = None
        self._stylesheet = ""
        self._router = Router(
            [
                Route("/", self._list),
                Route("/inbox.css", self._css),
                Route("/clear", self._clear, methods=["POST"]),
                Route("/{key}", self._message),
                Route("/{key}/html", self._html),
                Route("/{key}/source", self._source),
                Route("/{key}/message.eml", self._download),
                Route("/{key}/attachments/{index:int}", self._attachment),
                Route("/{key}/delete", self._delete, methods=["POST"]),
            ],
            redirect_slashes=False,
        )

    async def open(self) -> None:
        """Read the page's own files, off the event loop."""
        if self._templates is None:
            pages, self._stylesheet = await asyncio.to_thread(_load_files)
            self._templates = Environment(loader=DictLoader(pages), autoescape=True, trim_blocks=True)
            self._templates.filters["clock"] = lambda seconds: strftime("%H:%M:%S", localtime(seconds))
            self._templates.filters["filesize"] = _filesize

    def close(self) -> None:
        """Stop observing."""
        self._unfollow()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        refusal = self._refuse(request)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self.open()
        base = scope.get("root_path", "") + PATH
        below = _path_below_root(scope)[len(PATH) :] or "/"
        try:
            await self._router({**scope, "root_path": base, "path": base + below}, receive, send)
        except HTTPException as error:
            answer = PlainTextResponse(error.detail, error.status_code, _PAGE_HEADERS)
            await answer(scope, receive, send)

    def _refuse(self, request: Request) -> Response | None:
        host = _host_name(f"//{request.headers.get('host', '')}")
        if not _is_this_machine(host) and host not in self._hosts:
            return PlainTextResponse(
                f'The inbox page is not shown for the host name {host!r}: add it to EMAIL["inbox_hosts"].\n', 403
            )
        if request.method not in ("GET", "HEAD") and not _is_same_origin(request):
            return PlainTextResponse("Changes are only taken from the inbox page itself.\n", 403)
        return None

    async def _list(self, request: Request) -> Response:
        query = request.query_params.get("q", "").strip()
        entries = [entry for entry in self._store.newest_first() if _matches(entry, query)]
        return self._page(request, "list.html", entries=entries, query=query)

    async def _message(self, request: Request) -> Response:
        entry = self._entry(request)
        entry.read = True
        prepared = entry.message.prepared
        view = request.query_params.get("view") or ("html" if prepared.html is not None else "text")
        return self._page(
            request,
            "message.html",
            entry=entry,
            view=view,
            date=format_datetime(prepared.date),
            source=_source_text(entry) if view == "source" else "",
        )

    async def _html(self, request: Request) -> Response:
        prepared = self._entry(request).message.prepared
        if prepared.html is None:
            raise HTTPException(404, "This message has no HTML part.\n")
        document = await asyncio.to_thread(framed_html, prepared)
        return HTMLResponse(document, headers={**_PAGE_HEADERS, "Content-Security-Policy": FRAME_POLICY})

    async def _source(self, request: Request) -> Response:
        return PlainTextResponse(_source_text(self._entry(request)), headers=_PAGE_HEADERS)

    async def _download(self, request: Request) -> Response:
        entry = self._entry(request)
        return _as_download(b"".join(entry.message.content), f"{entry.key}.eml", "message/rfc822")

    async def _attachment(self, request: Request) -> Response:
        attachments = self._entry(request).message.prepared.attachments
        index = request.path_params["index"]
        if index >= len(attachments):
            raise HTTPException(404, "This message has no such attachment.\n")
        return _as_download(attachments[index].content, attachments[index].filename)

    async def _delete(self, request: Request) -> Response:
        self._store.delete(request.path_params["key"])
        return RedirectResponse(_home(request), 303)

    async def _clear(self, request: Request) -> Response:
        self._store.clear()
        return RedirectResponse(_home(request), 303)

    async def _css(self, _request: Request) -> Response:
        return Response(self._stylesheet, media_type="text/css", headers=_PAGE_HEADERS)

    def _entry(self, request: Request) -> Entry:
        entry = self._store.get(request.path_params["key"])
        if entry is None:
            raise HTTPException(404, "This message is not in the inbox (any more).\n")
        return entry

    def _page(self, request: Request, name: str, **values: Any) -> Response:
        assert self._templates is not None
        body = self._templates.get_template(name).render(base=request.scope["root_path"], **values)
        return HTMLResponse(body, headers=_PAGE_HEADERS)


def _load_files() -> tuple[Mapping[str, str], str]:
    folder = files("openviper.core.email.mailbox") / "pages"
    pages = {name: (folder / name).read_text("utf-8") for name in ("base.html", "list.html", "message.html")}
    return pages, (folder / "inbox.css").read_text("utf-8")


def _home(request: Request) -> str:
    return f"{request.scope['root_path']}/"


def _host_name(origin: str) -> str:
    try:
        return (urlsplit(origin).hostname or "").lower()
    except ValueError:
        return ""


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_same_origin(request: Request) -> bool:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = urlsplit(request.headers.get("origin", ""))
    return origin.netloc != "" and origin.netloc == request.headers.get("host")


def _matches(entry: Entry, query: str) -> bool:
    prepared = entry.message.prepared
    recipients = " ".join(entry.message.envelope.recipients)
    everything = f"{prepared.subject} {prepared.sender} {recipients} {prepared.text or ''}"
    return query.casefold() in everything.casefold()


def _source_text(entry: Entry) -> str:
    return b"".join(entry.message.content).decode("utf-8", "replace")


def _filesize(size: int) -> str:
    return f"{size} B" if size < 1000 else f"{size / 1000:.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:.1f} MB"


def _as_download(content: bytes, filename: str, media_type: str = "application/octet-stream") -> Response:
    # Never shown by the browser itself: an attachment may be a page with scripts.
    ascii_name = "".join(char if (char.isascii() and char.isalnum()) or char in "._-" else "_" for char in filename)
    return Response(
        content,
        media_type=media_type,
        headers={**_PAGE_HEADERS, "Content-Disposition": f'attachment; filename="{ascii_name}"'},
    )
