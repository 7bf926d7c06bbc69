"""Mail of a request, kept until the response has ended."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from openviper.core.email.delivery.dispatcher import Dispatcher, Handed
from openviper.core.email.events import publish
from openviper.core.email.message import OutgoingMessage

__all__ = ["RequestOutbox", "collecting", "current_outbox", "stay_current"]

logger = logging.getLogger("openviper.email")


class RequestOutbox:
    """The mail of one request, in the order sent.

    It belongs to the request's scope and is mutable, so that tasks and threads which the request starts add to the
    same one. What is added after ``hand_over`` goes straight to its dispatcher: a task may outlive its request.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._messages: list[tuple[Dispatcher, OutgoingMessage]] = []
        self._handed_over = False

    def add(self, dispatcher: Dispatcher, message: OutgoingMessage) -> None:
        """Keep ``message`` until the response has ended."""
        publish("deferred", message)
        if self._handed_over:
            dispatcher.hand_over((message,))
        else:
            self._messages.append((dispatcher, message))

    def hand_over(self) -> list[Handed]:
        """Give everything to the dispatchers; called once, when the application call has returned or raised."""
        messages, self._messages, self._handed_over = self._messages, [], True
        return [handed for dispatcher, message in messages for handed in dispatcher.hand_over((message,))]

    def discard(self, reason: str) -> None:
        """Drop what was collected; each message is logged."""
        messages, self._messages, self._handed_over = self._messages, [], True
        for _, message in messages:
            logger.warning("message %s is discarded: %s", message.message_id, reason)
            publish("discarded", message, reason)


_current: ContextVar[RequestOutbox | None] = ContextVar("openviper.email.outbox", default=None)


def current_outbox() -> RequestOutbox | None:
    """The outbox of the request that this code runs for, or None outside a request."""
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
