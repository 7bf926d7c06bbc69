"""The pages of the inbox: the list, a message, and what belongs to it."""

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from openviper.core.email.delivery import Mailer
from openviper.core.email.inbox.actions import retry, send_again
from openviper.core.email.inbox.check import check
from openviper.core.email.inbox.frame import SANDBOX, frame_policy, framed_html, inline_image
from openviper.core.email.inbox.markup import remote_content
from openviper.core.email.inbox.responses import HEADERS, Pages, as_download, home
from openviper.core.email.inbox.search import Query, matching
from openviper.core.email.inbox.source import header_fields, source_text
from openviper.core.email.inbox.store import Entry, Store, key_of
from openviper.core.email.message import OutgoingMessage

__all__ = ["Views", "attachment", "choice", "entry_or_404", "frame_choices", "framed", "source"]

T = TypeVar("T")

_WIDTHS = {"fit": "Fit", "phone": "Phone", "tablet": "Tablet", "desktop": "Desktop"}
_THEMES = {"light": "Light", "dark": "Dark"}
_TABS = {"html": "HTML", "text": "Text", "headers": "Headers", "source": "Source", "check": "Check"}
_MODES = {
    "inline": "Inline: sent before the call returned",
    "deferred": "Deferred: sent after the response",
    "queued": "Queued: sent by a worker",
    "held": "Held: sent after the commit",
}

_IMAGE_HEADERS = {
    **HEADERS,
    # An image that is opened as a page of its own (SVG) runs nothing either.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
}


