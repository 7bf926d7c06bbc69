"""The inbox's JSON API, for end-to-end tests."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from openviper.core.email.addresses import Address
from openviper.core.email.inbox.entries import Entry, TimelineStep
from openviper.core.email.inbox.live import Live, TooManyWaiting
from openviper.core.email.inbox.lookup import attachment_response, entry_or_404, header_fields, source_response
from openviper.core.email.inbox.responses import HEADERS, as_json
from openviper.core.email.inbox.search import Query, search
from openviper.core.email.inbox.store import Store
from openviper.core.email.message.redaction import is_sensitive

__all__ = ["Api"]

_TIMEOUT = 10.0
_MAX_TIMEOUT = 60.0


class Api:
    """Routes at ``/api/messages`` and below."""

    def __init__(self, store: Store, live: Live) -> None:
        self._store = store
        self._live = live
        path = "/api/messages"
        self.routes = [
            Route(path, self._list),
            Route(path, self._clear, methods=["DELETE"]),
            Route(f"{path}/wait", self._wait),
            Route(f"{path}/{{key}}", self._show),
            Route(f"{path}/{{key}}", self._delete, methods=["DELETE"]),
            Route(f"{path}/{{key}}/source", self._source),
            Route(f"{path}/{{key}}/attachments/{{index:int}}", self._attachment),
        ]

    async def _list(self, request: Request) -> Response:
        query = Query.from_parameters(request.query_params)
        entries = await self._store.newest_first()
        # Both from the same entries: nobody who waits for a message after the cursor may miss one.
        found = await asyncio.to_thread(search, entries, query)
        cursor = max((entry.arrived for entry in entries), default=0)
        return await as_json({"messages": [_summary(entry) for entry in found], "cursor": str(cursor)})

    async def _wait(self, request: Request) -> Response:
        """Wait for the first match after ``after``, or without ``after`` for the newest match."""
        query = Query.from_parameters(request.query_params)
        timeout = _timeout(request)
        if timeout is None:
            return await as_json({"error": "timeout: must be from 0 to 60 seconds"}, 400)

        async def find() -> Entry | None:
            entries = await self._search(query)
            return (entries[-1] if query.after else entries[0]) if entries else None

        try:
            entry = await self._live.first(find, timeout)
        except TooManyWaiting:
            return await as_json({"error": "too many requests are waiting; retry later"}, 503)
        if entry is None:
            return await as_json({"error": f"no matching message arrived within {timeout:g} s"}, 404)
        return await self._full(entry)

    async def _show(self, request: Request) -> Response:
        return await self._full(await entry_or_404(self._store, request))

    async def _source(self, request: Request) -> Response:
        return await source_response(self._store, request)

    async def _attachment(self, request: Request) -> Response:
        return await attachment_response(self._store, request)

    async def _delete(self, request: Request) -> Response:
        entry = await entry_or_404(self._store, request)
        await self._store.delete(entry.key)
        return Response(status_code=204, headers=HEADERS)

    async def _clear(self, _request: Request) -> Response:
        await self._store.clear()
        return Response(status_code=204, headers=HEADERS)

    async def _search(self, query: Query) -> list[Entry]:
        return await asyncio.to_thread(search, await self._store.newest_first(), query)

    async def _full(self, entry: Entry) -> Response:
        message = await self._store.load(entry.key)
        fields = [] if message is None else await asyncio.to_thread(header_fields, message.content)
        return await as_json(
            {
                **_summary(entry),
                "reply_to": _addresses(entry.prepared.reply_to),
                "envelope_sender": entry.prepared.envelope_sender,
                "text": entry.prepared.text,
                "html": entry.prepared.html,
                "calendar": None if entry.prepared.calendar is None else entry.prepared.calendar.text,
                "headers": fields,
                "timeline": [_step(step) for step in entry.steps],
            }
        )


def _timeout(request: Request) -> float | None:
    try:
        timeout = float(request.query_params.get("timeout", _TIMEOUT))
    except ValueError:
        return None
    return timeout if 0 <= timeout <= _MAX_TIMEOUT else None


def _summary(entry: Entry) -> dict[str, Any]:
    prepared = entry.prepared
    return {
        "key": entry.key,
        "cursor": str(entry.arrived),
        "message_id": prepared.message_id,
        "date": prepared.date.isoformat(),
        "subject": prepared.subject,
        "from": str(prepared.sender),
        "to": _addresses(prepared.to),
        "cc": _addresses(prepared.cc),
        "bcc": _addresses(prepared.bcc),
        "recipients": list(entry.envelope.recipients),
        "mode": entry.mode,
        "mailer": prepared.mailer,
        "state": entry.state,
        "refused": list(entry.missed),
        "read": entry.read,
        "sensitive": is_sensitive(prepared),
        "size": entry.size,
        "attachments": [
            {
                "filename": part.filename,
                "mimetype": part.mimetype,
                "size": size,
                "inline": part.inline,
                "content_id": part.content_id,
            }
            for part, size in zip(prepared.attachments, entry.attachment_sizes, strict=True)
        ],
    }


def _step(step: TimelineStep) -> dict[str, Any]:
    return {"kind": step.kind, "at": datetime.fromtimestamp(step.at, UTC).isoformat(), "detail": step.detail}


def _addresses(addresses: tuple[Address, ...]) -> list[str]:
    return [str(address) for address in addresses]
