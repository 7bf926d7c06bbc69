"""Find where a project's mail is stored: on the broker, in the database outbox, or in both."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

from openviper.core.email.queue.found import Erased, FoundMail, Wanted
from openviper.core.email.queue.job import FailedJob, MailReader, QueueStats
from openviper.core.email.queue.names import QUEUE
from openviper.core.email.queue.service import queue_service
from openviper.core.email.settings import EmailSettings

if TYPE_CHECKING:
    from openviper.core.email.queue.outbox_store import OutboxJobStore

__all__ = ["StoredMail", "outbox_jobs", "stored_mail"]


class StoredMail(NamedTuple):
    """``store`` reads and changes what is stored; ``address`` says where that is, without a password.

    ``worker``: the command that starts what delivers it.
    """

    address: str
    store: MailReader
    worker: str


def stored_mail() -> StoredMail | None:
    """Return where mail is stored by the project's settings; None without a broker and an outbox.

    The first call imports a client library: not on an event loop.

    Raises:
        MissingDependency: it is not installed.
    """
    service, kept = queue_service(), outbox_jobs()
    if kept is None:
        return None if service is None else StoredMail(service.address, service.store, "viperctl runworker")
    outbox = EmailSettings.from_settings().outbox
    where = "the database outbox" if outbox == "database" else f"the outbox ({outbox})"
    if service is None:
        return StoredMail(where, kept, "viperctl email relay")
    return StoredMail(f"{service.address} and {where}", _Joined([service.store, kept]), "viperctl runworker")


def outbox_jobs() -> "OutboxJobStore | None":
    """Return the job store of the database outbox; None without the setting."""
    outbox = EmailSettings.from_settings().outbox
    if outbox is None:
        return None
    from openviper.core.email.queue.outbox_store import OutboxJobStore  # with the setting only

    return OutboxJobStore(outbox)


class _Joined:
    """Several stores as one: a relay feeds the broker, and keeps what the broker does not accept."""

    def __init__(self, stores: Sequence[MailReader]) -> None:
        self._stores = stores

    def queues(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(queue for store in self._stores for queue in store.queues()))

    def consumers(self, queue: str = QUEUE) -> int:
        return self._stores[0].consumers(queue)

    def stats(self, queue: str | None = None) -> QueueStats:
        every = [store.stats(queue) for store in self._stores]
        ages = [stats.oldest for stats in every if stats.oldest is not None]
        later = [stats.later for stats in every if stats.later is not None]
        return QueueStats(
            every[0].consumers,
            sum(stats.waiting for stats in every),
            sum(later) if later else None,
            sum(stats.failed for stats in every),
            max(ages, default=None),
            max([stats.waiting_for for stats in every if stats.waiting_for is not None], default=None),
        )

    def failed(self, limit: int) -> list[FailedJob]:
        found = [job for store in self._stores for job in store.failed(limit)]
        return sorted(found, key=lambda job: job.failed_at)[:limit]

    def find(self, wanted: Wanted) -> list[FoundMail]:
        return [mail for store in self._stores for mail in store.find(wanted)]

    def erase(self, address: str) -> Erased:
        return reduce(Erased.plus, (store.erase(address) for store in self._stores))

    def retry_failed(
        self,
        message_ids: frozenset[str] | None,
        on_each: Callable[[], object] = lambda: None,
        *,
        on_dropped: Callable[[], object] = lambda: None,
    ) -> int:
        return sum(store.retry_failed(message_ids, on_each, on_dropped=on_dropped) for store in self._stores)

    def purge_failed(self, message_ids: frozenset[str] | None, on_each: Callable[[], object] = lambda: None) -> int:
        return sum(store.purge_failed(message_ids, on_each) for store in self._stores)
