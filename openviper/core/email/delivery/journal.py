"""Record the final answer to each recipient in the journal, in batches and off the path of a send."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Literal

from openviper.backoff import Backoff
from openviper.core.email.delivery.redirect import Redirect
from openviper.core.email.errors import DeliveryError, Refusal
from openviper.core.email.events import NOTHING, DeliveryReport, EventKind
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.message.model import MUST_STREAM
from openviper.core.email.queue.outbox_engine import close_connections, outbox_engine
from openviper.core.email.queue.retry import Decision, GiveUp, Postpone, Retry
from openviper.core.email.settings import EmailSettings
from openviper.network import mail_hash

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from openviper.db.journal import JournalRow, JournalStore

__all__ = ["JOURNAL_REMEDY", "JOURNAL_SETTING", "OUTCOMES", "Journal", "Outcome", "answers_of"]

logger = logging.getLogger("openviper.email")

JOURNAL_SETTING = 'EMAIL["journal"]'
JOURNAL_REMEDY = "run `viperctl email journal create`, or add openviper.db.journal_table(metadata) to your migrations"
"""What creates the table."""

_DELAY = 0.25  # seconds in which answers are collected
_BATCH = 500  # rows in one transaction
_MOST_ROWS = 10_000  # that wait while the database does not answer
_LIMIT = 10.0  # seconds for one transaction
_CLOSE_LIMIT = 2.0
_LONGEST_PAUSE = 30.0
_PURGE_EVERY = 60.0
_PURGED = 1000  # rows in one step

Outcome = Literal[
    "delivered",  # the server accepted it for this recipient
    "redirected",  # EMAIL["redirect_to"] got a copy in the recipient's place
    "refused",  # the server refused the recipient, or the message, for good
    "failed",  # no further attempt is made
    "expired",  # expires_at passed before it could be delivered
    "uncertain",  # it may have been delivered: the server's answer is missing
    "suppressed",  # EMAIL["suppress"] left the recipient out
    "cancelled",  # EMAIL["before_send"] cancelled it
    "discarded",  # its transaction was rolled back, or discard_on_error dropped it
    "duplicate",  # not sent: an earlier send had its key
]
"""The final answer to one recipient."""

OUTCOMES: dict[EventKind, Outcome] = {
    "cancelled": "cancelled",
    "discarded": "discarded",
    "duplicate": "duplicate",
}
"""The events that are themselves the final answer, to every recipient."""

_Answer = tuple[str, Outcome, int | None]


class Journal:
    """The journal of one event loop: collects answers, and writes them to the database a moment later.

    A database that does not answer neither fails nor delays a send: that is logged once, and the newest answers wait in
    memory. Rows that are older than ``journal_keep`` are deleted in small steps while others are written.
    """

    def __init__(self, settings: EmailSettings, store: "JournalStore", redirect: Redirect | None = None) -> None:
        key = settings.journal_key
        assert key is not None, "the settings require it"
        self._key = key.get_secret_value()
        self._keep = settings.journal_keep
        self._store = store
        self._redirect = redirect
        self._loop = asyncio.get_running_loop()
        self._rows: deque[JournalRow] = deque(maxlen=_MOST_ROWS)
        self._dropped = 0
        self._scheduled = False
        self._closed = False
        self._writing: asyncio.Task[None] | None = None
        self._backoff = Backoff(first=1.0, longest=_LONGEST_PAUSE)
        self._purged_at = time.monotonic()

    @classmethod
    async def open(cls, settings: EmailSettings, redirect: Redirect | None = None) -> "Journal | None":
        """Return the journal of the running loop; None without the setting. Connects to nothing yet.

        Raises:
            ImproperlyConfigured: the database is not supported.
            MissingDependency: SQLAlchemy or the driver is not installed.
        """
        if not settings.journal:
            return None
        engine = await outbox_engine(settings.outbox or "database", setting=JOURNAL_SETTING)
        return cls(settings, await asyncio.to_thread(_load, engine), redirect)

    @property
    def failing(self) -> bool:
        """True from a write that failed until one that succeeds."""
        return self._backoff.active

    @property
    def waiting(self) -> int:
        """Return how many answers are not written yet."""
        return len(self._rows)

    def record_attempt(self, message: OutgoingMessage, outcome: DeliveryReport | Exception, decision: Decision) -> None:
        """Record the answers that are final after an attempt at ``message``."""
        redirected = () if self._redirect is None else self._redirect.split(message)[1]
        self._add(message, answers_of(message.envelope.recipients, outcome, decision, redirected=redirected))

    def record(self, message: OutgoingMessage, outcome: Outcome, code: int | None = None) -> None:
        """Record the same answer to every recipient of ``message``'s envelope. Any thread may call it."""
        self._add(message, ((address, outcome, code) for address in message.envelope.recipients))

    async def aclose(self) -> None:
        """Write what is left; what the database does not accept within two seconds is logged as lost."""
        self._closed = True
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=_CLOSE_LIMIT)
        reason = ""
        try:
            async with asyncio.timeout(_CLOSE_LIMIT):
                await self._write_rows()
        except Exception as error:  # noqa: BLE001 - of any driver
            reason = f" ({self._describe(error)})"
        if lost := len(self._rows) + self._dropped:
            logger.warning("%s: %d answer(s) were not written, and are lost%s", JOURNAL_SETTING, lost, reason)
            self._rows.clear()
        await close_connections(self._store.engine)

    def _add(self, message: OutgoingMessage, answers: Iterable[_Answer]) -> None:
        from openviper.db.journal import JournalRow  # imported when the journal was opened
        from openviper.db.outbox.store import new_row_id

        prepared, now = message.prepared, time.time()
        ref, stream = prepared.extra.get("ref"), prepared.must.get(MUST_STREAM)
        for address, outcome, code in answers:
            self._dropped += len(self._rows) == _MOST_ROWS
            recipient = mail_hash(address, self._key)
            self._rows.append(JournalRow(new_row_id(), prepared.message_id, ref, recipient, stream, outcome, code, now))
        if self._rows and not self._scheduled and not self._closed:
            self._scheduled = True
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._schedule, _DELAY, context=Context())

    def _schedule(self, delay: float) -> None:
        self._loop.call_later(delay, self._start, context=Context())

    def _start(self) -> None:
        self._scheduled = False
        if not self._closed and self._writing is None:
            self._writing = self._loop.create_task(self._write(), context=Context())

    async def _write(self) -> None:
        """Write what has been collected; after a failure try again later."""
        try:
            await self._write_rows()
            await self._purge()
        except Exception as error:  # noqa: BLE001 - of any driver; a journal must not disturb mail
            if not self._backoff.active:
                reason = self._describe(error)
                logger.warning("%s: answers are not written, mail is still sent (%s)", JOURNAL_SETTING, reason)
            if not self._scheduled:
                self._scheduled = True
                self._schedule(self._backoff.failed())
        else:
            if self._backoff.active:
                logger.info("%s: answers are written again; %d were lost", JOURNAL_SETTING, self._dropped)
                self._dropped = 0
            self._backoff.succeeded()
        finally:
            self._writing = None
            if self._rows and not self._scheduled and not self._closed:  # came while the last rows were written
                self._scheduled = True
                self._schedule(_DELAY)

    async def _write_rows(self) -> None:
        while self._rows:
            batch = [self._rows.popleft() for _ in range(min(len(self._rows), _BATCH))]
            try:
                async with asyncio.timeout(_LIMIT):
                    await self._store.insert(batch)
            except BaseException:
                room = _MOST_ROWS - len(self._rows)
                self._dropped += max(0, len(batch) - room)
                self._rows.extendleft(reversed(batch[max(0, len(batch) - room) :]))
                raise

    async def _purge(self) -> None:
        now = time.monotonic()
        if now < self._purged_at + _PURGE_EVERY:
            return
        async with asyncio.timeout(_LIMIT):
            # The next step follows the next answers, at once while there is more.
            if await self._store.purge(self._keep, most=_PURGED) < _PURGED:
                self._purged_at = now

    def _describe(self, error: Exception) -> str:
        """Return what failed, without the statement's values, and the remedy."""
        from sqlalchemy.exc import DBAPIError

        from openviper.db.engines import lacks_table

        if isinstance(error, DBAPIError) and lacks_table(error):
            return f"there is no table email_journal: {JOURNAL_REMEDY}"
        return f"{type(getattr(error, 'orig', None) or error).__name__}; `viperctl email check` says more"


