"""Define the interface of a backend, the transport that delivers prepared messages."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Self

from openviper.core.email.backends.brake import Brake
from openviper.core.email.backends.rate_limit import Reserve
from openviper.core.email.errors import DeliveryError
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings

__all__ = ["DeliveryReport", "EmailBackend", "PoolStats"]


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool's numbers at one moment.

    ``open``: connections, idle ones included; ``waiting``: senders without a connection; ``sent``: transactions that
    the server accepted; ``reconnects``: transactions repeated because their idle connection had been lost.
    """

    open: int
    idle: int
    waiting: int
    sent: int
    reconnects: int


class EmailBackend(ABC):
    """Base class of a transport for messages. To use your own subclass, put its dotted path into ``EMAIL["backend"]``.

    One instance serves one event loop. ``send`` may be called concurrently.
    """

    supports_pipelining: ClassVar[bool] = False
    """True if ``send_pipelined`` is faster than ``send``. False again in a subclass that redefines only ``send``."""

    keeps_mail: ClassVar[bool] = False
    """True if mail stays on this machine: it is kept, printed or written to files, and sent to nobody."""

    limits_rate: ClassVar[bool] = False
    """True if ``send`` obeys ``EMAIL["rate_limit"]``."""

    reserve: Reserve | None = None
    """Function that reserves tokens of a ``rate_limit`` shared by all processes, set before ``open``.

    None: the limit applies to this process only.
    """

    brake: Brake | None = None
    """Pause that backends with waiting messages check before each transaction, set before ``open``.

    None: nothing is paused.
    """

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        # A subclass's send(), which may keep mail from customers, must not be bypassed.
        if _mro_index(cls, "send") < _mro_index(cls, "send_pipelined"):
            cls.supports_pipelining = False
        # Likewise a subclass's send() may send what its base class only keeps.
        if "send" in cls.__dict__ and "keeps_mail" not in cls.__dict__:
            cls.keeps_mail = False

    def __init__(self, settings: EmailSettings) -> None:
        self.settings = settings

    async def open(self) -> None:  # noqa: B027 - optional: most backends have nothing to open
        """Acquire resources; called once before the first ``send``, at startup if the application has a lifespan."""

    async def aclose(self) -> None:  # noqa: B027 - optional: most backends have nothing to close
        """Release all resources; called once, after the last ``send`` has ended."""

    @property
    def server(self) -> tuple[str, int] | None:
        """Return the mail server's host and port, for traces; None if there is none, or only the library knows it."""
        return None

    @property
    def stats(self) -> PoolStats | None:
        """Return the numbers of the running event loop's connections, for metrics; None if there are none."""
        return None

    def describe(self) -> str:
        """Describe in a few words, without secrets, where mail goes; for the log and the command line."""
        return type(self).__name__

    def remedy(self, error: DeliveryError) -> str | None:  # noqa: ARG002 - for backends that know their service
        """Return in a few words, without secrets, what may be done about ``error``, for the log; None if unknown."""
        return None

    async def check(self) -> str | None:
        """Find out, without sending anything, whether mail would be accepted now; for ``viperctl email check``.

        Called after ``open``. Return one line about what was found, without secrets; None, the default, means that this
        backend has nothing to check.

        Raises:
            EmailError: mail would not be accepted; its text is shown.
        """
        return None

    @property
    def reachable(self) -> bool | None:
        """False while the server does not answer, as the last attempt to connect showed; None if nothing is known."""
        return None

    async def reconnect(self) -> None:  # noqa: B027 - optional: most backends keep no connection
        """Try again to connect; called when ``reachable`` is False.

        Raises:
            EmailError: the server still does not answer.
        """

    @abstractmethod
    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Deliver ``message`` to ``message.envelope.recipients``.

        Return a report if at least one recipient was accepted; the others are in its ``refused``.

        Raises:
            DeliveryError: no recipient got the message (``temporary`` if it is worth retrying), or the outcome is
                ``uncertain``.
        """

    async def send_pipelined(self, message: OutgoingMessage) -> DeliveryReport:
        """Deliver as ``send`` does; called for many messages concurrently, so that none waits for the reply to another.

        Called only if ``supports_pipelining`` is true; the backend itself limits the messages in flight.
        """
        return await self.send(message)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _mro_index(cls: type, name: str) -> int:
    """Return the index in the method resolution order of the class that defines ``name``."""
    return next(index for index, each in enumerate(cls.__mro__) if name in each.__dict__)
