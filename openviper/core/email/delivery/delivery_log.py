"""Write the delivery log: one line for each attempt, with fields for structured logs and without addresses."""

import logging
import traceback
from collections.abc import Mapping
from typing import Any

from openviper.core.email.errors import DeliveryError, DuplicateKey
from openviper.core.email.events import NOTHING, Circumstances, DeliveryMode, DeliveryReport
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.message.storage import NewerPayload
from openviper.core.email.queue.job import ClaimedJob, NewJob, Progress
from openviper.core.email.queue.names import mailer_of
from openviper.core.email.queue.retry import Decision, Done, GiveUp, Postpone, Retry
from openviper.exceptions import ImproperlyConfigured
from openviper.text import counted, without_addresses

__all__ = ["detail_of", "log_attempt", "log_expiry", "log_job_decision", "logs_deliveries"]

logger = logging.getLogger("openviper.email")
delivery_logger = logging.getLogger("openviper.email.delivery")
_TOLD = (DeliveryError, DuplicateKey, ImproperlyConfigured)  # what the delivery log says of them is enough

_INLINE = DeliveryMode.INLINE
_NO_FIELDS: Mapping[str, Any] = dict.fromkeys(("mailer", "via", "attempt", "seconds", "code", "ref"))


def logs_deliveries() -> bool:
    """True if the log has a line for a delivery without trouble, too."""
    return delivery_logger.isEnabledFor(logging.INFO)


def log_attempt(
    message: OutgoingMessage,
    progress: Progress,
    decision: Decision,
    mode: DeliveryMode,
    remedy: str | None,
    circumstances: Circumstances,
) -> None:
    """Log an attempt and what follows from it. ``progress``: of the attempts before; ``remedy`` as for a first one."""
    message_id = message.message_id
    _log_decision(message_id, decision, mode, remedy=remedy, fields=_fields(message, circumstances))
    if progress.refused and isinstance(decision, Done):
        logger.warning(
            "message %s: %s refused by an earlier attempt (%s)",
            message_id,
            counted(len(progress.refused), "recipient"),
            "; ".join(sorted({without_addresses(reply) for reply in progress.refused.values()})[:3]),
        )


def log_expiry(message: OutgoingMessage, decision: GiveUp, mode: DeliveryMode) -> None:
    """Log that a message is given up without an attempt."""
    _log_decision(message.message_id, decision, mode, fields=_fields(message, Circumstances(mode)))


def log_job_decision(job: ClaimedJob | NewJob, decision: Decision) -> None:
    """Log what follows for a job of which no attempt could be made here."""
    attempt = None if isinstance(decision, Done) else decision.progress.attempts
    _log_decision(job.message_id, decision, fields={"mailer": mailer_of(job.queue), "attempt": attempt})


def detail_of(decision: Retry | GiveUp) -> str:
    """Return the reason of a decision, for people."""
    error = decision.error
    # The text of any other error may be empty, or meaningless without the name of its class.
    detail = str(error) if isinstance(error, DeliveryError) else decision.reason
    uncertain_now = isinstance(error, DeliveryError) and error.uncertain
    if isinstance(decision, GiveUp) and decision.uncertain and not uncertain_now:
        detail += "; an earlier attempt may have delivered it"
    return detail


def _loggable_detail(decision: Retry | GiveUp) -> str:
    """Return the reason of a decision without addresses, with the id of another message that it names."""
    error = decision.error
    return without_addresses(
        detail_of(decision), message_id=error.message_id if isinstance(error, DuplicateKey) else None
    )


def _fields(message: OutgoingMessage, circumstances: Circumstances) -> dict[str, Any]:
    """Return the fields of the delivery log that only an attempt knows."""
    seconds = circumstances.seconds
    return {
        "mailer": message.mailer,
        "via": circumstances.via,
        "attempt": circumstances.attempt,
        "seconds": None if seconds is None else round(seconds, 4),
        "code": circumstances.code,
        "ref": message.prepared.extra.get("ref"),
    }


