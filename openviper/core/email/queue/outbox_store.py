"""Keep jobs in the database outbox, as the third job store: for commands, the inbox page, and whoever works alone."""

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from openviper.core.email.errors import EmailError, QueueUnavailable
from openviper.core.email.message.storage import DamagedPayload
from openviper.core.email.queue.found import Erased, FoundMail, MailState, Wanted
from openviper.core.email.queue.job import AddResult, ClaimedJob, FailedJob, NewJob, Progress, QueueStats
from openviper.core.email.queue.names import QUEUE, configured_queues, mailer_of
from openviper.core.email.queue.outbox_engine import describe_outbox_failure, own_outbox_engine
from openviper.core.email.queue.outbox_rows import claimed_job, failed_job
from openviper.core.email.queue.traces import (
    concern,
    describe_mail,
    erase_from_head,
    erase_from_progress,
    erase_from_receipt,
    erase_from_text,
    found_failed,
)
from openviper.db.completion import time_limit
from openviper.db.outbox.rows import DELETE, Answer, FailedRow, NewRow

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from openviper.db.outbox.store import OutboxStore
    from openviper.db.outbox.traces import KeptRow, OutboxTraces

__all__ = ["OutboxJobStore"]

T = TypeVar("T")


class OutboxJobStore:
    """The outbox that ``EMAIL["outbox"]`` names, as a ``JobStore``; each call runs an event loop of its own.

    A claim is for 60 seconds, and nothing here extends it: a relay works with the rows themselves. ``limit``: seconds
    for the database to answer a question, since a person or a page waits; a write waits for others' locks as well.
    """

    def __init__(self, outbox: str, *, limit: float = 5.0) -> None:
        self._limit = limit
        self._outbox = outbox

    def probe(self, *, draining: bool = False) -> None:  # noqa: ARG002 - both need the same of a database
        """Ask for the tables.

        Raises:
            QueueUnavailable: the database does not answer, or lacks them.
        """
        self._run(lambda store: store.stats())

    def add(self, job: NewJob, *, deadline: float) -> bool:  # noqa: ARG002 - a commit answers
        """Insert a row, which a relay takes when it is due. Return True."""
        self._run(lambda store: store.insert([(secrets.token_hex(16), _row(job))], token=None), limit=time_limit())
        return True

    def add_many(self, jobs: Iterable[NewJob], *, deadline: float) -> Iterator[tuple[int, AddResult]]:
        """Insert a row for each job, one by one."""
        for position, job in enumerate(jobs):
            try:
                yield position, self.add(job, deadline=deadline)
            except EmailError as error:
                yield position, error

    def claim(self, *ticket: Any) -> ClaimedJob | None:  # noqa: ARG002 - a row needs no ticket
        """Claim the row that has been due for longest; None when none is due."""
        token = secrets.token_hex(16)

        async def claim(store: "OutboxStore") -> ClaimedJob | None:
            for row in await store.claim(1, token=token):
                parts = () if row.parts is not None else await store.parts(row.id)
                return claimed_job(row, parts)._replace(token=token)
            return None

        return self._run(claim, limit=time_limit())

    def finish(self, job: ClaimedJob, *, remember: float) -> None:  # noqa: ARG002 - nothing is remembered
        """Delete the row."""
        self._answer(job, DELETE)

    def retry(self, job: ClaimedJob, progress: Progress, *, delay: float) -> None:
        """Make the row due after ``delay`` seconds."""
        self._answer(job, Answer(progress.to_json(), retry_in=delay))

    def fail(self, job: ClaimedJob, progress: Progress, reason: str, *, keep: float, uncertain: bool) -> None:  # noqa: ARG002 - the progress says so
        """Keep the row as failed for ``keep`` seconds (0: not); of a sensitive message only the head."""
        head = job.payload.without_content().head if job.payload is not None and job.sensitive else None
        self._answer(job, Answer(progress.to_json(), reason=reason, keep=keep, head=head))

    def close(self) -> None:
        """Do nothing: no connection outlives a call."""

    def consumers(self, queue: str = QUEUE) -> int:  # noqa: ARG002 - a relay delivers the mail of every mailer
        """Count the relays."""
        return self._run(lambda store: store.relays())

    def queues(self) -> tuple[str, ...]:
        """Return the queues of the mailers that the settings name."""
        return configured_queues()

    def stats(self, queue: str | None = None) -> QueueStats:
        """Count the rows by their state; those that a process has count as waiting."""

        async def count(store: "OutboxStore") -> QueueStats:
            found = await store.stats(None if queue is None else mailer_of(queue))
            waiting = found.waiting + found.in_hand
            return QueueStats(await store.relays(), waiting, found.later, found.failed, found.oldest, found.overdue)

        return self._run(count)

    def failed(self, limit: int) -> list[FailedJob]:
        """Return failed messages, oldest first, at most ``limit``."""
        return [failed_job(row) for row in self._run(lambda store: store.failed(limit))]

    def find(self, wanted: Wanted) -> list[FoundMail]:
        """Return rows in every state; what is delivered has none."""

        async def find(traces: "OutboxTraces") -> list[FoundMail]:
            return [_found(row) async for row in traces.rows() if wanted.fits(row.message_id, row.head)]

        return self._trace(find)

    def erase(self, address: str) -> Erased:
        """Erase an address from rows and idempotency keys; the database's files are rewritten apart from this."""

        async def erase(traces: "OutboxTraces") -> Erased:
            done = Erased()
            async for row in traces.rows():
                done = done.plus(await _erase_row(traces, row, address))
            return done.plus(Erased(keys=await _erase_keys(traces, address)))

        return self._trace(erase)

    def retry_failed(
        self,
        message_ids: frozenset[str] | None,
        on_each: Callable[[], object] = lambda: None,
        *,
        on_dropped: Callable[[], object] = lambda: None,
    ) -> int:
        """Make them due, from the first attempt, for the recipients who do not have the message."""

        async def retry(store: "OutboxStore", row: FailedRow) -> bool:
            job = failed_job(row)
            if job.content_dropped:
                on_dropped()
                return False
            return await store.retry_failed(row.id, _restarted(row, job))

        return self._change(message_ids, retry, on_each)

    def purge_failed(self, message_ids: frozenset[str] | None, on_each: Callable[[], object] = lambda: None) -> int:
        """Delete them."""
        return self._change(message_ids, lambda store, row: store.purge_failed(row.id), on_each)

    def _change(
        self,
        message_ids: frozenset[str] | None,
        change: "Callable[[OutboxStore, FailedRow], Awaitable[bool]]",
        on_each: Callable[[], object],
    ) -> int:
        async def change_all(store: "OutboxStore") -> int:
            count = 0
            for row in await _in_time(store.failed(), self._limit):
                if message_ids is None or row.message_id in message_ids:
                    count += await _in_time(change(store, row), time_limit())
                on_each()
            return count

        return self._run(change_all, limit=math.inf)  # each of them has its own

    def _answer(self, job: ClaimedJob, answer: Answer) -> None:
        self._run(lambda store: store.answer({job.key: answer}, token=job.token), limit=time_limit())

    def _run(self, work: "Callable[[OutboxStore], Awaitable[T]]", *, limit: float | None = None) -> T:
        """Return what ``work`` does within ``limit`` seconds; None: those of a question."""

        seconds = self._limit if limit is None else limit

        async def use(engine: "AsyncEngine") -> T:
            from openviper.db.outbox.store import OutboxStore

            return await _in_time(work(OutboxStore(engine)), seconds)

        return self._use_engine(use, lock_seconds=seconds)

    def _trace(self, work: "Callable[[OutboxTraces], Awaitable[T]]") -> T:
        async def use(engine: "AsyncEngine") -> T:
            from openviper.db.outbox.traces import OutboxTraces

            return await work(OutboxTraces(engine, limit=self._limit))

        return self._use_engine(use, lock_seconds=self._limit)

    def _use_engine(self, work: "Callable[[AsyncEngine], Awaitable[T]]", *, lock_seconds: float) -> T:
        async def run() -> T:
            async with own_outbox_engine(self._outbox, lock_seconds=lock_seconds) as engine:
                try:
                    return await work(engine)
                except Exception as error:  # noqa: BLE001 - of any driver
                    raise QueueUnavailable(await describe_outbox_failure(error, engine)) from None

        return asyncio.run(run())


