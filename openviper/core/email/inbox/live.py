"""Server-sent events for open pages, and waiting in general."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from openviper.core.email.inbox.responses import HEADERS
from openviper.core.email.inbox.shutdown import on_shutdown_signal
from openviper.core.email.inbox.store import Store

__all__ = ["Busy", "Live"]

T = TypeVar("T")

_MOST = 32  # waiting requests; each one holds a connection
_HEARTBEAT = 15.0
_LONGEST = 300.0
_LONGEST_UNTOLD = 5.0
_POLL = 0.5
_TOGETHER = 0.1  # seconds for which changes are collected


class Busy(Exception):
    """As many requests wait as may."""


class Live:
    """Lets requests wait for changes of ``store``: so many at once, and none beyond the start of the shutdown."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting = 0

    async def stream(self, _request: Request) -> Response:
        """Says that something has changed; the page then asks what. The browser connects again when it ends."""
        return self._stream(self._store.changed)

    async def watch(self, look: Callable[[], object]) -> Response:
        """The same for what ``look`` gives; it is called in a thread, twice a second."""
        last = await asyncio.to_thread(look)
        changes = 0

        async def changed(version: int, timeout: float) -> int:
            nonlocal last, changes
            loop = asyncio.get_running_loop()
            end = loop.time() + timeout
            while changes <= version and not self._store.changes.closed and loop.time() < end:
                await self._store.changes.pause(_POLL)
                seen = await asyncio.to_thread(look)
                changes += seen != last
                last = seen
            return changes

        return self._stream(changed)

    def _stream(self, changed: Callable[[int, float], Awaitable[int]]) -> Response:
        if self._waiting >= _MOST:
            return PlainTextResponse("Too many pages are open.\n", 503, HEADERS)
        headers = {**HEADERS, "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(changed), headers=headers, media_type="text/event-stream")

    async def first(self, find: Callable[[], Awaitable[T | None]], timeout: float) -> T | None:
        """What ``find`` gives, asked again after each change; None after ``timeout`` seconds or at the shutdown.

        Raises:
            Busy: as many requests wait as may.
        """
        if self._waiting >= _MOST:
            raise Busy
        deadline = asyncio.get_running_loop().time() + timeout
        with self._counted():
            while True:
                version = self._store.changes.version
                found = await find()
                left = deadline - asyncio.get_running_loop().time()
                if found is not None or left <= 0 or self._store.changes.closed:
                    return found
                await self._store.changed(version, left)

    async def _events(self, changed: Callable[[int, float], Awaitable[int]]) -> AsyncIterator[str]:
        changes = self._store.changes
        version = await changed(-1, 0)
        with self._counted() as longest:
            end = asyncio.get_running_loop().time() + longest
            yield "retry: 1000\n: open\n\n"
            while not changes.closed and (left := end - asyncio.get_running_loop().time()) > 0:
                current = await changed(version, min(left, _HEARTBEAT))
                yield ": \n\n" if current == version else "data: changed\n\n"
                version = current
                if not changes.closed:
                    await asyncio.sleep(_TOGETHER)

    @contextmanager
    def _counted(self) -> Iterator[float]:
        """Count one that waits; gives how many seconds it may."""
        self._waiting += 1
        try:
            with on_shutdown_signal(self._store.changes.close) as told:
                yield _LONGEST if told else _LONGEST_UNTOLD
        finally:
            self._waiting -= 1
