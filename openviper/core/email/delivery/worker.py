"""Deliver queued mail in a worker: one attempt for each ticket, then finish, retry or fail the job."""

import asyncio
import logging
import threading
from functools import lru_cache, partial
from typing import Any

import dramatiq
from dramatiq import Broker, Middleware
from dramatiq.asyncio import get_event_loop_thread

from openviper import tracing
from openviper.core.email.delivery.delivery_log import log_job_decision
from openviper.core.email.delivery.job_attempt import (
    after_death,
    after_error,
    attempt_job,
    publish_failure,
    read_message,
)
from openviper.core.email.delivery.mailer import Mailer
from openviper.core.email.delivery.pause.watch import PauseWatch, pause_watch
from openviper.core.email.delivery.stats import add_stats_source
from openviper.core.email.delivery.transport import BackendTransport, Transport
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.message import PreparedMessage
from openviper.core.email.queue import queue_service
from openviper.core.email.queue.job import ACTOR, ClaimedJob, JobStore, RejectedTicket
from openviper.core.email.queue.names import QUEUE, configured_queues, is_mail_queue, mailer_of
from openviper.core.email.queue.retry import Decision, Done, GiveUp, Postpone, Retry
from openviper.core.email.settings import EmailSettings, settings_version
from openviper.exceptions import OpenViperError
from openviper.loops import PerLoop, at_loop_end
from openviper.tasks.shares import ThreadShares

__all__ = ["declare"]

logger = logging.getLogger("openviper.email")

_PROMOTE_EVERY = 0.5  # seconds


_FLUSH_LIMIT = 5.0  # seconds
_UNCLAIMED = 1.0  # seconds after which mail that was at hand when a pause began is on the queue again
_ASTRAY = 30.0  # seconds after which such mail is looked at again if its queue is another mailer's


def declare(broker: Broker) -> None:
    """Declare the actor of queued mail on ``broker``, and the queue of each mailer; may be called again."""
    if ACTOR in broker.actors:
        return
    queues = configured_queues()
    broker.add_middleware(_Promoter())
    broker.add_middleware(ThreadShares(queues))
    broker.add_middleware(_RelayMiddleware())
    broker.add_middleware(_Hold())
    broker.add_middleware(_Flush())
    # Our own retries replace Dramatiq's. Its time limit would end the wait for a broker that is down, so that an
    # attempt's result would never be recorded; an attempt has our own limit.
    make = dramatiq.actor(
        actor_name=ACTOR,
        queue_name=QUEUE,
        broker=broker,
        max_retries=0,
        time_limit=float("inf"),
        throws=RejectedTicket,
    )
    make(_deliver)
    for queue in queues:
        broker.declare_queue(queue)


def _deliver(*ticket: Any) -> None:
    service = queue_service()
    assert service is not None, "a worker has a broker"
    job = service.store.claim(*ticket)
    if job is None:
        return
    watch = _watch(settings_version())
    if watch is not None and watch.on and job.problem is None and _is_held(watch, job.queue):
        # It was in this process when the pause began; what is still on the queue stays there.
        service.store.retry(job, job.progress, delay=_UNCLAIMED)
    else:
        _settle(service.store, job, _settings(settings_version()))


@lru_cache(maxsize=1)
def _settings(_version: int) -> EmailSettings:
    # Reading the environment for each message would cost time, and a worker's does not change.
    return EmailSettings.from_settings()


@lru_cache(maxsize=1)
def _watch(version: int) -> PauseWatch | None:
    """Return the watch of the pause flag; kept, so that its thread goes on."""
    return pause_watch(_settings(version))


def _settle(store: JobStore, job: ClaimedJob, settings: EmailSettings) -> None:
    decision = _attempt(job, settings)
    if isinstance(decision, Done):
        store.finish(job, remember=max(3600.0, settings.retry_max_age))
    elif isinstance(decision, Retry):
        store.retry(job, decision.progress, delay=decision.delay)
    elif isinstance(decision, Postpone):
        watch = _watch(settings_version())
        held = watch is not None and _is_held(watch, job.queue)
        store.retry(job, decision.progress, delay=_UNCLAIMED if held else _ASTRAY)
    else:
        store.fail(job, decision.progress, decision.reason, keep=settings.failed_keep, uncertain=decision.uncertain)
        if job.repeated:
            _publish_failure(job, decision, settings)


def _attempt(job: ClaimedJob, settings: EmailSettings) -> Decision:
    thread = get_event_loop_thread()
    assert thread is not None, "the broker has the AsyncIO middleware"
    decision: Decision
    if job.repeated and job.problem is None:
        decision = after_death(job, settings)
    else:
        try:
            return thread.run_coroutine(_send(read_message(job), job, settings))
        except Exception as error:  # noqa: BLE001 - the message must be kept whatever happens
            decision = after_error(job, error, settings)
    log_job_decision(job, decision)
    return decision


