"""A bounded store of messages and of what happened to them, filled by the events of this process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2s

from openviper.core.email.events import EventKind, MessageEvent, subscribe
from openviper.core.email.message import OutgoingMessage

__all__ = ["Entry", "Store"]

MAX_MESSAGES = 500
MAX_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class Entry:
    """A message with its timeline, oldest event first. ``key`` names it in addresses of the page."""

    key: str
    message: OutgoingMessage
    timeline: list[MessageEvent] = field(default_factory=list)
    read: bool = False

    @property
    def state(self) -> EventKind:
        """The kind of the newest event."""
        return self.timeline[-1].kind


class Store:
    """Keeps the newest messages, within both bounds; the oldest go first."""

    def __init__(self, *, max_messages: int = MAX_MESSAGES, max_bytes: int = MAX_BYTES) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._entries: dict[str, Entry] = {}
        self._bytes = 0

    def follow(self) -> Callable[[], None]:
        """Fill the store from the events of this process; returns the function that ends it."""
        return subscribe(self._happened)

    def newest_first(self) -> Iterator[Entry]:
        """Every entry, the one added last first."""
        return reversed(list(self._entries.values()))

    def get(self, key: str) -> Entry | None:
        """The entry, or None when there is none (any more)."""
        return self._entries.get(key)

    def delete(self, key: str) -> None:
        """Forget one message; one that is gone already is no error."""
        if entry := self._entries.pop(key, None):
            self._bytes -= entry.message.size

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0

    def _happened(self, event: MessageEvent) -> None:
        key = blake2s(event.message_id.encode(), digest_size=8).hexdigest()
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(key, event.message)
            self._bytes += event.message.size
        entry.timeline.append(event)
        # One message always stays, however large it is: it is the one that the developer wants to see.
        while len(self._entries) > 1 and (len(self._entries) > self._max_messages or self._bytes > self._max_bytes):
            self.delete(next(iter(self._entries)))