def _reached_nobody(report: DeliveryReport) -> bool:
    return bool(report.suppressed) and not report.accepted and not report.refused


def _outcome(decision: Decision) -> str:
    if isinstance(decision, Done):
        return "suppressed" if _reached_nobody(decision.report) else "delivered"
    return "paused" if isinstance(decision, Postpone) else "retrying" if isinstance(decision, Retry) else "failed"


def _log_decision(
    message_id: str,
    decision: Decision,
    mode: DeliveryMode = DeliveryMode.QUEUED,
    *,
    remedy: str | None = None,
    fields: Mapping[str, Any] = NOTHING,
) -> None:
    """Log what follows from an attempt: one line of the delivery log, without addresses.

    For queued mail a line before it has the error's summary in place of its text: a server may repeat an address in
    that, and it is kept with the message. ``remedy`` ends the line where the first attempt failed and where no other
    one follows. An inline failure is raised as well, so that its line has neither its reason nor a high level.
    ``fields``: what is known of the attempt.
    """
    extra = {**_NO_FIELDS, "id": message_id, "mode": mode.value, "outcome": _outcome(decision), **fields}
    queued = mode is DeliveryMode.QUEUED
    if isinstance(decision, Postpone):
        delivery_logger.debug("message %s waits: %s", message_id, decision.reason, extra=extra)
        return
    error = None if isinstance(decision, Done) else decision.error
    first = isinstance(decision, Retry) and decision.progress.attempts == 1
    if queued and error is not None:
        _log_error(message_id, error, remedy if first else None)
    if isinstance(decision, Retry):
        first = first and not queued
        reason = f": {_loggable_detail(decision)}"
        if queued:
            refused = decision.progress.pending if error is None else None
            reason = f": {counted(len(refused), 'recipient')} temporarily refused" if refused else ""
        delivery_logger.log(
            # The first failure is often a set-up mistake, and INFO is not shown without a configuration of the log.
            logging.WARNING if first else logging.INFO,
            "message %s: attempt %d failed, next one in %g s%s%s",
            message_id,
            decision.progress.attempts,
            round(decision.delay, 1),
            reason,
            f"; {remedy}" if first and remedy else "",
            extra=extra,
        )
    elif mode is _INLINE and isinstance(decision, GiveUp) and error is not None:
        may = "may have been" if decision.uncertain else "was not"
        delivery_logger.info("message %s %s delivered: %s", message_id, may, type(error).__name__, extra=extra)
    elif isinstance(decision, GiveUp):
        if not queued and error is not None and not isinstance(error, _TOLD):
            _log_error(message_id, error, None)
        missing = decision.progress.missing
        delivery_logger.error(
            "message %s %s delivered%s after %s%s%s",
            message_id,
            "may have been" if decision.uncertain else "was not",
            f" to {counted(len(missing), 'recipient')}" if missing is not None and error is None else "",
            counted(decision.progress.attempts, "attempt"),
            "; `viperctl email failed show` says why" if queued else f": {_loggable_detail(decision)}",
            f"; {remedy}" if remedy else "",
            extra=extra,
        )
    else:
        delivery_logger.info("message %s: %s", message_id, extra["outcome"], extra=extra)


def _log_error(message_id: str, error: Exception, remedy: str | None) -> None:
    if isinstance(error, NewerPayload):
        logger.warning("message %s waits for a newer worker: %s", message_id, error)
    elif isinstance(error, DeliveryError):
        code = f" {error.code}" if error.code is not None else ""
        summary = f": {error.summary}" if error.summary else ""
        logger.warning(
            "message %s: %s%s%s%s",
            message_id,
            type(error).__name__,
            code,
            summary,
            f"; {remedy}" if remedy else "",
        )
    elif isinstance(error, ImproperlyConfigured):
        logger.error("message %s: %s: %s", message_id, type(error).__name__, error)
    else:  # without its text, which may name an address
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("message %s: unexpected %s\n%s", message_id, type(error).__name__, frames)
