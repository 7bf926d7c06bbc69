"""Taking the place of every backend and of the broker for a while, as a test does that wants to look at its mail.

Everything before the last step runs as ever: checks, templates, serialising, and the choice of the way.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager

from openviper.core.email.backends.base import DeliveryReport
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings

__all__ = ["HeldMessage", "Interceptor", "intercepting", "interceptor_for"]


class HeldMessage:
    """What a transaction does with a message: whichever of the methods is called first counts, later ones do nothing.

    ``release`` sends it, ``drop`` says that it was rolled back, ``forget`` keeps it from going anywhere.
    """

    __slots__ = ("_drop", "_open", "_release")

    def __init__(self, release: Callable[[], Awaitable[None]], drop: Callable[[], None]) -> None:
        self._release = release
        self._drop = drop
        self._open = True

    async def release(self) -> None:
        if self.forget():
            await self._release()

    def drop(self) -> None:
        if self.forget():
            self._drop()

    def forget(self) -> bool:
        """True when nothing was done with it before."""
        before, self._open = self._open, False
        return before


class Interceptor(ABC):
    """Gets every message of this process that would leave while it is installed. Called from any thread and loop."""

    @property
    @abstractmethod
    def outstanding(self) -> Collection[str]:
        """Ids of messages that were accepted and not yet delivered; they come here also after the end of the block."""

    @abstractmethod
    async def send(self, message: OutgoingMessage, settings: EmailSettings) -> DeliveryReport:
        """Stand in for a backend's ``send``, with its errors; ``settings`` are the mailer's."""

    @abstractmethod
    async def enqueue(
        self, message: OutgoingMessage, settings: EmailSettings, *, due_at: float | None, expires_at: float | None
    ) -> None:
        """Stand in for the broker and its worker. ``due_at``, ``expires_at`` in Unix seconds: not before, not after.

        Raises:
            QueueUnavailable: it does not take the message.
        """

    @abstractmethod
    def hold(self, message: OutgoingMessage, held: HeldMessage) -> None:
        """A transaction holds ``message``."""


@contextmanager
def intercepting(interceptor: Interceptor) -> Iterator[None]:
    """Install ``interceptor`` for a block; inside another one's block it comes first."""
    _installed.append(interceptor)
    try:
        yield
    finally:
        _installed.remove(interceptor)
        if interceptor.outstanding:
            _leaving.append(interceptor)


def interceptor_for(message_id: str | None = None) -> Interceptor | None:
    """Who gets the message, if anybody does; None as the id: a new one."""
    if _leaving:
        for left in tuple(_leaving):
            if message_id in left.outstanding:
                return left
            if not left.outstanding:
                _leaving.remove(left)
    return _installed[-1] if _installed else None


_installed: list[Interceptor] = []
# Their block has ended, and mail that was accepted in it must still not reach a server.
_leaving: list[Interceptor] = []
