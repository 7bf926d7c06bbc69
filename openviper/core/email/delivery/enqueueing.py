"""Give a message to the queue, at once or as the dispatcher's retries allow."""

from collections.abc import Sequence

from openviper.core.email.delivery.schedule import Schedule
from openviper.core.email.delivery.transport import NO_ATTEMPT, Transport
from openviper.core.email.errors import ConnectionFailed, EmailError, InvalidMessage, QueueUnavailable
from openviper.core.email.events import Circumstances, DeliveryMode, DeliveryReport, EventKind, Receipt
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue import JobQueue, QueueEntry
from openviper.core.email.settings import EmailSettings
from openviper.db.transaction import current_record

__all__ = ["EnqueueTransport", "enqueue", "enqueue_many", "require_queue"]


async def enqueue(queue: JobQueue, message: OutgoingMessage, settings: EmailSettings, schedule: Schedule) -> bool:
    """Return once ``queue`` has accepted ``message``; False if it had accepted the same message before.

    Raises:
        InvalidMessage: another message with its Message-ID was accepted for the same recipients, or the broker does not
            accept messages of this size.
        QueueUnavailable: the broker does not answer, or did not accept it.
    """
    if not await queue.answers():
        raise QueueUnavailable(f"the broker ({queue.address}) does not answer")
    return await queue.enqueue(message, settings, due_at=schedule.due_at, expires_at=schedule.expires_at)


async def require_queue(transport: Transport) -> JobQueue:
    """Return the queue for bulk mail, which has no other mode.

    Raises:
        InvalidMessage: a transaction is open, whose rollback could not undo it.
        QueueUnavailable: there is no broker, or it does not answer.
    """
    if current_record() is not None:
        raise InvalidMessage(
            "background: send_many() queues at once, which a rollback could not undo; call it after the transaction, "
            "or in a function given to on_commit()"
        )
    queue = transport.queue
    if queue is None and transport.in_memory:
        raise QueueUnavailable(
            f"background: {transport.describe()} keeps mail in this process, where no worker finds it; set another "
            'EMAIL["backend"], or leave background out'
        )
    if queue is None:
        raise QueueUnavailable(
            'background: no message broker is configured; set TASKS["broker"] to "redis" or "rabbitmq", or leave '
            "background out"
        )
    if not await queue.answers():
        raise QueueUnavailable(f"background: the broker ({queue.address}) does not answer; nothing was queued")
    return queue


async def enqueue_many(
    queue: JobQueue,
    transport: Transport,
    messages: Sequence[tuple[int, OutgoingMessage, Schedule]],
    settings: EmailSettings,
) -> list[Receipt]:
    """Give a batch of messages with their indexes to ``queue``; return receipts, with the error of a refused one."""
    results: Sequence[bool | EmailError]
    if await queue.answers():
        entries = [QueueEntry(message, schedule.due_at, schedule.expires_at) for _, message, schedule in messages]
        results = await queue.enqueue_many(entries, settings)
    else:
        results = [QueueUnavailable(f"the broker ({queue.address}) does not answer") for _ in messages]
    receipts = []
    for (index, message, _), result in zip(messages, results, strict=True):
        error = None if isinstance(result, bool) else result
        if result is True:
            transport.publish("queued", message)
        receipts.append(Receipt(message.message_id, DeliveryMode.QUEUED, error=error, index=index))
    return receipts


class EnqueueTransport(Transport):
    """Delivers a message to the queue instead of a mail server.

    For a message that only the queue can keep until its time, and that a commit has promised: the dispatcher retries it
    as it retries deliveries, within the same bounds.
    """

    def __init__(self, transport: Transport, settings: EmailSettings, schedule: Schedule) -> None:
        self._transport = transport
        self._settings = settings
        self._schedule = schedule
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
        """
        queue = self.queue
        try:
            if queue is None:
                raise QueueUnavailable("no message broker is configured any more")
            await enqueue(queue, message, self._settings, self._schedule)
        except QueueUnavailable as error:
            raise ConnectionFailed(f"not queued: {error}", temporary=True) from error
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
        """Publish an accepted message as queued."""
        if kind == "delivered":
            self._transport.publish("queued", message)
        elif kind != "sending":
            self._transport.publish(kind, message, detail, refused=refused, circumstances=circumstances)
