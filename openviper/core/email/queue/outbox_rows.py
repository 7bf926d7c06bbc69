"""Turn messages into rows of the database outbox, and claimed rows into jobs."""

import time
from dataclasses import replace

from openviper.core.email.message import OutgoingMessage
from openviper.core.email.message.storage import DamagedPayload, NewerPayload, Payload, encode, split
from openviper.core.email.queue.job import ClaimedJob, FailedJob, Progress
from openviper.core.email.queue.names import queue_of
from openviper.core.email.queue.retry import Decision, Done, Postpone, Retry
from openviper.core.email.queue.service import mark_redirected
from openviper.core.email.settings import EmailSettings
from openviper.db.outbox.rows import DELETE, Answer, ClaimedRow, FailedRow, NewRow
from openviper.framing import frame
from openviper.text import one_line

__all__ = ["answer_of", "claimed_job", "failed_job", "new_row"]

_POSTPONED = 15.0  # seconds after which the relay looks again at mail of a mailer that is paused


def new_row(
    message: OutgoingMessage,
    settings: EmailSettings,
    *,
    due_at: float | None = None,
    expires_at: float | None = None,
) -> NewRow:
    """Return the row of a message; blocks where an attachment is in a temporary file. The times are Unix seconds."""
    payload = encode(mark_redirected(message.prepared, settings))
    now = time.time()
    progress = Progress(since=now if due_at is None else max(now, due_at), expires_at=expires_at)
    return NewRow(message.message_id, message.mailer, payload.head, payload.parts, progress.to_json(), due_at)


def claimed_job(row: ClaimedRow, large_parts: tuple[bytes, ...] = ()) -> ClaimedJob:
    """Return the job of a row; ``large_parts`` are those that are not in the row itself."""
    payload: Payload | None = None
    problem: DamagedPayload | NewerPayload | None = None
    try:
        payload = Payload(row.head, large_parts) if row.parts is None else split(frame(row.head, [row.parts]))
    except (DamagedPayload, NewerPayload) as error:
        problem = error
    try:
        progress = Progress.from_json(row.progress)
        if row.repeated:  # a death counts as an attempt
            progress = replace(progress, attempts=progress.attempts + 1)
    except DamagedPayload as error:
        progress, problem = Progress(time.time()), problem or error
    return ClaimedJob(row.id, row.message_id, progress, payload, row.repeated, problem)


def failed_job(row: FailedRow) -> FailedJob:
    """Return a failed row as the commands and the inbox page show it."""
    try:
        progress = Progress.from_json(row.progress)
    except DamagedPayload:
        progress = Progress(0)
    uncertain = progress.uncertain or bool(progress.unconfirmed)
    payload = Payload(row.head, ())
    queue = queue_of(row.mailer)
    return FailedJob(row.message_id, row.failed_at, row.reason, uncertain, progress, payload, queue)


def answer_of(decision: Decision, settings: EmailSettings, head: bytes) -> Answer:
    """Return what becomes of a row after an attempt; ``head`` is the message's."""
    if isinstance(decision, Done):
        return DELETE
    progress = decision.progress.to_json()
    if isinstance(decision, Retry):
        return Answer(progress, retry_in=decision.delay)
    if isinstance(decision, Postpone):
        return Answer(progress, retry_in=_POSTPONED)
    payload = Payload(head, ())
    left = payload.without_content().head if payload.sensitive else None
    # PostgreSQL stores no NUL, and no database a lone surrogate: of a backend's own error, say.
    return Answer(progress, reason=one_line(decision.reason), keep=settings.failed_keep, head=left)
