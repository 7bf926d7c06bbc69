"""Stores of inbox entries: their interface, the one in memory, and notification of changes."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from threading import Lock

from openviper.core.email.events import MessageEvent, subscribe
from openviper.core.email.inbox.entries import Entry, Listing, begins, footprint, key_of, with_step
from openviper.core.email.message import OutgoingMessage

__all__ = ["MAX_BYTES", "MAX_MESSAGES", "Changes", "MemoryStore", "Store"]

MAX_MESSAGES = 500
MAX_BYTES = 64 * 1024 * 1024


class Changes:
    """Counts changes and wakes the tasks of one event loop that wait for the next change.

    Create it on that loop; ``notify`` and ``close`` may be called in any thread.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.version = 0
        self.closed = False

    def notify(self) -> None:
        """Count a change and wake the waiting tasks."""
        self._call(self._changed)

    def close(self) -> None:
        """End all waiting, now and in the future."""
        self._call(self._close)

    async def after(self, version: int, timeout: float) -> int:
        """Wait until the version differs from ``version``, at most ``timeout`` seconds, and return it.

        Returns at once after ``close``.
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
        """Sleep, at most until ``close``."""
        if not self.closed:
            await asyncio.wait((self._ended,), timeout=seconds)

    def _call(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has been closed, so no task waits
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


class Store(ABC):
    """Stores the newest messages within limits and removes the oldest first. Belongs to one event loop.

    ``sensitive`` True keeps and returns messages that were sent with ``sensitive=True`` whole; False, redacted.
    """

    def __init__(self, *, sensitive: bool = False) -> None:
        self.changes = Changes()
        self._sensitive = sensitive

    def follow(self) -> Callable[[], None]:
        """Record the events of this process until the returned function is called."""
        return subscribe(self.record, sensitive=self._sensitive)

    @abstractmethod
    def record(self, event: MessageEvent) -> None:
        """Record an event; may be called in any thread and does not block."""

    @abstractmethod
    async def newest_first(self) -> Listing:
        """Return all entries, the last one that arrived first; the same object until one of them changes."""

    @abstractmethod
    async def get(self, key: str) -> Entry | None:
        """Return the entry; None if it does not exist or was removed."""

    @abstractmethod
    async def load(self, key: str) -> OutgoingMessage | None:
        """Return the whole message, addressed to its newest step's recipients; None if it is not stored."""

    @abstractmethod
    async def mark_read(self, key: str, *, read: bool = True) -> None:
        """Mark the message as read or unread; do nothing if it was removed already."""

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Delete one message; do nothing if it was removed already."""

    @abstractmethod
    async def clear(self) -> None:
        """Delete all messages."""

    async def changed(self, version: int, timeout: float) -> int:
        """Wait as ``Changes.after`` does, for every change to this store."""
        return await self.changes.after(version, timeout)

    async def aclose(self) -> None:
        """Finish pending writes and release resources."""
        self.changes.close()


class MemoryStore(Store):
    """Stores the messages of this process in memory."""

    def __init__(
        self, *, max_messages: int = MAX_MESSAGES, max_bytes: int = MAX_BYTES, sensitive: bool = False
    ) -> None:
        super().__init__(sensitive=sensitive)
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._entries: dict[str, Entry] = {}
        self._messages: dict[str, OutgoingMessage] = {}
        self._listed: Listing | None = None  # None: since changed
        self._bytes = 0
        self._lock = Lock()

    def record(self, event: MessageEvent) -> None:
        key = key_of(event.message_id)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                if self._has_outlived(event):
                    return
                message: OutgoingMessage = event.message
                self._messages[key] = message
                self._bytes += footprint(message)
            self._entries[key] = with_step(entry, event)
            self._listed = None
            # One message always stays, however large: it is the one that the developer wants to see.
            while len(self._entries) > 1 and (len(self._entries) > self._max_messages or self._bytes > self._max_bytes):
                self._forget(next(iter(self._entries)))
        self.changes.notify()

    async def newest_first(self) -> Listing:
        with self._lock:
            if self._listed is None:
                self._listed = Listing(reversed(self._entries.values()))
            return self._listed

    async def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    async def load(self, key: str) -> OutgoingMessage | None:
        with self._lock:
            entry, message = self._entries.get(key), self._messages.get(key)
        if entry is None or message is None:
            return None
        return message.for_recipients(entry.steps[-1].recipients)

    async def mark_read(self, key: str, *, read: bool = True) -> None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.read is read:
                return
            self._entries[key] = replace(entry, read=read)
            self._listed = None
        self.changes.notify()

    async def delete(self, key: str) -> None:
        with self._lock:
            self._forget(key)
        self.changes.notify()

    async def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._messages.clear()
            self._listed = None
            self._bytes = 0
        self.changes.notify()

    def _has_outlived(self, event: MessageEvent) -> bool:
        """True if the message is older than all that are left: it was removed for newer ones, and stays so."""
        if len(self._entries) < self._max_messages:
            return False
        oldest = next(iter(self._entries.values()))
        return begins(event) * 1_000_000 < oldest.arrived

    def _forget(self, key: str) -> None:
        if (message := self._messages.pop(key, None)) is not None:
            del self._entries[key]
            self._bytes -= footprint(message)
            self._listed = None
