"""Attempt a delivery: the one place where a message leaves, for every delivery mode and every process.

Steps that concern each attempt (a pause, a suppression, a signature over the bytes) belong here, in that order.
"""

import asyncio
import logging
import time
from dataclasses import replace

from openviper import tracing
from openviper.core.email.backends.attempt import Attempt, mark_offered
from openviper.core.email.delivery.delivery_log import detail_of, log_attempt, log_expiry, logs_deliveries
from openviper.core.email.delivery.journal import Outcome
from openviper.core.email.delivery.redirect import check_redirected
from openviper.core.email.delivery.transport import Transport
from openviper.core.email.errors import DeliveryError, DeliveryTimeout, SendingPaused
from openviper.core.email.events import Circumstances, DeliveryMode, DeliveryReport, listening
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.message.tracing import record_error, record_report, start_attempt
from openviper.core.email.queue.job import PROTOCOL, Progress
from openviper.core.email.queue.retry import Decision, Done, GiveUp, Postpone, Retry, RetryPolicy, after_attempt
from openviper.text import counted

__all__ = [
    "EXPIRED",
    "FIRST_ATTEMPT",
    "attempt_delivery",
    "fail_attempt",
    "has_expired",
    "missing_recipients",
    "record_end",
]

logger = logging.getLogger("openviper.email")

_INLINE = DeliveryMode.INLINE

EXPIRED = "expired before it could be delivered"
"""The reason of a message that is given up because of its ``expires_at``."""
FIRST_ATTEMPT = Progress(since=0.0)
"""The progress before any attempt, where no store keeps it."""


async def attempt_delivery(
    message: OutgoingMessage,
    transport: Transport,
    progress: Progress,
    policy: RetryPolicy,
    *,
    mode: DeliveryMode,
    pipeline: bool = False,
    time_limit: float | None = None,
    since: float | None = None,
) -> Decision:
    """Attempt to deliver ``message`` once, or give it up if it has expired; publish that, and return what follows.

    ``progress`` is that of the attempts before; ``message`` is already addressed to the recipients of this one.
    ``mode`` is the one it was accepted in. Each attempt is a line of the delivery log; an inline failure is raised.
    ``time_limit`` in seconds ends an attempt that takes longer, as an uncertain one unless the backend knows that
    nothing was sent; None leaves the limits to the transport. ``since``: when it was sent (Unix seconds), for events;
    None: ``progress`` says it. Never raises what a delivery can raise: the decision
    holds the error.
    """
    if progress.expires_at is not None and has_expired(progress):
        return _expire(message, transport, progress, mode)
    watched = transport.observed or listening()
    paused = transport.pause.error(message.mailer) if transport.pause is not None and transport.pause.on else None
    began = None if paused is not None else time.perf_counter()
    if watched and paused is None:
        transport.publish("sending", message, circumstances=Circumstances(mode, progress.attempts + 1))
    outcome: DeliveryReport | Exception
    try:
        if paused is not None:
            raise paused
        if transport.rules is None and time_limit is None and (tracing.tracer is None or transport.enqueues):
            outcome = await transport.send(message, pipeline=pipeline)
        else:
            this = Circumstances(mode, progress.attempts + 1)
            message, outcome = await _send(message, transport, pipeline, time_limit, this)
        if not isinstance(outcome, DeliveryReport):
            raise TypeError(
                f"{transport.describe()}: send() must return a DeliveryReport, not {type(outcome).__name__}"
            )
    except Exception as error:  # noqa: BLE001 - a backend may be anybody's; the decision holds the error
        outcome = error
    return _conclude(message, transport, progress, policy, mode, outcome, began, since)


def _conclude(
    message: OutgoingMessage,
    transport: Transport,
    progress: Progress,
    policy: RetryPolicy,
    mode: DeliveryMode,
    outcome: DeliveryReport | Exception,
    began: float | None,
    since: float | None,
) -> Decision:
    """Decide what follows from an attempt that ended with ``outcome``, publish and log it."""
    decision = after_attempt(progress, outcome, policy, now=time.time())
    if isinstance(decision, GiveUp) and policy.keeps_failures:
        decision = _with_protocol(decision, outcome)
    if transport.journal is not None:
        transport.journal.record_attempt(message, outcome, decision)
    # A listener may have come during the attempt.
    watched, trouble = transport.observed or listening(), not isinstance(decision, Done)
    logged = trouble or progress.refused or logs_deliveries()
    if not (watched or logged):
        return decision
    if isinstance(outcome, DeliveryError) and outcome.suppressed:
        message = _without(message, outcome.suppressed)
    circumstances = _circumstances(mode, progress.attempts + 1, began, outcome, message.mailer)
    if watched:
        circumstances = circumstances._replace(since=since or progress.since or None)
        _publish_delivered(message, transport, outcome, progress, circumstances)
    remedy = None
    if mode is not _INLINE and not isinstance(decision, Done):
        remedy = transport.remedy(decision.error, message.mailer)
    if logged:
        log_attempt(message, progress, decision, mode, remedy, circumstances)
    if not isinstance(decision, Done):
        _publish_decision(message, transport, decision, circumstances)
    return decision


