"""A transport that the tests steer, and dispatchers for it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from openviper.core.email.backends.base import DeliveryReport
from openviper.core.email.delivery.dispatcher import Delivery, Dispatcher
from openviper.core.email.delivery.transport import Transport
from openviper.core.email.errors import ConnectionFailed
from openviper.core.email.message import OutgoingMessage
from support.patience import PATIENCE

__all__ = ["Deliveries", "SteeredDispatcher", "SteeredTransport", "finished", "make_dispatcher", "temporary"]

Send = Callable[[OutgoingMessage], Awaitable[DeliveryReport]]


class Deliveries:
    """Records every attempt; answers with what is queued in ``outcomes``, else accepts."""

    def __init__(self) -> None:
        self.attempts: list[OutgoingMessage] = []
        self.outcomes: list[Exception | DeliveryReport] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_once = 0
        self.most_at_once = 0

    async def __call__(self, message: OutgoingMessage) -> DeliveryReport:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.attempts.append(message)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        outcome = self.outcomes.pop(0) if self.outcomes else DeliveryReport(message.envelope.recipients)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class SteeredTransport(Transport):
    """Sends with the function that a test gives."""

    queue = None

    def __init__(self, send: Send) -> None:
        self._send = send

    async def send(self, message: OutgoingMessage, *, pipeline: bool = False) -> DeliveryReport:
        return await self._send(message)

    def describe(self) -> str:
        return "a steered transport"


class SteeredDispatcher(Dispatcher):
    """A dispatcher whose messages all take one transport."""

    def __init__(self, transport: Transport, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.transport = transport

    def accept_all(self, messages: Iterable[OutgoingMessage]) -> list[Delivery]:
        return [self.accept(message, self.transport) for message in messages]


def make_dispatcher(send: Send, **options: object) -> SteeredDispatcher:
    """A small one that retries twice, at once."""
    values = {"concurrency": 2, "max_messages": 10, "max_bytes": 10**6, "retry_delays": (0.0, 0.0)} | options
    return SteeredDispatcher(SteeredTransport(send), **values)


def temporary() -> ConnectionFailed:
    return ConnectionFailed("mail.test:25: connection refused", temporary=True)


async def finished(deliveries: list[Delivery]) -> None:
    """Wait until no further attempt is made for any of ``deliveries``."""
    await asyncio.wait_for(asyncio.wait([one.done for one in deliveries]), PATIENCE)
