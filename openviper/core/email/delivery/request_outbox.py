"""Keep the mail of a request until the response has ended."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from openviper.core.email.delivery.dispatcher import Delivery, Dispatcher
from openviper.core.email.delivery.transport import Transport
from openviper.core.email.message import OutgoingMessage

__all__ = ["RequestOutbox", "collecting", "current_outbox", "stay_current"]

logger = logging.getLogger("openviper.email")


class RequestOutbox:
    """The mail of one request, in the order sent.

    It belongs to the request's scope and is mutable, so that tasks and threads which the request starts add to the
    same one. What is added after ``flush`` goes straight to its dispatcher: a task may outlive its request.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._messages: list[tuple[Dispatcher, OutgoingMessage, Transport]] = []
        self._flushed = False

    def add(self, dispatcher: Dispatcher, message: OutgoingMessage, transport: Transport) -> None:
        """Keep ``message`` until the response has ended."""
        transport.publish("deferred", message)
        if self._flushed:
            dispatcher.accept(message, transport)
        else:
            self._messages.append((dispatcher, message, transport))

    def flush(self) -> list[Delivery]:
        """Give everything to the dispatchers; called once, when the application call has returned or raised."""
        return [dispatcher.accept(message, transport) for dispatcher, message, transport in self._take_all()]

    def discard(self, reason: str) -> None:
        """Drop what was collected; each message is logged."""
        for _, message, transport in self._take_all():
            logger.warning("message %s is discarded: %s", message.message_id, reason)
            transport.publish("discarded", message, reason)

    def _take_all(self) -> list[tuple[Dispatcher, OutgoingMessage, Transport]]:
        messages, self._messages, self._flushed = self._messages, [], True
        return messages


_current: ContextVar[RequestOutbox | None] = ContextVar("openviper.email.outbox", default=None)


def current_outbox() -> RequestOutbox | None:
    """Return the outbox of the request that this code runs for, or None outside a request."""
    return _current.get()


@contextmanager
def collecting(outbox: RequestOutbox | None) -> Iterator[None]:
    """Make ``outbox`` the current one for a block and for every task and thread that is started in it."""
    token = _current.set(outbox)
    try:
        yield
    finally:
        _current.reset(token)


def stay_current(outbox: RequestOutbox) -> None:
    """Make ``outbox`` the current one for the rest of this context, where no block around the sender can be."""
    _current.set(outbox)
