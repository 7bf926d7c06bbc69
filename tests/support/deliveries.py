"""A delivery function that the tests steer, and dispatchers for it."""

import asyncio

from openviper.core.email.backends.base import DeliveryReport
from openviper.core.email.delivery.dispatcher import Deliver, Dispatcher, Handed
from openviper.core.email.errors import ConnectionFailed
from openviper.core.email.message import OutgoingMessage
from support.patience import PATIENCE

__all__ = ["Deliveries", "finished", "make_dispatcher", "temporary"]


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


def make_dispatcher(deliveries: Deliver, **options: object) -> Dispatcher:
    """A small one that retries twice, at once."""
    values = {"concurrency": 2, "max_messages": 10, "max_bytes": 10**6, "retry_delays": (0.0, 0.0)} | options
    return Dispatcher(deliveries, **values)  # type: ignore[arg-type]


def temporary() -> ConnectionFailed:
    return ConnectionFailed("mail.test:25: connection refused", temporary=True)


async def finished(handed: list[Handed]) -> None:
    """Wait until no further attempt is made for any of ``handed``."""
    await asyncio.wait_for(asyncio.wait([one.done for one in handed]), PATIENCE)
