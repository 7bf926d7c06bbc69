"""Begin the spans of a message: ``messaging.*`` describes the hop over a queue, ``email.*`` the rest.

No span shows an address, a subject or content. The context that a message was accepted in travels in its ``extra``, so
that what happens to it later, in any process, belongs to the same trace.
"""

from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from openviper.core.email.errors import DeliveryError
from openviper.core.email.events import Circumstances, DeliveryReport, Receipt
from openviper.core.email.message.model import MUST_STREAM, OutgoingMessage, PreparedMessage, read_only
from openviper.tracing import Span, Tracer, Value

__all__ = [
    "error_type",
    "record_error",
    "record_report",
    "start_attempt",
    "start_enqueueing",
    "start_hold",
    "start_processing",
    "traced_submission",
    "with_context",
]

_HEADERS = ("traceparent", "tracestate")  # of W3C Trace Context
_MOST_LINKS = 128  # the SDK's own limit


def with_context(message: PreparedMessage, headers: Mapping[str, str]) -> PreparedMessage:
    """Return ``message`` with the trace context that its later spans belong to."""
    return message._replace(extra=read_only({**message.extra, **headers})) if headers else message


async def traced_submission(tracer: Tracer, sending: Coroutine[Any, Any, Receipt]) -> Receipt:
    """Await a send in a span; the message gets the span's context while it is prepared."""
    with tracer.start("submit email", "internal", {}) as span:
        receipt = await sending
        span.set("email.message_id", receipt.message_id)
        span.set("email.mode", str(receipt.mode))
        span.set("email.outcome", receipt.outcome)
        if receipt.error is not None:
            record_error(span, receipt.error)
        return receipt


def start_hold(tracer: Tracer, message: OutgoingMessage) -> Span:
    """Begin the span of a message that waits for the end of a transaction."""
    return tracer.start("hold email", "internal", _attributes(message.prepared), parent=_context_of(message.prepared))


def start_enqueueing(tracer: Tracer, messages: Sequence[PreparedMessage], system: str, queue: str) -> Span:
    """Begin the span in which a queue is given messages: below a single one's context, linked to those of several."""
    attributes = _hop(system, queue, "send", "send")
    if len(messages) == 1:
        attributes["messaging.message.id"] = messages[0].message_id
        return tracer.start(f"send {queue}", "producer", attributes, parent=_context_of(messages[0]))
    attributes["messaging.batch.message_count"] = len(messages)
    contexts = {context["traceparent"]: context for each in messages if (context := _context_of(each))}
    return tracer.start(f"send {queue}", "producer", attributes, links=[*contexts.values()][:_MOST_LINKS])


def start_processing(tracer: Tracer, message: PreparedMessage, system: str, queue: str, attempt: int) -> Span:
    """Begin the span in which a worker or relay attempts to deliver a job."""
    attributes = _hop(system, queue, "process", "process")
    attributes |= {"messaging.message.id": message.message_id, "email.attempt": attempt}
    return tracer.start(
        f"process {queue}", "consumer", attributes, parent=_context_of(message), root=not _context_of(message)
    )


def start_attempt(
    tracer: Tracer, message: OutgoingMessage, circumstances: Circumstances, *, below_current: bool
) -> Span:
    """Begin the span of one attempt at a delivery; ``below_current`` False: below the message's own context."""
    attributes = _attributes(message.prepared)
    attributes["email.mode"] = str(circumstances.mode)
    attributes["email.attempt"] = circumstances.attempt or 1
    attributes["email.recipients"] = len(message.envelope.recipients)
    parent = None if below_current else _context_of(message.prepared)
    return tracer.start("send email", "client", attributes, parent=parent)


def record_report(span: Span, report: DeliveryReport) -> None:
    """Record how an attempt ended that reached the server."""
    outcome = "delivered"
    if report.suppressed and not report.accepted and not report.refused:
        outcome = "suppressed"
    elif report.refused:
        outcome = "partial"
        span.set("email.refused", len(report.refused))
    if report.suppressed:
        span.set("email.suppressed", len(report.suppressed))
    span.set("email.outcome", outcome)
    code = report.response[:3]
    if code.isascii() and code.isdigit():
        span.set("email.smtp.reply_code", int(code))


def record_error(span: Span, error: BaseException) -> None:
    """Record why it failed: by the reply code, or by the name of the error."""
    span.set("email.outcome", "failed")
    code = error.code if isinstance(error, DeliveryError) else None
    if code is not None:
        span.set("email.smtp.reply_code", code)
    if isinstance(error, DeliveryError):
        span.set("email.temporary", error.temporary)
        span.set("email.uncertain", error.uncertain)
    summary = error.summary if isinstance(error, DeliveryError) else None
    span.fail(error_type(error), summary or "")


def error_type(error: BaseException) -> str:
    """Return the reply code of the server's refusal, or else the name of the error's class."""
    code = error.code if isinstance(error, DeliveryError) else None
    return type(error).__name__ if code is None else str(code)


def _context_of(message: PreparedMessage) -> dict[str, str]:
    context = {name: message.extra[name] for name in _HEADERS if isinstance(message.extra.get(name), str)}
    return context if "traceparent" in context else {}


def _hop(system: str, queue: str, name: str, kind: str) -> dict[str, Value]:
    return {
        "messaging.system": system,
        "messaging.destination.name": queue,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
    }


def _attributes(message: PreparedMessage) -> dict[str, Value]:
    extra = message.extra
    found: dict[str, Value] = {"email.message_id": message.message_id, "email.mailer": message.mailer}
    if tags := extra.get("tags"):
        found["email.tags"] = tuple(tags)
    if (ref := extra.get("ref")) is not None:
        found["email.ref"] = ref
    if (stream := message.must.get(MUST_STREAM)) is not None:
        found["email.stream"] = stream
    for name, value in extra.get("metadata", {}).items():
        found[f"email.metadata.{name}"] = value
    return found
