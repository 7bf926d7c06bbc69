"""The inbox in a folder, as the page uses it: off the event loop."""

import time
from asyncio import wrap_future
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import Semaphore
from typing import TypeVar

from openviper.core.email.events import MessageEvent
from openviper.core.email.inbox.folder import Folder
from openviper.core.email.inbox.store import Entry, Store
from openviper.core.email.message import OutgoingMessage

__all__ = ["FolderStore", "Writer"]

T = TypeVar("T")

_POLL = 0.5  # seconds between two looks at what other processes have written
_MOST_WAITING = 1_000  # events on their way to the disk; what is beyond is not kept


class Writer:
    """One thread that does everything in ``folder``, in order."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._room = Semaphore(_MOST_WAITING)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="openviper-inbox")

    def take(self, event: MessageEvent, then: Callable[[], None] | None = None) -> None:
        """Write ``event`` soon, and call ``then``, in the thread. Does not block."""
        if not self._room.acquire(blocking=False):
            return
        with suppress(RuntimeError):  # closed: the last events of a process that ends
            self.thread.submit(self._write, event, then)

    def _write(self, event: MessageEvent, then: Callable[[], None] | None) -> None:
        self._room.release()
        self._folder.write(event)
        if then is not None:
            then()


class FolderStore(Store):
    """Keeps messages in ``folder``.

    What this process sent before a question is in the answer, since both go through the same thread.
    """

    def __init__(self, folder: Folder) -> None:
        super().__init__()
        self._folder = folder
        self._writer = Writer(folder)
        self._seen: object = None

    def record(self, event: MessageEvent) -> None:
        self._writer.take(event, self.changes.notify)

    async def newest_first(self) -> list[Entry]:
        return await self._in_thread(self._folder.entries)

    async def get(self, key: str) -> Entry | None:
        return await self._in_thread(partial(self._folder.entry, key))

    async def load(self, key: str) -> OutgoingMessage | None:
        return await self._in_thread(partial(self._folder.load, key))

    async def mark_read(self, key: str) -> None:
        await self._change(partial(self._folder.mark_read, key))

    async def delete(self, key: str) -> None:
        await self._change(partial(self._folder.remove, key))

    async def clear(self) -> None:
        await self._change(self._folder.remove_all)

    async def changed(self, version: int, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            current = await self.changes.after(version, max(0.0, min(_POLL, left)))
            if current != version or self.changes.closed or left <= 0:
                return current
            seen = await self._in_thread(self._folder.look)
            if seen != self._seen:
                self._seen = seen
                self.changes.notify()

    async def aclose(self) -> None:
        await super().aclose()
        with suppress(RuntimeError):
            await self._in_thread(lambda: None)
        self._writer.thread.shutdown(wait=False)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await wrap_future(self._writer.thread.submit(function))

    async def _change(self, function: Callable[[], None]) -> None:
        await self._in_thread(function)
        self.changes.notify()
