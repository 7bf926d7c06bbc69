"""Deliver queued mail in a worker: one attempt for each ticket, then finish, retry or fail the job."""

import asyncio
import logging
import threading
import time
from dataclasses import replace
from functools import lru_cache
from typing import Any

import dramatiq
from dramatiq import Broker, Middleware
from dramatiq.asyncio import get_event_loop_thread

from openviper.core.email.delivery.last_mile import attempt_delivery, log_decision, missing_recipients
from openviper.core.email.delivery.transport import BackendTransport, Transport
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.events import DeliveryMode
from openviper.core.email.message import PreparedMessage
from openviper.core.email.message.serialiser import serialise_message
from openviper.core.email.message.storage import DamagedPayload, NewerPayload, decode
from openviper.core.email.queue import queue_service
from openviper.core.email.queue.job import ACTOR, QUEUE, ClaimedJob, JobStore
from openviper.core.email.queue.retry import Decision, Done, GiveUp, QueuePolicy, Retry, after_attempt
from openviper.core.email.settings import EmailSettings, settings_version
from openviper.loops import PerLoop, at_loop_end

__all__ = ["declare"]

logger = logging.getLogger("openviper.email")

# Seconds. RabbitMQ closes the channel of a worker that does not acknowledge a message within 30 minutes.
_LONGEST_ATTEMPT = 1500.0
_PROMOTE_EVERY = 0.5


def declare(broker: Broker) -> None:
    """Declare the actor of queued mail on ``broker``; may be called again."""
    if ACTOR in broker.actors:
        return
    broker.add_middleware(_Promoter())
    # Our own retries replace Dramatiq's. Its time limit would end the wait for a broker that is down, so that an
    # attempt's result would never be recorded; an attempt has our own limit.
    make = dramatiq.actor(actor_name=ACTOR, queue_name=QUEUE, broker=broker, max_retries=0, time_limit=float("inf"))
    make(_deliver)


def _deliver(*ticket: Any) -> None:
    service = queue_service()
    assert service is not None, "a worker has a broker"
    job = service.store.claim(*ticket)
    if job is not None:
        _settle(service.store, job, _settings(settings_version()))


@lru_cache(maxsize=1)
def _settings(_version: int) -> EmailSettings:
    # Reading the environment for each message would cost time, and a worker's does not change.
    return EmailSettings.from_settings()


def _settle(store: JobStore, job: ClaimedJob, settings: EmailSettings) -> None:
    decision = _attempt(job, settings)
    if isinstance(decision, Done):
        store.finish(job, remember=max(3600.0, settings.retry_max_age))
    elif isinstance(decision, Retry):
        store.retry(job, decision.progress, delay=decision.delay)
    else:
        store.fail(job, decision.progress, decision.reason, keep=settings.failed_keep, uncertain=decision.uncertain)


def _attempt(job: ClaimedJob, settings: EmailSettings) -> Decision:
    thread = get_event_loop_thread()
    assert thread is not None, "the broker has the AsyncIO middleware"
    if job.repeated:  # the attempt before may have delivered it, whatever comes of this one
        job = job._replace(progress=replace(job.progress, uncertain=True))
    decision: Decision
    try:
        return thread.run_coroutine(_send(_read_message(job), job, settings))
    except DamagedPayload as error:
        decision = GiveUp(job.progress, f"cannot be read: {error}")
    except NewerPayload as error:
        if (reason := _reason_not_to_send(job, settings)) is not None:
            decision = GiveUp(job.progress, reason)
        else:  # kept for a worker that supports it
            decision = after_attempt(job.progress, error, QueuePolicy(settings), now=time.time())
    except Exception as error:  # noqa: BLE001 - the message must be kept whatever happens
        decision = after_attempt(job.progress, error, QueuePolicy(settings), now=time.time())
    log_decision(job.message_id, decision, queued=True)
    return decision


def _read_message(job: ClaimedJob) -> PreparedMessage:
    if job.problem is not None:
        raise job.problem
    job.progress.check_supported()
    assert job.payload is not None, "there is no problem"
    return decode(job.payload)


async def _send(prepared: PreparedMessage, job: ClaimedJob, settings: EmailSettings) -> Decision:
    """Attempt the delivery, unless nothing is to be sent any more."""
    message = await serialise_message(prepared, max_message_bytes=settings.max_message_bytes)
    if job.progress.pending is not None:
        message = message.for_recipients(job.progress.pending)
    transport = await _transport(settings)
    if (reason := _reason_not_to_send(job, settings)) is not None:
        transport.publish("failed", missing_recipients(message, job.progress), reason)
        decision = GiveUp(job.progress, reason)
        log_decision(job.message_id, decision, queued=True)
        return decision
    return await attempt_delivery(
        message,
        transport,
        job.progress,
        QueuePolicy(settings),
        mode=DeliveryMode.QUEUED,
        time_limit=_LONGEST_ATTEMPT,
    )


def _reason_not_to_send(job: ClaimedJob, settings: EmailSettings) -> str | None:
    if job.progress.expires_at is not None and time.time() > job.progress.expires_at:
        return "expired before it could be delivered"
    if job.repeated and settings.on_uncertain == "hold":
        return "its worker died during the attempt, perhaps after sending"
    return None


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
    return transport


class _Promoter(Middleware):
    """On Redis, pushes the tickets of mail that is due. RabbitMQ's delayed messages need none."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def after_worker_boot(self, _broker: Broker, worker: Any) -> None:
        service = queue_service()
        if QUEUE not in worker.consumers or service is None or service.settings.broker != "redis":
            return
        self._end.clear()
        self._thread = threading.Thread(target=self._run, args=(service.store,), name="promoter", daemon=True)
        self._thread.start()

    def before_worker_shutdown(self, _broker: Broker, _worker: Any) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(10)

    def _run(self, store: Any) -> None:
        while not self._end.wait(_PROMOTE_EVERY):
            try:
                while store.promote():
                    pass
            except QueueUnavailable as error:
                logger.debug("no ticket could be pushed: %s", error)
                self._end.wait(2)
