"""What happened to a message, told to whoever listens: the inbox page, tests, an application's own metrics."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["EventKind", "MessageEvent", "listening", "publish", "subscribe"]

logger = logging.getLogger("openviper.email")

EventKind = Literal[
    "held",  # waits for its transaction to commit
    "deferred",  # waits for the response to end
    "queued",  # the broker has it
    "sending",  # an attempt begins
    "delivered",  # the server took it for every recipient, or for some: then refused are the others
    "retrying",  # an attempt failed; another one follows
    "failed",  # no further attempt is made
    "discarded",  # its transaction was rolled back, or discard_on_error dropped it
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEvent:
    """One step in the life of a message.

    ``message`` is the outgoing message itself (an ``OutgoingMessage``), so that a listener can show it; ``detail`` is
    the server's answer or the reason, without secrets; ``refused`` are those who did not get what was delivered to
    others; ``at`` is Unix time in seconds.
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
    """True when anyone listens; lets callers skip making an event."""
    return bool(_listeners)


def publish(kind: EventKind, message: Any, detail: str = "", *, refused: tuple[str, ...] = ()) -> None:
    """Tell the listeners that ``kind`` happened to ``message``."""
    if not _listeners:
        return
    event = MessageEvent(kind=kind, message_id=message.message_id, message=message, detail=detail, refused=refused)
    for listener in tuple(_listeners):
        try:
            listener(event)
        except Exception:  # a broken observer may not stop mail
            logger.exception("a listener failed on the event %r of message %s", kind, event.message_id)
