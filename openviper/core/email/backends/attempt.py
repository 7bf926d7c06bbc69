"""Track how far a delivery attempt got, so that a shutdown can report whether the message may have been sent."""

from contextvars import ContextVar

__all__ = ["Attempt", "mark_started", "mark_waiting"]

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

    def activate(self) -> None:
        """Make this the attempt that ``mark_waiting`` and ``mark_started`` mark in the current context."""
        _current.set(self)


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
