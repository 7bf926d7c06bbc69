"""Deliver the outbox's mail that no living process has: orphans, retries and mail that is due later.

With a broker in use the relay gives it to the workers' queue instead, and delivers nothing itself.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import TypeVar

from openviper import tracing
from openviper.backoff import Backoff, jittered
from openviper.core.email.delivery.delivery_log import log_job_decision
from openviper.core.email.delivery.job_attempt import (
    after_death,
    after_error,
    attempt_job,
    publish_failure,
    read_message,
)
from openviper.core.email.delivery.keyed_send import report_dropped
from openviper.core.email.delivery.outbox import Outbox
from openviper.core.email.delivery.transport import Transport
from openviper.core.email.errors import DeliveryError, InvalidMessage, QueueUnavailable
from openviper.core.email.events import DeliveryMode, DeliveryReport, Receipt
from openviper.core.email.message import PreparedMessage
from openviper.core.email.message.serialiser import serialise_message
from openviper.core.email.message.storage import decode
from openviper.core.email.message.tracing import start_enqueueing
from openviper.core.email.queue import QueueService, queue_service
from openviper.core.email.queue.job import AddResult, ClaimedJob, NewJob, job_key
from openviper.core.email.queue.keys import KeyClaim, KeyRecord, claim_for, encode_receipt
from openviper.core.email.queue.names import queue_of
from openviper.core.email.queue.outbox_rows import answer_of, claimed_job
from openviper.core.email.queue.retry import Decision, Done, GiveUp, Retry
from openviper.core.email.settings import EmailSettings
from openviper.db.completion import time_limit
from openviper.db.outbox.rows import DELETE, LEASE, Answer, ClaimedRow
from openviper.text import counted

__all__ = ["Relay"]

logger = logging.getLogger("openviper.email")

_EVERY = 1.0  # seconds between two looks at the database
_LONGEST_PAUSE = 30.0  # seconds, while the database or the broker does not answer
_DROP_EVERY = 60.0  # seconds between two removals of failed mail that was kept for long enough
_UNREAD = 5.0  # seconds until a row is claimed again that could not be read or marked
_LARGE = 256 * 1024  # bytes from which a message is decoded in a thread
_BATCH = 100  # rows for the broker at a time
_FEED_LIMIT = 10.0  # seconds for a batch
_WITHDRAW = 2.0  # seconds
OUTBOX_SYSTEM, OUTBOX_TABLE = "openviper_outbox", "email_outbox"  # in traces
_SLACK = 3600.0  # seconds for which the broker keeps parts beyond the time in which they can be needed

_TAKEN_OVER = "its process ended, or was stopped for longer than its lease, perhaps after sending"

T = TypeVar("T")


class Relay:
    """Claims rows that are due, and delivers them through ``transport`` or feeds the queue.

    Any number of relays may run: each row is claimed by one of them. At most ``concurrency`` messages are delivered at
    a time.
    """

    def __init__(self, outbox: Outbox, transport: Transport, settings: EmailSettings) -> None:
        self._outbox = outbox
        self._keeper = outbox.keeper
        self._transport = transport
        self._settings = settings
        self._concurrency = settings.pool_size + sum(own.pool_size for own in settings.mailers.values())
        self._slots = asyncio.Semaphore(self._concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._backoff = Backoff(first=_EVERY, longest=_LONGEST_PAUSE)
        self._dropped_at = time.monotonic()
        self._announced_at: float | None = None
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Check the tables, and work in a task until :meth:`stop` is called."""
        await self._outbox.check()
        # An empty context: the task sees no request's outbox and no transaction.
        self._running = asyncio.get_running_loop().create_task(self.run(), context=Context())

    async def run(self) -> None:
        """Work until :meth:`stop` is called; failures of the database are logged once and waited for."""
        while not self._stopping.is_set():
            try:
                busy = await self._step()
            except Exception as error:  # noqa: BLE001 - of any driver; the relay must outlive it
                await self._pause(await self._failed(error))
            else:
                self._backoff.succeeded()
                if not busy:
                    await self._pause(jittered(_EVERY))

    async def stop(self, timeout: float) -> None:
        """Claim nothing more, and wait for the deliveries in progress, at most ``timeout`` seconds."""
        self._stopping.set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        if self._running is not None:
            await asyncio.wait([self._running], timeout=timeout)
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, deadline - loop.time()))
        for task in self._tasks:
            task.cancel()  # the lease ends by itself
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._announced_at is not None:
            with suppress(Exception):  # of any driver; it counts as gone when its time is over
                async with asyncio.timeout(_WITHDRAW):
                    await self._keeper.store.withdraw(self._keeper.token)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _failed(self, error: Exception) -> float:
        if not self._backoff.active:
            known = isinstance(error, QueueUnavailable)
            reason = str(error) if known else await self._outbox.describe_failure(error)
            logger.warning("the relay waits: %s", reason)
        return self._backoff.failed()

    async def _step(self) -> bool:
        """Take one batch; True when there may be more at once."""
        now = time.monotonic()
        if self._announced_at is None or now > self._announced_at + LEASE / 3:
            async with asyncio.timeout(time_limit()):
                await self._keeper.store.announce(self._keeper.token)
            self._announced_at = now
        if now > self._dropped_at + _DROP_EVERY:
            self._dropped_at = now
            async with asyncio.timeout(time_limit()):
                await self._keeper.store.drop_expired()
        service = self._queue()
        if service is not None:
            return await self._feed(service)
        if self._transport.pause is not None and self._transport.pause.holds_all:
            return False  # rows stay unclaimed
        # More than are sent at a time: the next ones are here when a delivery ends.
        enough = 2 * self._concurrency
        free = 2 * enough - len(self._tasks)
        rows = await self._keeper.claim(free) if free >= enough else []
        for row in rows:
            self._start(row)
        if len(self._tasks) > enough:
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({*self._tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            return True
        return bool(rows) and len(rows) == free

    def _queue(self) -> QueueService | None:
        """Return the broker's queue where mail is queued; None where this relay delivers."""
        unused = self._settings.use_background_worker is False or self._transport.in_memory
        return None if unused else queue_service()

    def _start(self, row: ClaimedRow) -> None:
        task = asyncio.get_running_loop().create_task(self._deliver(row), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, row: ClaimedRow) -> None:
        async with self._slots:
            try:
                job = await self._job(row)
                # Of one that may have been sent only its retry is recorded now.
                ours = await (self._keeper.has(row.id) if row.repeated else self._begun(row))
            except Exception as error:  # noqa: BLE001 - of any driver
                reason = await self._outbox.describe_failure(error)
                logger.warning("message %s is not attempted: %s", row.message_id, reason)
                self._put_back(row, _UNREAD)
                return
            if not ours:
                logger.warning("message %s is left to the process that has taken it over", row.message_id)
                return
            self._outbox.maybe_sent.add(row.id)
            try:
                decision = await self._attempt(job)
            except Exception:  # the row must not stay in hand for as long as this process lives
                logger.exception("message %s: the relay failed, perhaps after sending", row.message_id)
                self._put_back(row._replace(repeated=True), _UNREAD)
                return
            self._outbox.maybe_sent.discard(row.id)
        self._keeper.answer(row.id, answer_of(decision, self._settings, row.head))

    async def _begun(self, row: ClaimedRow) -> bool:
        return row.id in await self._keeper.begin([row.id])

    def _put_back(self, row: ClaimedRow, seconds: float) -> None:
        """End the lease of a row whose message was not attempted, which may be claimed again after ``seconds``."""
        self._keeper.answer(row.id, Answer(row.progress, retry_in=seconds, repeated=row.repeated))

    async def _job(self, row: ClaimedRow) -> ClaimedJob:
        if row.parts is not None:
            return claimed_job(row)
        async with asyncio.timeout(time_limit()):
            return claimed_job(row, await self._keeper.store.parts(row.id))

    async def _attempt(self, job: ClaimedJob) -> Decision:
        if job.repeated and job.problem is None:
            decision = after_death(job, self._settings, _TAKEN_OVER)
            if isinstance(decision, Retry):  # as after every restart that was none by SIGTERM
                seconds = round(decision.delay, 1)
                logger.info("message %s is taken over, and sent in %g s: %s", job.message_id, seconds, _TAKEN_OVER)
                return decision
            if isinstance(decision, GiveUp):
                await self._publish_failure(job, decision)
        else:
            try:
                prepared = await _read_in_time(job, read_message)
                if await self._is_duplicate(prepared):
                    return Done(DeliveryReport(()))
                return await attempt_job(
                    prepared, job, self._settings, self._transport, system=OUTBOX_SYSTEM, queue=OUTBOX_TABLE
                )
            except Exception as error:  # noqa: BLE001 - the message must be kept whatever happens
                decision = after_error(job, error, self._settings)
        log_job_decision(job, decision)
        return decision

    async def _publish_failure(self, job: ClaimedJob, decision: GiveUp) -> None:
        try:
            await publish_failure(job, decision, self._settings, self._transport)
        except Exception:  # it cannot be read; what follows is recorded all the same
            logger.debug("the failure of message %s was not published", job.message_id, exc_info=True)

    async def _feed(self, service: QueueService) -> bool:
        """Give a batch to the broker, and forget what it has accepted."""
        if not await service.answers():
            raise QueueUnavailable(f"the broker ({service.address}) does not answer, so mail stays in the outbox")
        rows = await self._keeper.claim(_BATCH)
        try:
            refused = await self._feed_rows(service, rows)
        except Exception:
            left = self._keeper.unanswered()
            for row in rows:
                if row.id in left:
                    self._put_back(row, _UNREAD)
            raise
        if refused:
            raise QueueUnavailable(f"the broker ({service.address}) has not accepted {counted(refused, 'message')}")
        return len(rows) == _BATCH

    async def _feed_rows(self, service: QueueService, rows: list[ClaimedRow]) -> int:
        """Give rows to the broker; return how many it has not accepted."""
        jobs: list[tuple[str, NewJob]] = []
        for row in rows:
            job = await self._job(row)
            found: NewJob | Decision | None = await _read_in_time(job, partial(self._new_job, row.mailer))
            if isinstance(found, NewJob) and found.claim is not None and not service.keeps_keys:
                found = await self._claim(job, found)
            if found is None:
                self._keeper.answer(row.id, DELETE)
            elif isinstance(found, NewJob):
                jobs.append((row.id, found))
            else:
                log_job_decision(job, found)
                self._keeper.answer(row.id, answer_of(found, self._settings, row.head))
        if jobs:
            ours = await self._keeper.begin([row_id for row_id, _ in jobs])
            jobs = [each for each in jobs if each[0] in ours]
        return await self._add(service, jobs) if jobs else 0

    async def _add(self, service: QueueService, jobs: list[tuple[str, NewJob]]) -> int:
        """Add jobs to the broker's queue; return how many stay in the outbox for now."""
        deadline = time.monotonic() + _FEED_LIMIT

        def add() -> dict[int, AddResult]:
            return dict(service.store.add_many((job for _, job in jobs), deadline=deadline))

        if tracing.tracer is None:
            added = await asyncio.to_thread(add)
        else:
            messages = [decode(job.payload) for _, job in jobs]
            with start_enqueueing(tracing.tracer, messages, service.settings.broker, jobs[0][1].queue):
                added = await asyncio.to_thread(add)
        refused = 0
        own: list[tuple[str, NewJob]] = []
        for position, (row_id, job) in enumerate(jobs):
            result = added.get(position)
            decision: Decision
            if isinstance(result, KeyRecord) and result.message_id == job.message_id:
                own.append((row_id, job._replace(claim=None)))  # its key is its own since it was stored
                continue
            if isinstance(result, KeyRecord):
                assert job.claim is not None, "only a message with a key has another one's record"
                await self._drop(decode(job.payload), job.claim, result)
            if isinstance(result, bool | KeyRecord):  # False: the process that had the row has queued it before it died
                self._keeper.answer(row_id, DELETE)
                continue
            if isinstance(result, InvalidMessage):
                decision = GiveUp(job.progress, str(result), result)
                log_job_decision(job, decision)
            else:
                refused += 1
                reason = result or "no answer in time"
                # It may have been accepted anyway: then the message arrives twice.
                logger.info("message %s stays in the outbox until the broker confirms it: %s", job.message_id, reason)
                decision = Retry(job.progress, _EVERY, "the broker has not accepted it")
            self._keeper.answer(row_id, answer_of(decision, self._settings, job.payload.head))
        return refused + (await self._add(service, own) if own else 0)

    async def _claim(self, job: ClaimedJob, new: NewJob) -> NewJob | Decision | None:
        """Return ``new`` once its key is claimed, for a broker that keeps none; None if another message has it."""
        try:
            return None if await self._is_duplicate(decode(new.payload)) else new
        except (DeliveryError, QueueUnavailable) as error:
            return after_error(job, error, self._settings)

    async def _is_duplicate(self, prepared: PreparedMessage) -> bool:
        """Claim the key of a message that its own process has left; True if another one has it.

        Raises:
            DeliveryError: the send that has the key has not ended; temporary.
            QueueUnavailable: what keeps the keys does not answer.
        """
        claim = claim_for(prepared, ttl=self._settings.key_ttl)
        if claim is None:
            return False
        record = await self._transport.key_store.claim(claim)
        if record is None:  # the outbox has accepted the message
            receipt = Receipt(claim.message_id, DeliveryMode.QUEUED)
            await self._transport.key_store.finish(claim, encode_receipt(receipt))
        if record is None or record.message_id == claim.message_id:
            return False
        if record.state == "in_flight":
            raise DeliveryError(f"message {record.message_id} has the same key and is still being sent", temporary=True)
        await self._drop(prepared, claim, record)
        return True

    async def _drop(self, prepared: PreparedMessage, claim: KeyClaim, record: KeyRecord) -> None:
        """Report a message whose idempotency key another one has."""
        message = await serialise_message(prepared, max_message_bytes=self._settings.max_message_bytes)
        report_dropped(message, self._transport, claim, record)

    def _new_job(self, mailer: str, job: ClaimedJob) -> NewJob | Decision:
        """Return what the broker is to have, or the decision about a message that it is not to have.

        One whose process has died may have been sent, so that the rules for a worker's death apply.
        """
        try:
            message = read_message(job)
        except Exception as error:  # noqa: BLE001 - the message must be kept whatever happens
            return after_error(job, error, self._settings)
        progress, due_at = job.progress, None
        if job.repeated:
            decision = after_death(job, self._settings, _TAKEN_OVER)
            if not isinstance(decision, Retry):
                return decision
            progress, due_at = decision.progress, time.time() + decision.delay
        assert job.payload is not None, "it has been read"
        keep = self._settings.retry_max_age + self._settings.failed_keep + _SLACK
        key, queue = job_key(job.message_id, message.recipients), queue_of(mailer)
        claim = claim_for(message, ttl=self._settings.key_ttl)
        return NewJob(key, job.message_id, job.payload, progress, keep, due_at, queue, claim)


async def _read_in_time(job: ClaimedJob, read: Callable[[ClaimedJob], T]) -> T:
    """Return ``read(job)``, called in a thread for a large message."""
    large = job.payload is not None and job.payload.size > _LARGE
    return await asyncio.to_thread(read, job) if large else read(job)
