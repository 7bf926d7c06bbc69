"""Give a message to the queue, at once or as the dispatcher's retries allow."""

from openviper.core.email.delivery.schedule import Schedule
from openviper.core.email.delivery.transport import NO_ATTEMPT, Transport
from openviper.core.email.errors import ConnectionFailed, QueueUnavailable
from openviper.core.email.events import Circumstances, DeliveryReport, EventKind
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue import JobQueue
from openviper.core.email.settings import EmailSettings

__all__ = ["EnqueueTransport", "enqueue"]


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
