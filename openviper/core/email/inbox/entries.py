"""Inbox entries: messages with the events that happened to them."""

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2s

from openviper.core.email.events import NOTHING, DeliveryMode, EventKind, MessageEvent
from openviper.core.email.message import Envelope, OutgoingMessage, PreparedMessage
from openviper.core.email.message.redaction import is_redacted

__all__ = ["Entry", "Listing", "TimelineStep", "begins", "footprint", "key_of", "with_step"]

_MAX_STEPS = 200
_FIRST_KINDS = ("held", "deferred", "queued")


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """One event; ``at`` is Unix time in seconds.

    ``recipients`` are those of the attempt; ``refused`` are the ones refused in a delivery that others accepted;
    ``mode`` is the delivery mode, None where it is unknown.
    """

    kind: EventKind
    at: float
    detail: str
    recipients: tuple[str, ...]
    refused: tuple[str, ...] = ()
    mode: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A message in the inbox; ``key`` identifies it in URLs of the page.

    ``steps``: oldest first, never empty. The attachments of ``prepared`` may lack their content, whose lengths are in
    ``attachment_sizes``; ``Store.load`` returns the whole message. ``envelope`` is the first event's.
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
        """Return the newest step's kind."""
        return self.steps[-1].kind

    @property
    def missed(self) -> tuple[str, ...]:
        """Return the recipients who were refused in a partial delivery and have not received the message since."""
        missed: dict[str, None] = {}
        for step in self.steps:
            if step.kind == "delivered":
                missed = {one: None for one in missed if one not in step.recipients} | dict.fromkeys(step.refused)
        return tuple(missed)

    @property
    def redacted(self) -> bool:
        """True if its content is not here, so that it can only be looked at."""
        return is_redacted(self.prepared)

    @property
    def status(self) -> str:
        """Return the state as the page shows it."""
        return "partly delivered" if self.state == "delivered" and self.missed else self.state

    @property
    def mode(self) -> str:
        """Return the delivery mode: "held", "deferred", "queued" or "inline"."""
        first = self.steps[0]
        return first.kind if first.kind in _FIRST_KINDS else first.mode or "inline"

    @property
    def first_recipient(self) -> str:
        """Return the name of the envelope's first recipient, or the address where the message has no name for it."""
        address = self.envelope.recipients[0]
        prepared = self.prepared
        everyone = (*prepared.to, *prepared.cc, *prepared.bcc)
        return next((each.display_name for each in everyone if each.addr_spec == address), "") or address

    @property
    def arrived(self) -> int:
        """Return the first step's Unix time in microseconds; it orders the inbox."""
        return _microseconds(self.steps[0].at)


class Listing(tuple[Entry, ...]):  # noqa: SLOT001 - a cached property needs a __dict__
    """All entries of a store, newest first, and what is known of them together: computed once, when it is asked for."""

    @cached_property
    def unread(self) -> int:
        """Return how many are not marked as read."""
        return [entry.read for entry in self].count(False)

    @cached_property
    def mailers(self) -> frozenset[str]:
        """Return the names of the mailers that messages asked for."""
        return frozenset([entry.prepared.mailer for entry in self if entry.prepared.must is not NOTHING])

    @cached_property
    def newest_arrival(self) -> int:
        """Return the newest entry's ``arrived``; 0 if there is none."""
        return _microseconds(max([entry.steps[0].at for entry in self], default=0))


def _microseconds(seconds: float) -> int:
    return int(seconds * 1_000_000)


def key_of(message_id: str) -> str:
    """Return the message's name in URLs and folders: 16 hexadecimal digits."""
    return blake2s(message_id.encode(), digest_size=8).hexdigest()


def footprint(message: OutgoingMessage) -> int:
    """Return about how many bytes storing ``message`` takes: its encoded form plus its attachments' contents."""
    return message.size + sum(part.size for part in message.prepared.attachments)


def begins(event: MessageEvent) -> float:
    """Return the Unix time at which the life of the event's message began, as far as the event says it.

    An attempt at deferred or queued mail is not its beginning; the message's date is near it.
    """
    if event.kind in (*_FIRST_KINDS, "cancelled") or event.mode is DeliveryMode.INLINE:
        return event.at
    message: OutgoingMessage = event.message
    return min(event.at, message.prepared.date.timestamp())


def with_step(entry: Entry | None, event: MessageEvent) -> Entry:
    """Return ``entry`` with ``event`` as its newest step, or a new entry if ``entry`` is None."""
    message: OutgoingMessage = event.message
    step = TimelineStep(event.kind, event.at, event.detail, message.envelope.recipients, event.refused, event.mode)
    if entry is None:
        prepared = message.prepared
        sizes = tuple(part.size for part in prepared.attachments)
        return Entry(key_of(event.message_id), prepared, message.envelope, message.size, sizes, (step,))
    # The first step gives the delivery mode, so it stays; a message that is retried for ever loses the oldest others.
    steps = (entry.steps[0], *entry.steps[1:][-(_MAX_STEPS - 2) :], step)
    return replace(entry, steps=steps)
