"""Attempt to deliver a job of a store, in a worker or in the relay, and decide what follows where none is made."""

import time
from dataclasses import replace
from functools import partial

from openviper import tracing
from openviper.core.email.delivery.last_mile import (
    EXPIRED,
    attempt_delivery,
    has_expired,
    missing_recipients,
    record_end,
)
from openviper.core.email.delivery.pause.watch import pause_watch
from openviper.core.email.delivery.transport import Transport
from openviper.core.email.errors import DeliveryError
from openviper.core.email.events import Circumstances, DeliveryMode
from openviper.core.email.message import PreparedMessage
from openviper.core.email.message.serialiser import serialise_message
from openviper.core.email.message.storage import DamagedPayload, NewerPayload, decode
from openviper.core.email.message.tracing import error_type, start_processing
from openviper.core.email.queue.job import ClaimedJob
from openviper.core.email.queue.names import mailer_of
from openviper.core.email.queue.retry import (
    Decision,
    Done,
    GiveUp,
    Postpone,
    QueuePolicy,
    Retry,
    after_attempt,
)
from openviper.core.email.settings import EmailSettings

__all__ = ["after_death", "after_error", "attempt_job", "publish_failure", "read_message"]

# Seconds. RabbitMQ closes the channel of a worker that does not acknowledge a message within 30 minutes.
_LONGEST_ATTEMPT = 1500.0

_OUTCOMES: dict[type[Decision], str] = {Done: "done", Retry: "retrying", GiveUp: "failed", Postpone: "paused"}


def read_message(job: ClaimedJob) -> PreparedMessage:
    """Decode and check the job's message.

    Raises:
        DamagedPayload: no version could have written it.
        NewerPayload: only a later version can deliver it.
    """
    if job.problem is not None:
        raise job.problem
    job.progress.check_supported()
    assert job.payload is not None, "there is no problem"
    return decode(job.payload)


async def attempt_job(
    prepared: PreparedMessage,
    job: ClaimedJob,
    settings: EmailSettings,
    transport: Transport,
    *,
    system: str,
    queue: str | None = None,
) -> Decision:
    """Attempt the delivery; ``system`` and ``queue`` name in a trace where it was queued, None the job's queue."""
    if tracing.tracer is None:
        return await _attempt_job(prepared, job, settings, transport)
    attempt = job.progress.attempts + 1
    with start_processing(tracing.tracer, prepared, system, queue or job.queue, attempt) as span:
        decision = await _attempt_job(prepared, job, settings, transport)
        span.set("email.outcome", _OUTCOMES[type(decision)])
        if isinstance(decision, Retry | GiveUp) and decision.error is not None:
            span.fail(error_type(decision.error))
        return decision


async def _attempt_job(
    prepared: PreparedMessage, job: ClaimedJob, settings: EmailSettings, transport: Transport
) -> Decision:
    message = await serialise_message(prepared, max_message_bytes=settings.max_message_bytes)
    if job.progress.pending is not None:
        message = message.for_recipients(job.progress.pending)
    return await attempt_delivery(
        message,
        transport,
        job.progress,
        _policy(settings, message.mailer),
        mode=DeliveryMode.QUEUED,
        time_limit=_LONGEST_ATTEMPT,
    )


def _policy(settings: EmailSettings, mailer: str) -> QueuePolicy:
    """Return the policy for mail of ``mailer``, which does not age while it is paused."""
    watch = pause_watch(settings)
    return QueuePolicy(settings, seconds_paused=None if watch is None else partial(watch.seconds_paused, mailer))


async def publish_failure(job: ClaimedJob, decision: GiveUp, settings: EmailSettings, transport: Transport) -> None:
    """Publish and record the failure of a job that is given up after a death, unread until now."""
    message = await serialise_message(read_message(job), max_message_bytes=settings.max_message_bytes)
    record_end(message, transport, decision.progress, "failed")
    missing, queued = missing_recipients(message, decision.progress), Circumstances(DeliveryMode.QUEUED)
    transport.publish("failed", missing, decision.reason, circumstances=queued)


def after_error(job: ClaimedJob, error: Exception, settings: EmailSettings) -> Decision:
    """Decide what follows when no attempt could be made because of ``error``."""
    if isinstance(error, DamagedPayload):
        return GiveUp(job.progress, f"cannot be read: {error}")
    if isinstance(error, NewerPayload) and has_expired(job.progress):
        return GiveUp(job.progress, EXPIRED)
    # A message for a later version is kept for a process that supports it.
    return after_attempt(job.progress, error, _policy(settings, mailer_of(job.queue)), now=time.time())


def after_death(
    job: ClaimedJob, settings: EmailSettings, text: str = "its worker died during the attempt, perhaps after sending"
) -> Decision:
    """Decide as after an attempt that ended with its process, perhaps after sending; ``text`` says so.

    Nothing of the message is read before the result is recorded: it may be what workers die of.
    """
    progress = replace(job.progress, uncertain=True)
    if has_expired(job.progress):
        return GiveUp(progress, EXPIRED)
    death = DeliveryError(text, temporary=True, uncertain=True, summary=text)
    # The store has counted the death, and the decision counts it again.
    progress = replace(progress, attempts=progress.attempts - 1)
    return after_attempt(progress, death, _policy(settings, mailer_of(job.queue)), now=time.time())
