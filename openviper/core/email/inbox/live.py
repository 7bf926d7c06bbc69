"""Requests that wait for changes: server-sent events for open pages, and API calls that wait for a message.

Servers wait for open responses before they send the application its shutdown event, so an endless response must
detect the shutdown by the signal that the server receives.
"""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from openviper.core.email.inbox.store import Store

__all__ = ["Live", "TooManyWaiting", "on_shutdown_signal"]

T = TypeVar("T")

_MAX_WAITING = 32  # requests; each one keeps a connection open
_HEARTBEAT = 15.0
_MAX_SECONDS = 300.0
_MAX_SECONDS_WITHOUT_SIGNAL = 5.0
_POLL = 0.5
_COLLECT = 0.1  # seconds for which changes are collected into one event

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_callbacks: list[Callable[[], None]] = []
_previous_handlers: dict[int, Any] = {}


class TooManyWaiting(Exception):
    """The limit of waiting requests is reached."""


class Live:
    """Lets requests wait for changes to ``store``: at most 32 at once, none beyond the start of the shutdown."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting = 0

    async def stream(self, _request: Request) -> Response:
        """Stream an event after each change; the page then loads its own content again.

        The browser reconnects when the stream ends.
        """
        return self._stream(self._store.changed)

    async def watch(self, look: Callable[[], object]) -> Response:
        """Stream an event whenever the result of ``look`` changes; it is called in a thread, twice a second."""
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
        return _Stream(self, changed, {"X-Accel-Buffering": "no"})

    async def first(self, find: Callable[[], Awaitable[T | None]], timeout: float) -> T | None:
        """Return the first result of ``find`` that is not None; it is called again after each change.

        None: ``timeout`` seconds have passed, or the server shuts down.

        Raises:
            TooManyWaiting: as many requests as allowed wait already.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        with self.admitted():
            while True:
                version = self._store.changes.version
                found = await find()
                left = deadline - asyncio.get_running_loop().time()
                if found is not None or left <= 0 or self._store.changes.closed:
                    return found
                await self._store.changed(version, left)

    async def events(self, changed: Callable[[int, float], Awaitable[int]], longest: float) -> AsyncIterator[str]:
        """Yield the lines of an event stream for ``longest`` seconds."""
        changes = self._store.changes
        version = await changed(-1, 0)
        end = asyncio.get_running_loop().time() + longest
        yield "retry: 1000\n: open\n\n"
        while not changes.closed and (left := end - asyncio.get_running_loop().time()) > 0:
            current = await changed(version, min(left, _HEARTBEAT))
            yield ": \n\n" if current == version else "data: changed\n\n"
            version = current
            if not changes.closed:
                await asyncio.sleep(_COLLECT)

    @contextmanager
    def admitted(self) -> Iterator[float]:
        """Admit and count a waiting request in one step; the context value is how many seconds it may wait.

        Raises:
            TooManyWaiting: as many requests as allowed wait already.
        """
        if self._waiting >= _MAX_WAITING:
            raise TooManyWaiting
        self._waiting += 1
        try:
            with on_shutdown_signal(self._store.changes.close) as installed:
                yield _MAX_SECONDS if installed else _MAX_SECONDS_WITHOUT_SIGNAL
        finally:
            self._waiting -= 1


class _Stream(Response):
    """An event stream that is admitted when it is sent, not when it is made: nothing can come in between."""

    def __init__(self, live: Live, changed: Callable[[int, float], Awaitable[int]], headers: dict[str, str]) -> None:
        super().__init__(headers=headers, media_type="text/event-stream")
        self._live = live
        self._changed = changed
        self._given = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, or 503."""
        try:
            with self._live.admitted() as longest:
                events = self._live.events(self._changed, longest)
                stream = StreamingResponse(events, headers=self._given, media_type=self.media_type)
                await stream(scope, receive, send)
        except TooManyWaiting:
            refusal = PlainTextResponse("Too many pages are open: close some.\n", 503)
            await refusal(scope, receive, send)


@contextmanager
def on_shutdown_signal(callback: Callable[[], None]) -> Iterator[bool]:
    """Call ``callback`` if SIGINT or SIGTERM arrives inside the block, before the server's own handler.

    The context value is False where signals cannot be handled: outside the main thread. The last block to end
    restores the handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    if not _callbacks:
        _install()
    _callbacks.append(callback)
    try:
        yield bool(_previous_handlers)
    finally:
        _callbacks.remove(callback)
        if not _callbacks:
            _restore()


def _install() -> None:
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if handler is not None and handler is not signal.SIG_IGN:
            _previous_handlers[number] = handler
            signal.signal(number, _receive)


def _restore() -> None:
    while _previous_handlers:
        number, handler = _previous_handlers.popitem()
        if signal.getsignal(number) is _receive:
            signal.signal(number, handler)


def _receive(number: int, frame: FrameType | None) -> None:
    for callback in tuple(_callbacks):
        callback()
    handler = _previous_handlers.get(number, signal.SIG_DFL)
    if callable(handler):
        handler(number, frame)
    else:
        signal.signal(number, handler)
        os.kill(os.getpid(), number)
