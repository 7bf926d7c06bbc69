"""What the inbox page shows: messages with what happened to them, and where they are kept."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2s
from threading import Lock

from openviper.core.email.events import EventKind, MessageEvent, subscribe
from openviper.core.email.inbox.changes import Changes
from openviper.core.email.message import Envelope, OutgoingMessage, PreparedMessage

__all__ = [
    "MAX_BYTES",
    "MAX_MESSAGES",
    "Entry",
    "MemoryStore",
    "Store",
    "TimelineStep",
    "footprint",
    "key_of",
    "with_step",
]

MAX_MESSAGES = 500
MAX_BYTES = 64 * 1024 * 1024
_MAX_STEPS = 200


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """One event; ``at`` is Unix time in seconds.

    ``recipients`` are those whom it was about, ``refused`` those of them who did not get what was delivered to others.
    """

    kind: EventKind
    at: float
    detail: str
    recipients: tuple[str, ...]
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A message as the inbox has it; ``key`` names it in addresses of the page.

    ``steps``: oldest first, never empty. The attachments of ``prepared`` may lack their content, whose lengths are in
    ``attachment_sizes``: ``Store.load`` gives the whole message. ``envelope`` is that of the first event.
    """

    key: str
    prepared: PreparedMessage
    envelope: Envelope
    size: int
    attachment_sizes: tuple[int, ...]
    steps: tuple[TimelineStep, ...]
    read: bool = False

    @property
    def state(self) -> EventKind:
        """The kind of the newest step."""
        return self.steps[-1].kind

    @property
    def missed(self) -> tuple[str, ...]:
        """Who has been refused while others got it, and has not got it since."""
        missed: dict[str, None] = {}
        for step in self.steps:
            if step.kind == "delivered":
                missed = {one: None for one in missed if one not in step.recipients} | dict.fromkeys(step.refused)
        return tuple(missed)

    @property
    def status(self) -> str:
        """The state for people."""
        return "partly delivered" if self.state == "delivered" and self.missed else self.state

    @property
    def mode(self) -> str:
        """How it left: "held", "deferred", "queued", or "inline" for one that was sent at once."""
        first = self.steps[0].kind
        return first if first in ("held", "deferred", "queued") else "inline"

    @property
    def arrived(self) -> int:
        """When the first step was, in microseconds of Unix time; orders the inbox."""
        return int(self.steps[0].at * 1_000_000)


class Store(ABC):
    """Keeps the newest messages within bounds; the oldest go first. Belongs to one event loop."""

    def __init__(self) -> None:
        self.changes = Changes()

    def follow(self) -> Callable[[], None]:
        """Fill the store from the events of this process; returns the function that ends it."""
        return subscribe(self.record)

    @abstractmethod
    def record(self, event: MessageEvent) -> None:
        """Take over an event, in any thread, without blocking."""

    @abstractmethod
    async def newest_first(self) -> list[Entry]:
        """Every entry, the one that arrived last first."""

    @abstractmethod
    async def get(self, key: str) -> Entry | None:
        """The entry, or None when there is none (any more)."""

    @abstractmethod
    async def load(self, key: str) -> OutgoingMessage | None:
        """The whole message, for the recipients of its newest step; None when there is none (any more)."""

    @abstractmethod
    async def mark_read(self, key: str) -> None:
        """Remember that somebody has opened it."""

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Forget one message; one that is gone already is no error."""

    @abstractmethod
    async def clear(self) -> None:
        """Forget everything."""

    async def changed(self, version: int, timeout: float) -> int:
        """``Changes.after``, for everything that may change this store."""
        return await self.changes.after(version, timeout)

    async def aclose(self) -> None:
        """Write what is still to be written, and let go."""
        self.changes.close()


class MemoryStore(Store):
    """Keeps the messages of this process in memory."""

    def __init__(self, *, max_messages: int = MAX_MESSAGES, max_bytes: int = MAX_BYTES) -> None:
        super().__init__()
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._entries: dict[str, tuple[Entry, OutgoingMessage]] = {}
        self._bytes = 0
        self._lock = Lock()

    def record(self, event: MessageEvent) -> None:
        key = key_of(event.message_id)
        message: OutgoingMessage = event.message
        with self._lock:
            entry, message = self._entries.get(key) or (None, message)
            if entry is None:
                self._bytes += footprint(message)
            self._entries[key] = with_step(entry, event), message
            # One message always stays, however large it is: it is the one that the developer wants to see.
            while len(self._entries) > 1 and (len(self._entries) > self._max_messages or self._bytes > self._max_bytes):
                self._forget(next(iter(self._entries)))
        self.changes.notify()

    async def newest_first(self) -> list[Entry]:
        with self._lock:
            return [entry for entry, _ in reversed(self._entries.values())]

    async def get(self, key: str) -> Entry | None:
        entry, _ = self._entries.get(key, (None, None))
        return entry

    async def load(self, key: str) -> OutgoingMessage | None:
        entry, message = self._entries.get(key, (None, None))
        if entry is None or message is None:
            return None
        return message.for_recipients(entry.steps[-1].recipients)

    async def mark_read(self, key: str) -> None:
        with self._lock:
            if key in self._entries:
                entry, message = self._entries[key]
                if entry.read:
                    return
                self._entries[key] = replace(entry, read=True), message
        self.changes.notify()

    async def delete(self, key: str) -> None:
        with self._lock:
            self._forget(key)
        self.changes.notify()

    async def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._bytes = 0
        self.changes.notify()

    def _forget(self, key: str) -> None:
        if found := self._entries.pop(key, None):
            self._bytes -= footprint(found[1])


def key_of(message_id: str) -> str:
    """The name of a message in addresses and folders: 16 hexadecimal digits."""
    return blake2s(message_id.encode(), digest_size=8).hexdigest()


def footprint(message: OutgoingMessage) -> int:
    """About how many bytes keeping ``message`` takes: its encoded form, and the contents that it was made from."""
    return message.size + sum(len(part.content) for part in message.prepared.attachments)


def with_step(entry: Entry | None, event: MessageEvent) -> Entry:
    """``entry`` with ``event`` as its newest step; None begins a new entry."""
    message: OutgoingMessage = event.message
    step = TimelineStep(event.kind, event.at, event.detail, message.envelope.recipients, event.refused)
    if entry is None:
        prepared = message.prepared
        sizes = tuple(len(part.content) for part in prepared.attachments)
        return Entry(key_of(event.message_id), prepared, message.envelope, message.size, sizes, (step,))
    # The first one says which mode the message took; in between, a message that is tried for ever loses the oldest.
    steps = (entry.steps[0], *entry.steps[1:][-(_MAX_STEPS - 2) :], step)
    return replace(entry, steps=steps)
