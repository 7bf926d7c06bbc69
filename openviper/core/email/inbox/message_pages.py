"""The inbox's pages about messages: the list, and each message with its parts and buttons."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from time import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from openviper.core.email.delivery import Mailer
from openviper.core.email.delivery.redirect import describe_redirect
from openviper.core.email.events import NOTHING
from openviper.core.email.inbox.attachment_pages import kind_of
from openviper.core.email.inbox.entries import Entry, key_of
from openviper.core.email.inbox.forms import read_form
from openviper.core.email.inbox.frame import SANDBOX, choice, frame_choices, framed_response
from openviper.core.email.inbox.html_source import source_lines
from openviper.core.email.inbox.lint import lint_message
from openviper.core.email.inbox.list_view import PAGE_SIZE, ListView
from openviper.core.email.inbox.lookup import (
    NOT_KEPT,
    entry_or_404,
    header_fields,
    message_or_404,
    source_response,
    source_text,
)
from openviper.core.email.inbox.query import ParsedQuery
from openviper.core.email.inbox.responses import PageRenderer, as_download, redirect_home
from openviper.core.email.inbox.search import Searcher
from openviper.core.email.inbox.snippets import snippet
from openviper.core.email.inbox.store import Store
from openviper.core.email.lint.remote_content import remote_content
from openviper.core.email.message import OutgoingMessage, new_message_id
from openviper.core.email.message.model import MUST_KEY, read_only
from openviper.core.email.message.origin import read_origin
from openviper.core.email.message.serialiser import serialise_message
from openviper.core.email.settings import DEFAULT_MAILER, debug

__all__ = ["MessagePages"]

_TABS = {
    "html": "HTML",
    "markup": "HTML source",
    "text": "Text",
    "headers": "Headers",
    "source": "Source",
    "check": "Check",
}
_MODES = {
    "inline": "Inline: sent before the call returned",
    "deferred": "Deferred: sent after the response",
    "queued": "Queued: sent by a worker",
    "held": "Held: sent after the commit",
}

_REFRESH = "x-inbox-refresh"  # sent by the page's script


class MessagePages:
    """Routes for the messages in ``store``; the buttons send with ``mailer``."""

    def __init__(self, renderer: PageRenderer, store: Store, searcher: Searcher, mailer: Mailer) -> None:
        self._renderer = renderer
        self._store = store
        self._searcher = searcher
        self._mailer = mailer
        self._shared = mailer.settings.inbox_dir is not None
        self._snippets: Mapping[str, str] = {}  # of the messages that were listed last
        self.routes = [
            Route("/", self._list),
            Route("/clear", self._clear, methods=["POST"]),
            Route("/selected", self._change_selected, methods=["POST"]),
            Route("/{key}", self._message),
            Route("/{key}/html", self._html),
            Route("/{key}/source", self._source),
            Route("/{key}/message.eml", self._download),
            Route("/{key}/delete", self._delete, methods=["POST"]),
            Route("/{key}/unread", self._mark_unread, methods=["POST"]),
            Route("/{key}/again", self._again, methods=["POST"]),
            Route("/{key}/retry", self._retry, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        stored = await self._store.newest_first()
        # Those of mail that another process, or an earlier configuration, has sent are among them.
        mailers = sorted({DEFAULT_MAILER, *self._mailer.settings.mailers, *stored.mailers})
        view = ListView.from_values(request.query_params)
        query = view.parse()
        found = await self._search(stored, query)
        rows = view.rows(found)
        self._snippets = await asyncio.to_thread(_find_snippets, rows, self._snippets)
        return await self._renderer.render(
            request,
            "list.html",
            entries=rows,
            snippets=self._snippets,
            now=time(),
            found=len(found),
            view=view,
            page_size=PAGE_SIZE,
            hints=query.hints,
            mailers=mailers,
            total=len(stored),
            unread=stored.unread,
            backend=self._mailer.backend.describe(),
            redirect=describe_redirect(self._mailer.settings),
            keeps_mail=self._mailer.backend.keeps_mail,
            shared=self._shared,
        )

    async def _search(self, entries: Sequence[Entry], query: ParsedQuery) -> Sequence[Entry]:
        return await asyncio.to_thread(self._searcher.search, entries, query.terms)

    async def _message(self, request: Request) -> Response:
        entry = await entry_or_404(self._store, request)
        listed = ListView.from_values(request.query_params)
        # A page that updates itself is not opened again: the message may have been marked as unread elsewhere.
        if _REFRESH not in request.headers:
            await self._store.mark_read(entry.key)
        absent = {"check"} if entry.redacted else set()
        if entry.prepared.html is None:
            absent |= {"html", "markup"}
        views = {name: label for name, label in _TABS.items() if name not in absent}
        view = choice(request, "view", views)
        settings = self._mailer.settings
        report = await asyncio.to_thread(lint_message, entry, settings.always_streams, settings.target_clients)
        values: dict[str, Any] = {
            "entry": entry,
            "view": view,
            "views": views,
            "report": report,
            "sandbox": SANDBOX,
            "gaps": _gaps(entry),
            "kinds": [kind_of(part) for part in entry.prepared.attachments],
            "origin": await asyncio.to_thread(read_origin, entry.prepared),
            "may_release": debug() and not entry.redacted,
            "mode": _MODES[entry.mode],
            "ends_elsewhere": entry.state == "queued" and not self._shared,
            "has_remote": await asyncio.to_thread(remote_content, entry.prepared.html or ""),
            "retry_failed": "retry-failed" in request.query_params,
            "listed": listed,
            **await self._neighbours(entry, listed.parse()),
        }
        if view == "markup":
            values["lines"], values["complete"] = await asyncio.to_thread(source_lines, entry.prepared.html or "")
        elif view in ("headers", "source"):
            content = (await message_or_404(self._store, request)).content
            values["fields"] = await asyncio.to_thread(header_fields, content)
            values["source"], values["complete"] = await asyncio.to_thread(source_text, content)
        return await self._renderer.render(
            request, "message.html", **values, **frame_choices(request, kept=listed.fields)
        )

    async def _neighbours(self, entry: Entry, query: ParsedQuery) -> Mapping[str, str | None]:
        """Return the keys of the search's next newer and older messages; the entry may not match any more."""
        found = await self._search(await self._store.newest_first(), query)
        keys = [other.key for other in found]
        if entry.key in keys:
            newer = keys.index(entry.key) - 1
            older = newer + 2
        else:
            older = sum(other.arrived > entry.arrived for other in found)
            newer = older - 1
        return {
            "newer": keys[newer] if newer >= 0 else None,
            "older": keys[older] if older < len(keys) else None,
        }

    async def _html(self, request: Request) -> Response:
        entry = await entry_or_404(self._store, request)
        if entry.prepared.html is None:
            raise HTTPException(404, "This message has no HTML part.")
        images = f"{request.scope['root_path']}/{entry.key}/inline/"
        return await framed_response(request, entry.prepared.html, images)

    async def _source(self, request: Request) -> Response:
        return await source_response(self._store, request)

    async def _download(self, request: Request) -> Response:
        message = await message_or_404(self._store, request)
        content = await asyncio.to_thread(b"".join, message.content)
        return as_download(content, f"{request.path_params['key']}.eml", "message/rfc822")

    async def _delete(self, request: Request) -> Response:
        await self._store.delete(request.path_params["key"])
        return _redirect_to_list(request, await read_form(request))

    async def _mark_unread(self, request: Request) -> Response:
        await self._store.mark_read(request.path_params["key"], read=False)
        return _redirect_to_list(request, await read_form(request))

    async def _change_selected(self, request: Request) -> Response:
        form = await read_form(request)
        action = form.get("action", [""])[0]
        if action not in ("delete", "read", "unread"):
            raise HTTPException(400, "Give action=delete, action=read or action=unread.")
        for key in form.get("key", []):
            if action == "delete":
                await self._store.delete(key)
            else:
                await self._store.mark_read(key, read=action == "read")
        return _redirect_to_list(request, form)

    async def _clear(self, request: Request) -> Response:
        """Delete all messages, or those that the form's search finds."""
        query = _listed(await read_form(request)).parse()
        if query.terms:
            for entry in await self._search(await self._store.newest_first(), query):
                await self._store.delete(entry.key)
        else:
            await self._store.clear()
        return redirect_home(request)

    async def _again(self, request: Request) -> Response:
        entry = await entry_or_404(self._store, request)
        if entry.redacted:
            raise HTTPException(409, NOT_KEPT)
        message = (await message_or_404(self._store, request)).for_recipients(entry.envelope.recipients)
        message_id = await _send_copy(message, self._mailer)
        return _redirect(request, key_of(message_id) + _listed(await read_form(request)).url)

    async def _retry(self, request: Request) -> Response:
        entry = await entry_or_404(self._store, request)
        listed = _listed(await read_form(request)).url
        if await _retry_now(entry, self._store, self._mailer):
            return _redirect(request, entry.key + listed)
        return _redirect(request, f"{entry.key}{listed}{'&' if listed else '?'}retry-failed")


