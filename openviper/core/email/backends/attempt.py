"""Track how far a delivery attempt got, so that a shutdown can report whether the message may have been sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Attempt", "mark_offered", "mark_started", "mark_waiting"]

_current: ContextVar["Attempt | None"] = ContextVar("openviper.email.attempt", default=None)


class Attempt:
    """One delivery attempt. Unless the backend marks its progress, the message may have been sent."""

    __slots__ = ("started", "waiting")

    def __init__(self) -> None:
        self.waiting = False
        self.started = False

    @property
    def nothing_sent(self) -> bool:
        """True while the backend waits and is known to have sent nothing of the message."""
        return self.waiting and not self.started

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this the current context's attempt for a while, known to have sent nothing until a backend is asked."""
        self.waiting = True
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def activate(self) -> None:
        """Make this the attempt that ``mark_waiting`` and ``mark_started`` mark in the current context."""
        _current.set(self)


def mark_offered() -> None:
    """Mark that a backend gets the current context's message, which it may send unless it marks the contrary."""
    attempt = _current.get()
    if attempt is not None:
        attempt.waiting = False


def mark_waiting() -> None:
    """Mark the current context's attempt as waiting for a connection."""
    attempt = _current.get()
    if attempt is not None:
        attempt.waiting = True


def mark_started() -> None:
    """Mark that the server may get the message of the current context's attempt, or one of its envelopes."""
    attempt = _current.get()
    if attempt is not None:
        attempt.started = True