def answers_of(
    recipients: Sequence[str],
    outcome: DeliveryReport | Exception,
    decision: Decision,
    *,
    redirected: Sequence[str] = (),
) -> Iterator[_Answer]:
    """Yield the answers to ``recipients`` of an attempt that no later attempt can change.

    ``redirected`` are those in whose place ``EMAIL["redirect_to"]`` was mailed.
    """
    if isinstance(decision, Postpone):
        return
    report = outcome if isinstance(outcome, DeliveryReport) else None
    error = outcome if isinstance(outcome, DeliveryError) else None
    refused = report.refused if report is not None else error.refused if error is not None else NOTHING
    pending: Iterable[str] = ()
    if isinstance(decision, Retry):
        pending = recipients if decision.progress.pending is None else decision.progress.pending
    later = frozenset(pending)
    left_out = report.suppressed if report is not None else error.suppressed if error is not None else ()
    for address in left_out:
        if address not in later:
            yield address, "suppressed", None
    for address in recipients:
        if address in later or address in left_out:
            continue
        refusal = refused.get(address)
        if refusal is not None:
            yield _refusal(address, refusal)
        elif report is not None:
            yield address, "redirected" if address in redirected else "delivered", _code(report.response)
        else:
            yield _failure(address, outcome, decision)


def _refusal(address: str, refusal: Refusal) -> _Answer:
    if refusal.uncertain:
        return address, "uncertain", None  # the code is not the server's
    return address, "failed" if refusal.temporary else "refused", refusal.code


def _failure(address: str, outcome: DeliveryReport | Exception, decision: Decision) -> _Answer:
    error = outcome if isinstance(outcome, DeliveryError) else None
    code = None if error is None else error.code
    if isinstance(decision, GiveUp) and decision.uncertain:
        return address, "uncertain", code
    if error is not None and code is not None and 500 <= code < 600 and not error.temporary:
        return address, "refused", code
    return address, "failed", code


def _code(response: str) -> int | None:
    first = response[:3]
    return int(first) if first.isascii() and first.isdigit() and len(first) == 3 else None


def _load(engine: "AsyncEngine") -> "JournalStore":
    # In a thread: importing SQLAlchemy takes a tenth of a second.
    from openviper.db.journal import JournalStore
    from openviper.db.outbox.store import new_row_id  # noqa: F401 - for the rows

    return JournalStore(engine)