async def _send_copy(message: OutgoingMessage, mailer: Mailer) -> str:
    """Send a copy, with its own Message-ID and date, to all recipients after the response; return its Message-ID.

    It has no idempotency key, with which a queue would drop it as a duplicate of the original.
    """
    prepared = message.prepared
    message_id = new_message_id(prepared.sender)
    must = {name: value for name, value in prepared.must.items() if name != MUST_KEY}
    copy = await serialise_message(
        prepared._replace(message_id=message_id, date=datetime.now(UTC), must=read_only(must) if must else NOTHING),
        max_message_bytes=mailer.settings.max_message_bytes,
    )
    mailer.deliver_soon(copy, "sent again from the inbox page")
    return message_id


async def _retry_now(entry: Entry, store: Store, mailer: Mailer) -> bool:
    """Retry the delivery now, to the recipients who have not received the message.

    Returns False if no retry is due, or another process owns the message.
    """
    if entry.state == "retrying":
        return mailer.dispatcher.retry_now(entry.prepared.message_id)
    if entry.state != "failed" and not (entry.state == "delivered" and entry.missed):
        return False
    message = await store.load(entry.key)
    if message is None:
        return False
    if entry.redacted:
        raise HTTPException(409, NOT_KEPT)
    if entry.state == "delivered":
        message = message.for_recipients(entry.missed)
    mailer.deliver_soon(message, "retried from the inbox page")
    return True


def _find_snippets(entries: Sequence[Entry], known: Mapping[str, str]) -> Mapping[str, str]:
    return {entry.key: known[entry.key] if entry.key in known else snippet(entry.prepared) for entry in entries}


def _gaps(entry: Entry) -> list[float | None]:
    """Return the seconds between each step and the one before; None for the first step."""
    before = [None, *(step.at for step in entry.steps)]
    return [None if at is None else step.at - at for at, step in zip(before, entry.steps, strict=False)]


def _redirect_to_list(request: Request, form: Mapping[str, list[str]]) -> Response:
    """Redirect to the part of the list that the form names."""
    return _redirect(request, _listed(form).url)


def _listed(form: Mapping[str, list[str]]) -> ListView:
    return ListView.from_values({name: values[0] for name, values in form.items()})


def _redirect(request: Request, below: str) -> Response:
    return RedirectResponse(f"{request.scope['root_path']}/{below}", 303)
