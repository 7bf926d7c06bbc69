"""Telling the tasks of one event loop that the inbox has changed, and that the server is about to end."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Changes"]


class Changes:
    """Counts changes and wakes those who wait for the next one. Made on the loop that waits; told from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.version = 0
        self.closed = False

    def notify(self) -> None:
        """Something has changed."""
        self._call(self._changed)

    def close(self) -> None:
        """Nobody is to wait any longer: waiting ends now, and later at once."""
        self._call(self._close)

    async def after(self, version: int, timeout: float) -> int:
        """The current version: at once if it is not ``version`` or after ``close``, else when it changes.

        After ``timeout`` seconds it is returned unchanged.
        """
        if self.version == version and not self.closed:
            future = self._loop.create_future()
            self._waiting.add(future)
            try:
                await asyncio.wait((future,), timeout=timeout)
            finally:
                self._waiting.discard(future)
        return self.version

    async def pause(self, seconds: float) -> None:
        """Wait, but not beyond ``close``."""
        if not self.closed:
            await asyncio.wait((self._ended,), timeout=seconds)

    def _call(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has been closed, so nobody waits
            self._loop.call_soon_threadsafe(function)

    def _changed(self) -> None:
        self.version += 1
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def _close(self) -> None:
        self.closed = True
        if not self._ended.done():
            self._ended.set_result(None)
        self._changed()