async def _in_time(work: Awaitable[T], limit: float) -> T:
    async with asyncio.timeout(limit):
        return await work


def _found(row: "KeptRow") -> FoundMail:
    if row.state == "failed":
        failed = FailedRow(
            row.id, row.message_id, row.head, row.progress, row.reason or "", row.failed_at or 0.0, row.mailer
        )
        return found_failed(failed_job(failed))
    state: MailState = "sending" if row.leased else "later" if row.later else "waiting"
    return describe_mail(row.message_id, state, row.mailer, row.head, _progress(row.progress), row.due)


async def _erase_row(traces: "OutboxTraces", row: "KeptRow", address: str) -> Erased:
    before = _progress(row.progress)
    how = concern(row.head, before, address)
    if how == "alone":
        removed = await traces.remove(row)
        return Erased(removed=removed, busy=not removed)
    if how == "shared":
        progress = erase_from_progress(before, address).to_json()
        reason = None if row.reason is None else erase_from_text(row.reason, address)
        head = erase_from_head(row.head, address)
        changed = await traces.change(row, head=head, progress=progress, reason=reason)
        return Erased(changed=changed, busy=not changed)
    return Erased(named=how == "named")


async def _erase_keys(traces: "OutboxTraces", address: str) -> int:
    count = 0
    for key, result in await traces.keys():
        changed = None if result is None else erase_from_receipt(result, address)
        if address in key.lower():
            await traces.remove_key(key)
        elif changed is not None:
            await traces.change_key(key, changed)
        else:
            continue
        count += 1
    return count


def _progress(stored: str) -> Progress:
    try:
        return Progress.from_json(stored)
    except DamagedPayload:
        return Progress(0)


def _row(job: NewJob) -> NewRow:
    mailer = mailer_of(job.queue)
    return NewRow(job.message_id, mailer, job.payload.head, job.payload.parts, job.progress.to_json(), job.due_at)


def _restarted(row: FailedRow, job: FailedJob) -> str:
    try:
        Progress.from_json(row.progress)
    except DamagedPayload:
        return row.progress  # for whoever can read it
    return job.progress.restart(now=time.time()).to_json()
