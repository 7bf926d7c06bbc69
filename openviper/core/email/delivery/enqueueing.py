"""Give a message to the queue, at once or as the dispatcher's retries allow."""

import asyncio
import time
from collections.abc import Sequence

from openviper.core.email.delivery.keyed_send import KeyedSend, report_duplicate
from openviper.core.email.delivery.outbox import Outbox
from openviper.core.email.delivery.outbox_queue import OutboxQueue
from openviper.core.email.delivery.schedule import Schedule
from openviper.core.email.delivery.transport import NO_ATTEMPT, Transport
from openviper.core.email.errors import (
    ConnectionFailed,
    DuplicateKey,
    EmailError,
    InvalidMessage,
    KeysUnavailable,
    QueueUnavailable,
)
from openviper.core.email.events import NOTHING, Circumstances, DeliveryMode, DeliveryReport, EventKind, Receipt
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue import JobQueue, QueueEntry
from openviper.core.email.queue.job import Accepted, AddResult
from openviper.core.email.settings import EmailSettings
from openviper.db.transaction import current_record

__all__ = ["EnqueueTransport", "enqueue", "enqueue_many", "queued_at", "require_queue"]


async def enqueue(
    queue: JobQueue,
    message: OutgoingMessage,
    settings: EmailSettings,
    schedule: Schedule,
    keyed: KeyedSend | None = None,
) -> Receipt:
    """Return once ``queue`` has accepted ``message``; a duplicate's receipt if it is not to be sent again.

    ``keyed`` is claimed and recorded here, unless the queue keeps keys itself and does so as it accepts the message.

    Raises:
        DuplicateKey: another message has its key.
        InvalidMessage: another message with its Message-ID was accepted for the same recipients, or the broker does not
            accept messages of this size.
        KeysUnavailable: what keeps its key does not answer.
        QueueUnavailable: the broker does not answer, or did not accept it.
    """
    if not await queue.answers():
        raise QueueUnavailable(f"the broker ({queue.address}) does not answer")
    if keyed is not None and not queue.keeps_keys:
        duplicate = await keyed.claim()
        if duplicate is not None:
            return duplicate
        return await keyed.record(_enqueue(queue, message, settings, schedule, None))
    return await _enqueue(queue, message, settings, schedule, keyed)


async def _enqueue(
    queue: JobQueue, message: OutgoingMessage, settings: EmailSettings, schedule: Schedule, keyed: KeyedSend | None
) -> Receipt:
    accepted = await queue.enqueue(message, settings, due_at=schedule.due_at, expires_at=schedule.expires_at)
    return _receipt_of(accepted, message, keyed)


def _receipt_of(accepted: Accepted, message: OutgoingMessage, keyed: KeyedSend | None) -> Receipt:
    """Return the receipt of a message that the queue has accepted, or knows.

    Raises:
        DuplicateKey: another message has its key.
    """
    if not isinstance(accepted, bool):
        assert keyed is not None, "only a message with a key has another one's record"
        return keyed.answer(accepted)
    return Receipt(message.message_id, DeliveryMode.QUEUED, duplicate=not accepted)


async def require_queue(transport: Transport, outbox: Outbox | None) -> JobQueue:
    """Return the queue for bulk mail, which has no other mode: the broker's, or the ``outbox``.

    The outbox takes it inside a transaction, whose rollback then takes it back, and where no broker answers.

    Raises:
        InvalidMessage: a transaction is open, whose rollback could not undo it.
        QueueUnavailable: there is no broker, or it does not answer.
    """
    record = current_record()
    if outbox is not None and transport.durable:
        queue = transport.queue
        if record is not None or queue is None or not await queue.answers():
            return OutboxQueue(outbox, record)
    if record is not None:
        raise InvalidMessage(
            "background: send_many() queues at once, which a rollback could not undo; call it after the transaction, "
            'or in a function given to on_commit(), or set EMAIL["outbox"]'
        )
    queue = transport.queue
    if queue is None and transport.in_memory:
        raise QueueUnavailable(
            f"background: {transport.describe()} keeps mail in this process, where no worker can see it; set another "
            'EMAIL["backend"], or leave background out'
        )
    if queue is None:
        raise QueueUnavailable(
            'background: no message broker is configured; set TASKS["broker"] to "redis" or "rabbitmq", or leave '
            "background out"
        )
    if not await asyncio.to_thread(queue.ask):
        raise QueueUnavailable(f"background: the broker ({queue.address}) does not answer; nothing was queued")
    return queue


