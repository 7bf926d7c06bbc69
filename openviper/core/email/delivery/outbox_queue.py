"""Store bulk mail, and mail for later, in the outbox as a broker would take it: a relay delivers it."""

from collections.abc import Sequence

from openviper.core.email.delivery.outbox import Outbox
from openviper.core.email.delivery.schedule import Schedule
from openviper.core.email.errors import InvalidMessage, QueueUnavailable
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue import JobQueue, QueueEntry
from openviper.core.email.queue.job import AddResult
from openviper.core.email.queue.names import QUEUE
from openviper.core.email.queue.outbox_store import OutboxJobStore
from openviper.core.email.settings import EmailSettings
from openviper.db.transaction import Record

__all__ = ["OutboxQueue"]


class OutboxQueue(JobQueue):
    """Inserts messages in batches: in the transaction of ``record``, or each batch in one of its own."""

    def __init__(self, outbox: Outbox, record: Record | None) -> None:
        self._outbox = outbox
        self._record = record

    @property
    def held(self) -> bool:
        """True when a transaction decides whether the messages are sent."""
        return self._record is not None

    @property
    def address(self) -> str:
        """Return what stands for the broker's address."""
        return "the database outbox"

    @property
    def known(self) -> bool:
        """True: the database says at each batch whether it answers."""
        return True

    def available(self) -> bool:
        """True: the database says at each batch whether it answers."""
        return True

    def consumers(self, queue: str = QUEUE) -> int:
        """Count the relays; blocks.

        Raises:
            QueueUnavailable: the database does not answer.
        """
        assert self._outbox.settings.outbox is not None, "there is one"
        return OutboxJobStore(self._outbox.settings.outbox).consumers(queue)

    async def enqueue(
        self,
        message: OutgoingMessage,
        settings: EmailSettings,  # noqa: ARG002 - the outbox has its own
        *,
        due_at: float | None = None,
        expires_at: float | None = None,
    ) -> bool:
        """Store ``message``, and return True.

        Raises:
            InvalidMessage: the transaction in which it was to be stored has ended.
            QueueUnavailable: the database has not accepted it.
        """
        await self._store([QueueEntry(message, due_at, expires_at)])
        return True

    async def enqueue_many(self, entries: Sequence[QueueEntry], settings: EmailSettings) -> list[AddResult]:  # noqa: ARG002 - the outbox has its own
        """Store a batch with one INSERT; return for each message True, or the same error.

        Raises:
            Exception: of the database, in a transaction that is not ours: it can only be rolled back.
        """
        try:
            await self._store(entries)
        except (InvalidMessage, QueueUnavailable) as error:
            return [error] * len(entries)
        return [True] * len(entries)

    async def _store(self, entries: Sequence[QueueEntry]) -> None:
        if self._record is not None and not self._record.is_open:
            raise InvalidMessage(
                "background: the transaction in which send_many() was called has ended; "
                "iterate over send_many() inside it"
            )
        messages = [(entry.message, Schedule(entry.due_at, entry.expires_at)) for entry in entries]
        await self._outbox.store_for_relay(messages, self._record)