def _with_protocol(decision: GiveUp, outcome: DeliveryReport | Exception) -> GiveUp:
    """Keep the SMTP dialogue with a message that is given up, if there is one."""
    protocol = outcome.protocol if isinstance(outcome, DeliveryReport | DeliveryError) else None
    if protocol is None:
        return decision
    progress = decision.progress
    return replace(decision, progress=replace(progress, extra={**progress.extra, PROTOCOL: protocol}))


def fail_attempt(
    message: OutgoingMessage,
    transport: Transport,
    progress: Progress,
    policy: RetryPolicy,
    error: Exception,
    *,
    mode: DeliveryMode,
) -> Decision:
    """Decide, log and publish as for an attempt that ended with ``error`` before anything was sent."""
    decision = after_attempt(progress, error, policy, now=time.time())
    circumstances = Circumstances(mode, progress.attempts + 1)
    log_attempt(message, progress, decision, mode, None, circumstances)
    if transport.journal is not None:
        transport.journal.record_attempt(message, error, decision)
    if not isinstance(decision, Done):
        _publish_decision(message, transport, decision, circumstances)
    return decision


def has_expired(progress: Progress) -> bool:
    """True after ``expires_at``: no attempt may begin."""
    return progress.expires_at is not None and time.time() > progress.expires_at


def _expire(message: OutgoingMessage, transport: Transport, progress: Progress, mode: DeliveryMode) -> GiveUp:
    decision = GiveUp(progress, EXPIRED)
    log_expiry(message, decision, mode)
    record_end(message, transport, progress, "expired")
    transport.publish(
        "failed", missing_recipients(message, progress), detail_of(decision), circumstances=Circumstances(mode)
    )
    return decision


def record_end(message: OutgoingMessage, transport: Transport, progress: Progress, outcome: Outcome) -> None:
    """Record ``outcome`` for the recipients without a final answer: "uncertain" if an attempt may have delivered it."""
    if transport.journal is not None:
        pending = message if progress.pending is None else message.for_recipients(progress.pending)
        transport.journal.record(pending, "uncertain" if progress.uncertain else outcome)


def missing_recipients(message: OutgoingMessage, progress: Progress) -> OutgoingMessage:
    """Address ``message`` to those who are not known to have it."""
    return message if progress.missing is None else message.for_recipients(progress.missing)


async def _send(
    message: OutgoingMessage, transport: Transport, pipeline: bool, limit: float | None, circumstances: Circumstances
) -> tuple[OutgoingMessage, DeliveryReport]:
    """Send by the rules and within ``limit`` seconds; in a span where mail is traced.

    The span is below that of its job, or else below the context that the message was accepted in.
    """
    if tracing.tracer is None or transport.enqueues:
        return await _send_in_time(message, transport, pipeline, limit, circumstances)
    queued = circumstances.mode is DeliveryMode.QUEUED
    with start_attempt(tracing.tracer, message, circumstances, below_current=queued) as span:
        via = message.mailer
        try:
            addressed, report = await _send_in_time(message, transport, pipeline, limit, circumstances)
            record_report(span, report)
            via = report.via or via
        except DeliveryError as error:
            record_error(span, error)
            raise
        finally:
            span.set("email.via", via)
            if (server := transport.server(via)) is not None:
                span.set("server.address", server[0])
                span.set("server.port", server[1])
        return addressed, report


