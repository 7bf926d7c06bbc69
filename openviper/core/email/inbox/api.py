"""The inbox's JSON API, for end-to-end tests."""

import asyncio
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from openviper.core.email.addresses import Address
from openviper.core.email.inbox.api_reference import make_routes
from openviper.core.email.inbox.entries import Entry, TimelineStep
from openviper.core.email.inbox.live import Live, TooManyWaiting
from openviper.core.email.inbox.lookup import attachment_response, entry_or_404, header_fields, source_response
from openviper.core.email.inbox.query import MOST_PARTS, OPERATORS, Term, parse_query, parse_term
from openviper.core.email.inbox.responses import as_json
from openviper.core.email.inbox.search import Searcher
from openviper.core.email.inbox.store import Store
from openviper.core.email.message.origin import read_origin
from openviper.core.email.message.redaction import is_sensitive
from openviper.text import shown

__all__ = ["Api"]

_TIMEOUT = 10.0
_MAX_TIMEOUT = 60.0
_MAX_LISTED = 500


class Api:
    """Routes at ``/api/messages`` and below."""

    def __init__(self, store: Store, live: Live, searcher: Searcher) -> None:
        self._store = store
        self._live = live
        self._searcher = searcher
        path = "/api/messages"
        self.routes = make_routes(
            {
                ("GET", path): self._list,
                ("DELETE", path): self._clear,
                ("GET", f"{path}/wait"): self._wait,
                ("GET", f"{path}/{{key}}"): self._show,
                ("DELETE", f"{path}/{{key}}"): self._delete,
                ("GET", f"{path}/{{key}}/source"): self._source,
                ("GET", f"{path}/{{key}}/attachments/{{index:int}}"): self._attachment,
            }
        )

    async def _list(self, request: Request) -> Response:
        terms = _terms(request.query_params)
        limit = _number(request, "limit", 1, _MAX_LISTED, _MAX_LISTED)
        stored = await self._store.newest_first()
        # Both from the same entries: nobody who waits for a message after the cursor may miss one.
        found = (await self._search(stored, terms))[: int(limit)]
        return await as_json({"messages": [_summary(entry) for entry in found], "cursor": str(stored.newest_arrival)})

    async def _wait(self, request: Request) -> Response:
        """Wait for the first match after the cursor ``after``, or without ``after`` for the newest match."""
        terms = _terms(request.query_params)
        timeout = _number(request, "timeout", 0, _MAX_TIMEOUT, _TIMEOUT)
        oldest = any(term.operator == "after" and not term.negated for term in terms)

        async def find() -> Entry | None:
            entries = await self._search(await self._store.newest_first(), terms)
            return (entries[-1] if oldest else entries[0]) if entries else None

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
        return Response(status_code=204)

    async def _clear(self, request: Request) -> Response:
        if terms := _terms(request.query_params):
            for entry in await self._search(await self._store.newest_first(), terms):
                await self._store.delete(entry.key)
        else:
            await self._store.clear()
        return Response(status_code=204)

    async def _search(self, entries: Sequence[Entry], terms: Sequence[Term]) -> Sequence[Entry]:
        return await asyncio.to_thread(self._searcher.search, entries, terms)

    async def _full(self, entry: Entry) -> Response:
        message = await self._store.load(entry.key)
        fields = [] if message is None else await asyncio.to_thread(header_fields, message.content)
        origin = await asyncio.to_thread(read_origin, entry.prepared)
        return await as_json(
            {
                **_summary(entry),
                "reply_to": _addresses(entry.prepared.reply_to),
                "envelope_sender": entry.prepared.envelope_sender,
                "text": entry.prepared.text,
                "html": entry.prepared.html,
                "calendar": None if entry.prepared.calendar is None else entry.prepared.calendar.text,
                "headers": fields,
                "origin": {"template": origin.template, "context": list(origin.names), "code": origin.code},
                "timeline": [_step(step) for step in entry.steps],
            }
        )


def _terms(parameters: QueryParams) -> list[Term]:
    """Return the conditions of a request's parameters, each of which may occur several times.

    Raises:
        HTTPException: 400, one of them is wrong, there are too many, or ``q`` is probably not what was meant.
    """
    terms: list[Term] = []
    for name, value in parameters.multi_items():
        if name == "q":
            query = parse_query(value)
            if query.hints:
                raise HTTPException(400, f"q: {query.hints[0]}")
            terms += query.terms
        elif name in OPERATORS:
            term = parse_term(name, value)
            if not isinstance(term, Term):
                raise HTTPException(400, term)
            terms.append(term)
    if len(terms) > MOST_PARTS:
        raise HTTPException(400, f"The search has more than {MOST_PARTS} parts: shorten it.")
    return terms


def _number(request: Request, name: str, least: float, most: float, default: float) -> float:
    """Return the parameter as a number, and without it ``default``.

    Raises:
        HTTPException: 400, it is no number from ``least`` to ``most``.
    """
    given = request.query_params.get(name)
    try:
        number = default if given is None else float(given)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise HTTPException(400, f"{name}: must be from {least:g} to {most:g}, not {shown(given)}")
    return number


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