async def enqueue_many(
    queue: JobQueue,
    transport: Transport,
    messages: Sequence[tuple[int, OutgoingMessage, Schedule]],
    settings: EmailSettings,
) -> list[Receipt]:
    """Give a batch of messages with their indexes to ``queue``; return receipts, with the error of a refused one."""
    if not await queue.answers():
        error = QueueUnavailable(f"the broker ({queue.address}) does not answer")
        return [
            Receipt(message.message_id, DeliveryMode.QUEUED, error=error, index=index) for index, message, _ in messages
        ]
    circumstances = queued_at(time.time())
    receipts: dict[int, Receipt] = {}
    entries: dict[int, tuple[QueueEntry, KeyedSend | None]] = {}
    for index, message, schedule in messages:
        keyed = None
        if message.prepared.must is not NOTHING:
            keyed = KeyedSend.of(message, transport, ttl=settings.key_ttl, due_at=schedule.due_at)
        # After a rollback nothing may have claimed a key: the relay claims that of a message which a commit stores.
        taken = None if keyed is None or queue.keeps_keys or queue.held else await _claim(keyed, message)
        if taken is None:
            entries[index] = QueueEntry(message, schedule.due_at, schedule.expires_at), keyed
        else:
            receipts[index] = taken
    results = await queue.enqueue_many([entry for entry, _ in entries.values()], settings)
    for (index, (entry, keyed)), result in zip(entries.items(), results, strict=True):
        receipts[index] = _receipt_of_many(result, entry.message, keyed)
        if keyed is not None and keyed.claimed:
            await keyed.settle(receipts[index])
    if queue.held:
        receipts = {
            index: _held(receipt, keyed=index in entries and entries[index][1] is not None)
            for index, receipt in receipts.items()
        }
    for index, message, _ in messages:
        _publish(message, transport, receipts[index], circumstances)
    return [receipts[index]._replace(index=index) for index, _, _ in messages]


def _held(receipt: Receipt, *, keyed: bool) -> Receipt:
    """Return the receipt of a message that the open transaction decides about, and with it about a key."""
    if receipt.error is not None:
        return receipt
    return receipt._replace(mode=DeliveryMode.HELD, duplicate=None if keyed else receipt.duplicate)


def _publish(message: OutgoingMessage, transport: Transport, receipt: Receipt, circumstances: Circumstances) -> None:
    if receipt.error is not None:
        return
    if receipt.duplicate:
        report_duplicate(message, transport, receipt)
    else:
        kind: EventKind = "queued" if receipt.mode is DeliveryMode.QUEUED else "held"
        transport.publish(kind, message, circumstances=circumstances)


async def _claim(send: KeyedSend, message: OutgoingMessage) -> Receipt | None:
    """Claim a key; return the receipt of a message that is not to be queued."""
    try:
        return await send.claim()
    except (DuplicateKey, KeysUnavailable) as error:
        return Receipt(message.message_id, DeliveryMode.QUEUED, error=error)


def _receipt_of_many(result: AddResult, message: OutgoingMessage, keyed: KeyedSend | None) -> Receipt:
    if not isinstance(result, EmailError):
        try:
            return _receipt_of(result, message, keyed)
        except DuplicateKey as error:
            result = error
    return Receipt(message.message_id, DeliveryMode.QUEUED, error=result)


def queued_at(moment: float) -> Circumstances:
    """Return the circumstances of a "queued" event for a message that was offered at ``moment`` (Unix seconds)."""
    return Circumstances(DeliveryMode.QUEUED, at=moment)


class EnqueueTransport(Transport):
    """Delivers a message to the queue instead of a mail server.

    For a message that only the queue can keep until its time, and that a commit has promised: the dispatcher retries it
    as it retries deliveries, within the same bounds.
    """

    def __init__(
        self, transport: Transport, settings: EmailSettings, schedule: Schedule, keyed: KeyedSend | None
    ) -> None:
        self._keyed = keyed
        self._duplicate: Receipt | None = None
        self._transport = transport
        self._settings = settings
        self._schedule = schedule
        self._offered = NO_ATTEMPT
        self.enqueues = True
        self.immediate = transport.immediate
        self.observed = transport.observed

    @property
    def queue(self) -> JobQueue | None:
        """Return the queue of the transport that accepted the message."""
        return self._transport.queue

    async def send(self, message: OutgoingMessage, *, pipeline: bool = False) -> DeliveryReport:  # noqa: ARG002
        """Enqueue the message for all of its recipients.

        Raises:
            ConnectionFailed: the broker did not accept it; temporary.
            DeliveryError: an earlier send with its key may have been delivered.
            DuplicateKey: another message has its key.
            KeysUnavailable: what keeps its key does not answer; temporary.
        """
        queue, self._offered = self.queue, queued_at(time.time())
        try:
            if queue is None:
                raise QueueUnavailable("no message broker is configured any more")
            receipt = await enqueue(queue, message, self._settings, self._schedule, self._keyed)
        except QueueUnavailable as error:
            raise ConnectionFailed(f"not queued: {error}", temporary=True) from error
        if receipt.error is not None:
            raise receipt.error
        self._duplicate = receipt if receipt.duplicate else None
        return DeliveryReport(message.envelope.recipients, response="queued")

    def describe(self) -> str:
        """Return the broker's address."""
        return "no broker" if self.queue is None else self.queue.address

    def publish(
        self,
        kind: EventKind,
        message: OutgoingMessage,
        detail: str = "",
        *,
        refused: tuple[str, ...] = (),
        circumstances: Circumstances = NO_ATTEMPT,
    ) -> None:
        """Publish an accepted message as queued, or as a duplicate."""
        if kind == "delivered" and self._duplicate is not None:
            report_duplicate(message, self._transport, self._duplicate)
        elif kind == "delivered":
            self._transport.publish("queued", message, circumstances=self._offered)
        elif kind != "sending":
            if kind == "failed":  # of an attempt to queue it, in which nothing was sent
                self._transport.record(message, "failed")
            self._transport.publish(kind, message, detail, refused=refused, circumstances=circumstances)
