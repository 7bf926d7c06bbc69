"""How far an attempt at a delivery has come, for whoever cuts it short and has to say what became of the message."""

from contextvars import ContextVar

__all__ = ["Attempt", "mark_started", "mark_waiting"]

_current: ContextVar["Attempt | None"] = ContextVar("openviper.email.attempt", default=None)


class Attempt:
    """One attempt. Where the backend says nothing of how far it is, the message may be with the server."""

    __slots__ = ("started", "waiting")

    def __init__(self) -> None:
        self.waiting = False
        self.started = False

    @property
    def nothing_sent(self) -> bool:
        """True while it is known that nothing of the message has left."""
        return self.waiting and not self.started

    def activate(self) -> None:
        """Hear of what is noted in this context from here on."""
        _current.set(self)


def mark_waiting() -> None:
    """The attempt of this context waits for a connection."""
    attempt = _current.get()
    if attempt is not None:
        attempt.waiting = True


def mark_started() -> None:
    """From here on the server may get the message of this context's attempt, or of one envelope of it."""
    attempt = _current.get()
    if attempt is not None:
        attempt.started = True
