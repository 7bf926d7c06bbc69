"""The contract of a backend: what carries a prepared message to where it goes."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import ClassVar, Self

from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings

__all__ = ["DeliveryReport", "EmailBackend"]


class EmailBackend(ABC):
    """Delivers messages. Name your own with its dotted path in ``EMAIL["backend"]``.

    One instance serves one event loop. ``send`` may run many times at once.
    """

    supports_pipelining: ClassVar[bool] = False
    """True when ``send_pipelined`` does better than ``send``. False again where only ``send`` is redefined."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        # What a subclass does in send(), such as keeping mail from customers, may not be gone round.
        if _definer(cls, "send") < _definer(cls, "send_pipelined"):
            cls.supports_pipelining = False

    def __init__(self, settings: EmailSettings) -> None:
        self.settings = settings

    async def open(self) -> None:  # noqa: B027 - optional: most backends have nothing to open
        """Get ready; called once before the first ``send``, at startup where there is a lifespan."""

    async def aclose(self) -> None:  # noqa: B027 - optional: most backends have nothing to close
        """Let go of everything; called once, after the last ``send`` has ended."""

    def describe(self) -> str:
        """Say in a few words, without secrets, where mail goes; for the log and the command line."""
        return type(self).__name__

    @abstractmethod
    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Deliver ``message`` to ``message.envelope.recipients``.

        Returns when at least one recipient was accepted (the others are in ``refused``).

        Raises:
            DeliveryError: nobody got it (``temporary`` says whether to try again), or it is not known.
        """

    async def send_pipelined(self, message: OutgoingMessage) -> DeliveryReport:
        """``send``, called for many messages at once, so that one need not wait for the answer to another.

        Called only where ``supports_pipelining`` is true; the backend itself bounds what it does at a time.
        """
        return await self.send(message)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _definer(cls: type, name: str) -> int:
    """The place of the class that defines ``name`` in the order of resolution."""
    return next(place for place, each in enumerate(cls.__mro__) if name in each.__dict__)