async def _send_by_rules(
    message: OutgoingMessage, transport: Transport, pipeline: bool, circumstances: Circumstances
) -> tuple[OutgoingMessage, DeliveryReport]:
    """Send to those whom the rules allow, and return the message as addressed to them."""

    async def send(addressed: OutgoingMessage) -> DeliveryReport:
        mark_offered()
        return await transport.send(addressed, pipeline=pipeline)

    suppression, redirect = transport.rules or (None, None)
    if redirect is None:
        check_redirected(message)
    suppressed = () if suppression is None else await suppression.find(message)
    if suppressed:
        message = _leave_out(message, suppressed, transport, circumstances)
        if not message.envelope.recipients:
            return message, DeliveryReport((), suppressed=suppressed)
    try:
        if redirect is None:
            report = await send(message)
        else:
            if redirected := redirect.split(message)[1]:
                transport.publish("redirected", message, redirect.describe(redirected), circumstances=circumstances)
            report = await redirect.send(message, send)
    except DeliveryError as error:
        error.suppressed = suppressed
        raise
    return message, report._replace(suppressed=suppressed) if suppressed else report


def _leave_out(
    message: OutgoingMessage, suppressed: tuple[str, ...], transport: Transport, circumstances: Circumstances
) -> OutgoingMessage:
    logger.info("message %s: %s suppressed", message.message_id, counted(len(suppressed), "recipient"))
    detail = f"not mailed: {', '.join(suppressed)}"
    transport.publish("suppressed", message, detail, refused=suppressed, circumstances=circumstances)
    return _without(message, suppressed)


def _without(message: OutgoingMessage, suppressed: tuple[str, ...]) -> OutgoingMessage:
    return message.for_recipients(tuple([each for each in message.envelope.recipients if each not in suppressed]))


async def _send_in_time(
    message: OutgoingMessage, transport: Transport, pipeline: bool, limit: float | None, circumstances: Circumstances
) -> tuple[OutgoingMessage, DeliveryReport]:
    if limit is None:
        return await _send_by_rules(message, transport, pipeline, circumstances)
    attempt = Attempt()
    try:
        with attempt.active():
            async with asyncio.timeout(limit) as timeout:
                if limit <= 0:
                    await asyncio.sleep(0)  # which the timeout ends, before anything is sent
                return await _send_by_rules(message, transport, False, circumstances)
    except TimeoutError as error:
        if not timeout.expired():
            raise
        uncertain = not attempt.nothing_sent
        outcome = "it may have been delivered" if uncertain else "nothing was sent"
        text = f"the attempt took too long; {outcome}"
        raise DeliveryTimeout(text, temporary=True, uncertain=uncertain, summary=text) from error


def _circumstances(
    mode: DeliveryMode, attempt: int, began: float | None, outcome: DeliveryReport | Exception, mailer: str
) -> Circumstances:
    seconds = None if began is None else time.perf_counter() - began
    via = (outcome.via or mailer) if isinstance(outcome, DeliveryReport) else None
    return Circumstances(mode, attempt, seconds, _reply_code(outcome), via)


def _reply_code(outcome: DeliveryReport | Exception) -> int | None:
    if isinstance(outcome, DeliveryReport):
        first = outcome.response[:3]
        return int(first) if first.isascii() and first.isdigit() else None
    return outcome.code if isinstance(outcome, DeliveryError) else None


def _publish_delivered(
    message: OutgoingMessage,
    transport: Transport,
    report: DeliveryReport | Exception,
    progress: Progress,
    circumstances: Circumstances,
) -> None:
    if not isinstance(report, DeliveryReport) or not message.envelope.recipients:
        return
    # No event names those whom an attempt refused that nobody received.
    before = {address: why for address, why in progress.refused.items() if address not in report.refused}
    detail = report.outcome
    if before:
        detail += f"; refused before: {', '.join(f'{address} ({why})' for address, why in before.items())}"
    refused = (*report.refused, *before)
    transport.publish("delivered", message, detail, refused=refused, circumstances=circumstances)


def _publish_decision(
    message: OutgoingMessage, transport: Transport, decision: Retry | GiveUp | Postpone, circumstances: Circumstances
) -> None:
    if isinstance(decision.error, SendingPaused):
        transport.publish("paused", message, str(decision.error), circumstances=circumstances)
    if isinstance(decision, Postpone):
        return
    if isinstance(decision, Retry):
        pending = decision.progress.pending
        transport.publish(
            "retrying",
            message if pending is None else message.for_recipients(pending),
            f"in {decision.delay:g} s: {detail_of(decision)}",
            circumstances=circumstances,
        )
    elif decision.error is not None or decision.progress.pending or decision.progress.unconfirmed:
        # Without an error others have it, which must not hide that these lack it, or may lack it.
        missing = missing_recipients(message, decision.progress)
        transport.publish("failed", missing, detail_of(decision), circumstances=circumstances)
