"""Keep the mail of a request until the response has ended."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from openviper.core.email.delivery.dispatcher import Delivery, Dispatcher
from openviper.core.email.delivery.keyed_send import KeyedSend
from openviper.core.email.delivery.outbox import Outbox, StoredMessage
from openviper.core.email.delivery.transport import Transport
from openviper.core.email.events import Circumstances, DeliveryMode
from openviper.core.email.message import OutgoingMessage

__all__ = ["RequestOutbox", "collecting", "current_outbox", "stay_current"]

logger = logging.getLogger("openviper.email")


@dataclass(slots=True)
class _Entry:
    dispatcher: Dispatcher
    message: OutgoingMessage
    transport: Transport
    stored: StoredMessage | None
    keyed: KeyedSend | None = None
    expires_at: float | None = None
    unstorable: bool = False
    since: float = field(default_factory=time.time)

    def accept(self) -> Delivery:
        """Give it to its dispatcher."""
        return self.dispatcher.accept(
            self.message, self.transport, self.stored, self.keyed, self.expires_at, self.since
        )


class RequestOutbox:
    """The mail of one request, in the order sent.

    It belongs to the request's scope and is mutable, so that tasks and threads which the request starts add to the
    same one. What is added after ``flush`` goes straight to its dispatcher: a task may outlive its request. ``outbox``:
    the database outbox; None without one.
    """

    def __init__(self, outbox: Outbox | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self._outbox = outbox
        self._messages: list[_Entry] = []
        self._flushed = False

    def add(
        self,
        dispatcher: Dispatcher,
        message: OutgoingMessage,
        transport: Transport,
        stored: StoredMessage | None = None,
        keyed: KeyedSend | None = None,
        expires_at: float | None = None,
    ) -> None:
        """Keep ``message`` until the response has ended.

        ``stored``: its row, if a commit has stored it; ``keyed``: its idempotency key; ``expires_at`` as in
        :meth:`Dispatcher.accept`.
        """
        transport.publish("deferred", message)
        entry = _Entry(dispatcher, message, transport, stored, keyed, expires_at)
        if not self._flushed:
            self._messages.append(entry)
        elif self._outbox is not None and stored is None and transport.durable:
            self._outbox.spawn(self._store_and_accept(entry))
        else:
            entry.accept()

    def flush(self) -> list[Delivery]:
        """Give everything to the dispatchers; called once, when the application call has returned or raised."""
        return [entry.accept() for entry in self._take_all()]

    async def store(self) -> None:
        """Store in the outbox, with one INSERT, what has no row yet. Never fails."""
        while self._outbox is not None and (new := [entry for entry in self._messages if _is_to_be_stored(entry)]):
            await self._store(self._outbox, new)

    async def store_and_flush(self) -> list[Delivery]:
        """Store everything, then give it to the dispatchers, also when the caller is cancelled meanwhile."""
        deliveries: list[Delivery] = []

        async def work() -> None:
            await self.store()
            deliveries.extend(self.flush())

        if self._outbox is None or not any(map(_is_to_be_stored, self._messages)):
            return self.flush()
        await asyncio.shield(self._outbox.spawn(work()))
        return deliveries

    def discard(self, reason: str) -> None:
        """Drop what was collected; each message is logged."""
        for entry in self._take_all():
            logger.warning("message %s is discarded: %s", entry.message.message_id, reason)
            chosen = Circumstances(DeliveryMode.DEFERRED)
            entry.transport.publish("discarded", entry.message, reason, circumstances=chosen)
            if entry.stored is not None:
                entry.stored.delete()
            if entry.keyed is not None and entry.keyed.claimed:
                entry.keyed.cut_short(uncertain=False)

    async def _store(self, outbox: Outbox, entries: list[_Entry]) -> None:
        stored = await outbox.store([(entry.message, entry.expires_at) for entry in entries])
        for entry, row in zip(entries, stored, strict=True):
            entry.stored = row
            if row is None:  # the database does not answer; it is not asked again for each message
                entry.unstorable = True

    async def _store_and_accept(self, entry: _Entry) -> None:
        assert self._outbox is not None, "called with an outbox"
        await self._store(self._outbox, [entry])
        entry.accept()

    def _take_all(self) -> list[_Entry]:
        messages, self._messages, self._flushed = self._messages, [], True
        return messages


def _is_to_be_stored(entry: _Entry) -> bool:
    return entry.stored is None and entry.transport.durable and not entry.unstorable


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
