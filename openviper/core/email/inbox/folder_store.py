"""The inbox in a folder, used off the event loop: the page's store, and recording in processes without a page."""

import time
from asyncio import wrap_future
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TypeVar

from openviper.core.email.events import MessageEvent, subscribe
from openviper.core.email.inbox.entries import Entry, Listing, footprint
from openviper.core.email.inbox.folder import Folder, Unwritten
from openviper.core.email.inbox.store import MAX_BYTES, MAX_MESSAGES, Store
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.message.origin import record_origins
from openviper.core.email.message.redaction import is_redacted, is_sensitive, redact, redact_prepared
from openviper.core.email.settings import EmailSettings

__all__ = ["FolderStore", "start_recording"]

T = TypeVar("T")

_POLL = 0.5  # seconds between two checks for changes by other processes
_MAX_PENDING = 20_000  # messages with events waiting to be written; those of further ones are not recorded


class _Writer:
    """Runs everything that uses ``folder`` in one thread, in order, and calls ``then`` after each write.

    What is recorded during a write is written together by the next one. Of messages that wait, only as many are kept
    whole as the folder keeps; of older ones the events, in case that the folder has them.
    """

    def __init__(self, folder: Folder, then: Callable[[], None] | None = None) -> None:
        self._folder = folder
        self._then = then
        self._lock = Lock()
        self._pending: dict[str, Unwritten] = {}
        self._whole: deque[tuple[Unwritten, int]] = deque()
        self._bytes = 0
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="openviper-inbox")

    def write(self, event: MessageEvent) -> None:
        """Have ``event`` written in the thread. Does not block."""
        with self._lock:
            first = not self._pending
            found = self._pending.get(event.message_id)
            if found is not None:
                found.add(event)
            elif len(self._pending) < _MAX_PENDING:
                self._add(event)
        if first:
            with suppress(RuntimeError):  # closed: the last events of a process that ends
                self.thread.submit(self._write)

    def _add(self, event: MessageEvent) -> None:
        unwritten = self._pending[event.message_id] = Unwritten(event)
        size = footprint(event.message)
        self._whole.append((unwritten, size))
        self._bytes += size
        while len(self._whole) > 1 and (len(self._whole) > MAX_MESSAGES or self._bytes > MAX_BYTES):
            oldest, size = self._whole.popleft()
            oldest.message = None
            self._bytes -= size

    def _write(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, {}
            self._whole.clear()
            self._bytes = 0
        self._folder.write_all(pending.values())
        if self._then is not None:
            self._then()


class FolderStore(Store):
    """Stores messages in ``folder``.

    Reads go through the same thread as writes, so they include everything that this process has sent before.
    """

    def __init__(self, folder: Folder, *, sensitive: bool = False) -> None:
        super().__init__(sensitive=sensitive)
        self._folder = folder
        self._writer = _Writer(folder, self.changes.notify)
        self._seen = -1  # the folder's version
        self._read: Listing | None = None
        self._listed = Listing()

    def record(self, event: MessageEvent) -> None:
        self._writer.write(event)

    async def newest_first(self) -> Listing:
        read = await self._in_thread(self._folder.entries)
        if self._sensitive:
            return read
        if read is not self._read:
            self._read, self._listed = read, Listing(map(self._shown, read))
        return self._listed

    async def get(self, key: str) -> Entry | None:
        entry = await self._in_thread(partial(self._folder.entry, key))
        return None if entry is None else self._shown(entry)

    async def load(self, key: str) -> OutgoingMessage | None:
        message = await self._in_thread(partial(self._folder.load, key))
        if message is None or self._sensitive or not is_sensitive(message.prepared):
            return message
        return message if is_redacted(message.prepared) else redact(message)

    def _shown(self, entry: Entry) -> Entry:
        """Redact a sensitive message, which another process may have recorded whole."""
        if self._sensitive or not is_sensitive(entry.prepared) or is_redacted(entry.prepared):
            return entry
        return replace(entry, prepared=redact_prepared(entry.prepared), attachment_sizes=())

    async def mark_read(self, key: str, *, read: bool = True) -> None:
        if await self._in_thread(partial(self._folder.mark_read, key, read=read)):
            self.changes.notify()

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
            seen = await self._in_thread(self._folder.version)
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


def start_recording(settings: EmailSettings, *, debug: bool) -> Callable[[], None]:
    """Record mail in ``inbox_dir`` from a process without an inbox page, such as a worker or a script.

    Returns a function that ends the recording and blocks until everything is written; a process that exits without
    calling it still writes what is pending. Does nothing without ``inbox_dir`` or if the inbox is off; ``debug`` is
    the setting ``DEBUG``.
    """
    if settings.inbox_dir is None or not settings.inbox_enabled(debug=debug):
        return lambda: None
    writer = _Writer(Folder(settings.inbox_dir))
    unsubscribe, end_origins = subscribe(writer.write, sensitive=debug), record_origins()

    def end() -> None:
        unsubscribe()
        end_origins()
        writer.thread.shutdown()

    return end
