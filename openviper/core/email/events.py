"""The results of a send, and the events of a message for those who listen: inbox, tests, metrics."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Never

from openviper.core.email.errors import EmailError, Refusal

__all__ = [
    "NOTHING",
    "DeliveryMode",
    "DeliveryReport",
    "EventKind",
    "MessageEvent",
    "Receipt",
    "listening",
    "publish",
    "subscribe",
]

logger = logging.getLogger("openviper.email")


class DeliveryMode(StrEnum):
    """How a message is delivered."""

    INLINE = "inline"  # delivered before the call returns
    DEFERRED = "deferred"  # delivered by the dispatcher when the response has ended
    QUEUED = "queued"  # accepted by the broker, delivered by a worker
    HELD = "held"  # waits for its transaction to commit, then takes one of the other modes


class _Nothing(Mapping[str, Any]):
    """An empty mapping that cannot be filled, and survives pickle."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Never:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __hash__(self) -> int:
        return 0  # immutable, which dataclasses ask of a default

    def __repr__(self) -> str:
        return "{}"


NOTHING: Mapping[str, Any] = _Nothing()
"""The default of mappings in values that are shared: one for all."""


# These two are named tuples, because every send makes both, and a frozen dataclass sets each field by a call.
class DeliveryReport(NamedTuple):
    """Result of a delivery: the accepted addresses, the refused ones with the server's reply, and its last reply.

    Recipients in ``refused`` whose ``Refusal.uncertain`` is True may have received the message.
    """

    accepted: tuple[str, ...]
    refused: Mapping[str, Refusal] = NOTHING
    response: str = ""

    @property
    def outcome(self) -> str:
        """Return the server's reply, who was refused and why, and who may have received the message."""
        text = self.response
        for uncertain, words in ((False, "refused"), (True, "perhaps delivered")):
            replies = [f"{who} ({why})" for who, why in self.refused.items() if why.uncertain is uncertain]
            if replies:
                text += f"; {words}: {', '.join(replies)}"
        return text


class Receipt(NamedTuple):
    """Result of a send; false when the delivery failed silently, with the reason in ``error``.

    ``accepted`` and ``refused`` (address to :class:`Refusal`, which may be uncertain) are known for inline messages
    only. ``index`` is the message's position in a ``send_many``, from 0; there ``message_id`` is ``""`` for an invalid
    message, which has none.
    """

    message_id: str
    mode: DeliveryMode
    accepted: tuple[str, ...] = ()
    refused: Mapping[str, Refusal] = NOTHING
    response: str = ""
    error: EmailError | None = None
    index: int | None = None  # type: ignore[assignment] # in the place of tuple.index, which no receipt needs

    def __bool__(self) -> bool:
        return self.error is None


EventKind = Literal[
    "held",  # waits for its transaction to commit
    "deferred",  # waits for the response to end
    "queued",  # the broker has accepted it
    "sending",  # an attempt begins
    "delivered",  # the server accepted it for every recipient, or for some: then refused names the others
    "retrying",  # an attempt failed; another one follows
    "failed",  # no further attempt is made
    "discarded",  # its transaction was rolled back, or discard_on_error dropped it
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEvent:
    """One step in the life of a message.

    ``message`` is the ``OutgoingMessage``, read-only with all it holds, so that a listener can show it; ``detail`` is
    the server's reply or the reason, without secrets; ``refused`` are the recipients who did not receive what others
    did; ``at`` is Unix time in seconds.
    """

    kind: EventKind
    message_id: str
    message: Any
    detail: str = ""
    refused: tuple[str, ...] = ()
    at: float = field(default_factory=time.time)


Listener = Callable[[MessageEvent], None]
_listeners: list[Listener] = []


def subscribe(listener: Listener) -> Callable[[], None]:
    """Call ``listener`` for every event of this process; returns the function that ends it.

    A listener runs where the event happens (usually on the event loop) and must not block. Its exceptions are logged
    and go no further: an observer never changes what happens to mail.
    """
    _listeners.append(listener)

    def unsubscribe() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return unsubscribe


def listening() -> bool:
    """True when there is a listener, which costs an event for each step of a message."""
    return bool(_listeners)


def publish(kind: EventKind, message: Any, detail: str = "", *, refused: tuple[str, ...] = ()) -> None:
    """Call the listeners with an event of ``message``."""
    if not listening():
        return
    event = MessageEvent(kind=kind, message_id=message.message_id, message=message, detail=detail, refused=refused)
    for listener in tuple(_listeners):
        try:
            listener(event)
        except Exception:  # a broken listener must not stop mail
            logger.exception("a listener failed on the event %r of message %s", kind, event.message_id)