class Views:
    """The pages about messages of ``store``; the buttons send with ``mailer``."""

    def __init__(self, pages: Pages, store: Store, mailer: Mailer) -> None:
        self._pages = pages
        self._store = store
        self._mailer = mailer
        self.routes = [
            Route("/", self._list),
            Route("/clear", self._clear, methods=["POST"]),
            Route("/{key}", self._message),
            Route("/{key}/html", self._html),
            Route("/{key}/inline/{name:path}", self._inline),
            Route("/{key}/source", self._source),
            Route("/{key}/message.eml", self._download),
            Route("/{key}/attachments/{index:int}", self._attachment),
            Route("/{key}/delete", self._delete, methods=["POST"]),
            Route("/{key}/again", self._again, methods=["POST"]),
            Route("/{key}/retry", self._retry, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        everything = await self._store.newest_first()
        words = request.query_params.get("q", "").strip()
        entries = everything
        if words:
            entries = await asyncio.to_thread(matching, everything, Query.from_parameters({"q": words}))
        unread = sum(not entry.read for entry in everything)
        return await self._pages.page(
            request, "list.html", entries=entries, query=words, total=len(everything), unread=unread
        )

    async def _message(self, request: Request) -> Response:
        entry = await entry_or_404(self._store, request)
        await self._store.mark_read(entry.key)
        views = {name: label for name, label in _TABS.items() if name != "html" or entry.prepared.html is not None}
        view = choice(request, "view", views)
        findings = await asyncio.to_thread(check, entry)
        values: dict[str, Any] = {
            "entry": entry,
            "view": view,
            "views": views,
            "findings": findings,
            "problems": sum(finding.level == "problem" for finding in findings),
            "sandbox": SANDBOX,
            "gaps": _gaps(entry),
            "mode": _MODES[entry.mode],
            "elsewhere": await asyncio.to_thread(remote_content, entry.prepared.html or ""),
            "not_here": "not-here" in request.query_params,
            **await self._neighbours(entry),
        }
        if view in ("headers", "source"):
            content = (await _message_or_404(self._store, request)).content
            values["fields"] = await asyncio.to_thread(header_fields, content)
            values["source"], values["complete"] = await asyncio.to_thread(source_text, content)
        return await self._pages.page(request, "message.html", **values, **frame_choices(request))

    async def _neighbours(self, entry: Entry) -> Mapping[str, str | None]:
        keys = [other.key for other in await self._store.newest_first()]
        place = keys.index(entry.key) if entry.key in keys else 0
        return {
            "newer": keys[place - 1] if place > 0 else None,
            "older": keys[place + 1] if place + 1 < len(keys) else None,
        }

    async def _html(self, request: Request) -> Response:
        entry = await entry_or_404(self._store, request)
        if entry.prepared.html is None:
            raise HTTPException(404, "This message has no HTML part.")
        images = f"{request.scope['root_path']}/{entry.key}/inline/"
        return await framed(request, entry.prepared.html, images)

    async def _inline(self, request: Request) -> Response:
        message = await _message_or_404(self._store, request)
        found = inline_image(message.prepared, request.path_params["name"])
        if found is None:
            raise HTTPException(404, "This message has no such inline image.")
        return Response(found[0], 200, _IMAGE_HEADERS, found[1])

    async def _source(self, request: Request) -> Response:
        return await source(self._store, request)

    async def _download(self, request: Request) -> Response:
        message = await _message_or_404(self._store, request)
        content = await asyncio.to_thread(b"".join, message.content)
        return as_download(content, f"{request.path_params['key']}.eml", "message/rfc822")

    async def _attachment(self, request: Request) -> Response:
        return await attachment(self._store, request)

    async def _delete(self, request: Request) -> Response:
        await self._store.delete(request.path_params["key"])
        return home(request)

    async def _clear(self, request: Request) -> Response:
        await self._store.clear()
        return home(request)

    async def _again(self, request: Request) -> Response:
        entry = await entry_or_404(self._store, request)
        message = (await _message_or_404(self._store, request)).for_recipients(entry.envelope.recipients)
        return _to(request, key_of(await send_again(message, self._mailer)))

    async def _retry(self, request: Request) -> Response:
        entry = await entry_or_404(self._store, request)
        done = await retry(entry, self._store, self._mailer)
        return _to(request, entry.key if done else f"{entry.key}?not-here")


async def framed(request: Request, html: str, images: str) -> Response:
    """``html`` as the document of the sandboxed frame, as the request's address wants it."""
    choices = frame_choices(request)
    remote = bool(choices["remote"])
    document = await asyncio.to_thread(framed_html, html, images=images, theme=str(choices["theme"]), remote=remote)
    address = f"{request.url.scheme}://{request.headers['host']}{images}"
    headers = {**HEADERS, "Content-Security-Policy": frame_policy(address, remote=remote)}
    return HTMLResponse(document, headers=headers)


def frame_choices(request: Request) -> dict[str, Any]:
    """Width, theme and remote content as the address asks for them, and the addresses of the other choices."""
    chosen = {
        "width": choice(request, "width", _WIDTHS),
        "theme": choice(request, "theme", _THEMES),
        "remote": "1" if request.query_params.get("remote") == "1" else "",
    }

    def link(**changes: str) -> str:
        """The address of the same page with other choices."""
        return "?" + urlencode({name: value for name, value in {**chosen, **changes}.items() if value})

    return {**chosen, "link": link, "widths": _WIDTHS, "themes": _THEMES}


async def attachment(store: Store, request: Request) -> Response:
    """A file that is attached, to download."""
    attachments = (await _message_or_404(store, request)).prepared.attachments
    index = request.path_params["index"]
    if index >= len(attachments):
        raise HTTPException(404, "This message has no such attachment.")
    return as_download(attachments[index].content, attachments[index].filename)


async def source(store: Store, request: Request) -> Response:
    """The message as it is sent, as plain text."""
    message = await _message_or_404(store, request)
    content = await asyncio.to_thread(b"".join, message.content)
    return Response(content, 200, HEADERS, "text/plain; charset=utf-8")


async def entry_or_404(store: Store, request: Request) -> Entry:
    """The entry that the address names.

    Raises:
        HTTPException: 404.
    """
    return _found(await store.get(request.path_params["key"]))


async def _message_or_404(store: Store, request: Request) -> OutgoingMessage:
    """The whole message that the address names.

    Raises:
        HTTPException: 404.
    """
    return _found(await store.load(request.path_params["key"]))


def _found(message: T | None) -> T:
    if message is None:
        raise HTTPException(404, "This message is not in the inbox (any more).")
    return message


def choice(request: Request, name: str, allowed: Mapping[str, str]) -> str:
    """What the address chooses of ``allowed``; the first of them if it chooses nothing or something else."""
    value = request.query_params.get(name, "")
    return value if value in allowed else next(iter(allowed))


def _gaps(entry: Entry) -> list[float | None]:
    """Seconds from each step's predecessor to it."""
    before = [None, *(step.at for step in entry.steps)]
    return [None if at is None else step.at - at for at, step in zip(before, entry.steps, strict=False)]


def _to(request: Request, below: str) -> Response:
    return RedirectResponse(f"{request.scope['root_path']}/{below}", 303)