async def _send(prepared: PreparedMessage, job: ClaimedJob, settings: EmailSettings) -> Decision:
    service = queue_service()
    assert service is not None, "a worker has a broker"
    return await attempt_job(prepared, job, settings, await _transport(settings), system=service.settings.broker)


def _publish_failure(job: ClaimedJob, decision: GiveUp, settings: EmailSettings) -> None:
    """Publish the failure of a message that was given up unread."""

    async def publish() -> None:
        await publish_failure(job, decision, settings, await _transport(settings))

    thread = get_event_loop_thread()
    assert thread is not None, "the broker has the AsyncIO middleware"
    try:
        thread.run_coroutine(publish())
    except Exception:
        logger.debug("the failure of message %s was not published", job.message_id, exc_info=True)


_transports: PerLoop[tuple[EmailSettings, "asyncio.Task[Transport]"]] = PerLoop()


async def _transport(settings: EmailSettings) -> Transport:
    """Return the transport of the worker's loop, closed with the loop."""
    found = _transports.get()
    if found is None or found[0] != settings or (found[1].done() and found[1].exception() is not None):
        found = settings, asyncio.create_task(_open(settings))
        _transports.set(found)
    opening = found[1]
    return opening.result() if opening.done() else await asyncio.shield(opening)


async def _open(settings: EmailSettings) -> Transport:
    transport = BackendTransport(settings)
    await transport.open()
    at_loop_end(transport.aclose)
    add_stats_source(transport)
    return transport


class _Hold(Middleware):
    """While sending is paused, has the worker's consumers leave mail on the queue."""

    def before_worker_boot(self, broker: Any, _worker: Any) -> None:
        watch = _watch(settings_version())
        if watch is not None:
            watch.start()
            broker.holds = partial(_is_held, watch)


def _is_held(watch: PauseWatch, queue_name: str) -> bool:
    """True if the mail of the queue's mailer is paused; for queues of other tasks False."""
    return watch.on and is_mail_queue(queue_name) and watch.find(mailer_of(queue_name)) is not None


class _Flush(Middleware):
    """Exports the last spans: before Python 3.13 a forked process ends without what was registered for its exit."""

    def after_worker_shutdown(self, _broker: Broker, _worker: Any) -> None:
        if tracing.tracer is not None:
            tracing.tracer.flush(_FLUSH_LIMIT)


class _Promoter(Middleware):
    """On Redis, pushes the tickets of mail that is due. RabbitMQ's delayed messages need none."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def after_worker_boot(self, _broker: Broker, worker: Any) -> None:
        service = queue_service()
        consumes_mail = any(map(is_mail_queue, worker.consumers))
        if not consumes_mail or service is None or service.settings.broker != "redis":
            return
        self._end.clear()
        self._thread = threading.Thread(target=self._run, args=(service.store,), name="promoter", daemon=True)
        self._thread.start()

    def before_worker_shutdown(self, _broker: Broker, _worker: Any) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(10)

    def _run(self, store: Any) -> None:
        refusal = ""  # logged once, until it passes
        while not self._end.wait(_PROMOTE_EVERY):
            try:
                while store.promote():
                    pass
                refusal = ""
            except QueueUnavailable as error:
                if str(error) != refusal:
                    logger.warning("mail that is due cannot be queued: %s", error)
                    refusal = str(error)
                self._end.wait(2)


class _RelayMiddleware(Middleware):
    """Runs the outbox's relay on the worker's event loop, where the settings name an outbox."""

    def __init__(self) -> None:
        self._mailer: Mailer | None = None

    def after_worker_boot(self, _broker: Broker, worker: Any) -> None:
        settings = _settings(settings_version())
        if not any(map(is_mail_queue, worker.consumers)) or settings.outbox is None:
            return
        thread = get_event_loop_thread()
        assert thread is not None, "the broker has the AsyncIO middleware"
        try:
            self._mailer = thread.run_coroutine(_start_relay(settings))
        except OpenViperError as error:
            logger.error("no relay: %s", error)

    def before_worker_shutdown(self, _broker: Broker, _worker: Any) -> None:
        thread = get_event_loop_thread()
        if self._mailer is not None and thread is not None:
            thread.run_coroutine(self._mailer.aclose())


async def _start_relay(settings: EmailSettings) -> Mailer:
    mailer = Mailer(settings)
    await mailer.open()
    await mailer.start_relay()
    return mailer
