"""Keep the leases of the rows that this process has, and record how each of them ends."""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from weakref import ref

from sqlalchemy.exc import DBAPIError

from openviper.backoff import Backoff
from openviper.db.completion import time_limit
from openviper.db.outbox.rows import DELETE, LEASE, MARKING, Answer, ClaimedRow, NewRow
from openviper.db.outbox.store import OutboxStore, new_row_id

__all__ = ["OutboxKeeper"]

logger = logging.getLogger("openviper.db")

_EXTEND_EVERY = LEASE / 3
_UNSURE = LEASE / 6  # seconds before its end from which a lease is asked for instead of trusted
_RIDE_WITHIN = 0.1  # seconds for which a deletion on SQLite waits for a commit that it can be part of
_LOCKED_WAIT = 2.0  # the longest time in seconds between two attempts to delete a row that another transaction locks


@dataclass(slots=True)
class _Pending:
    """An answer that is not recorded yet; ``at`` is when it was given (``time.monotonic()``)."""

    answer: Answer
    at: float
    recorded: asyncio.Future[bool]
    rounds: int = field(default=0)


class OutboxKeeper:
    """Has rows of ``store`` in hand, for one event loop: all of them under one token, by which its writes are fenced.

    A task extends the leases and records answers while there are any. While the database does not answer, it repeats
    that with growing pauses, and the messages go on from memory.

    ``marks_attempts``: a row is marked when an attempt begins, at the cost of a transaction, so that what was not begun
    when the process died is known not to have been sent.
    """

    def __init__(self, store: OutboxStore, *, marks_attempts: bool = False) -> None:
        self.store = store
        self._loop = ref(asyncio.get_running_loop())
        token = secrets.token_hex(16)
        self.token = f"{MARKING}{token[1:]}" if marks_attempts else token
        self._marks_attempts = marks_attempts
        self._marked: set[str] = set()
        self._in_hand: dict[str, float] = {}  # until when the lease is certain (time.monotonic())
        self._pending: dict[str, _Pending] = {}
        self._wake = asyncio.Event()
        self._wakes_at = 0.0  # when the task looks by itself (time.monotonic()); 0.0: it is at work, and looks then
        self._extended_at = time.monotonic()
        self._backoff = Backoff(first=0.5, longest=30.0)
        self._not_before = 0.0
        self._hurried = False
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    @property
    def usable(self) -> bool:
        """True on the event loop of this keeper, until it is closed."""
        return not self._closed and self._loop() is asyncio.get_running_loop()

    def take(self, row_id: str) -> None:
        """Have a row in hand whose lease has just begun."""
        now = time.monotonic()
        if not self._in_hand:
            self._extended_at = now
        self._in_hand[row_id] = now + LEASE
        self._work(self._extended_at + _EXTEND_EVERY)

    async def insert(self, rows: Sequence[NewRow]) -> list[str]:
        """Store rows in a transaction of their own, have those in hand that are due now, and return their ids.

        If that fails, rows that may be stored all the same are deleted as soon as the database answers.
        """
        ids = [new_row_id() for _ in rows]
        try:
            async with asyncio.timeout(time_limit()):
                await self.store.insert([*zip(ids, rows, strict=True)], token=self.token)
        except BaseException as error:
            if _may_be_stored(error):
                for row_id in ids:
                    self.take(row_id)
                    self.answer(row_id, DELETE)
            raise
        for row_id, row in zip(ids, rows, strict=True):
            if row.due_at is None:
                self.take(row_id)
        return ids

    async def claim(self, limit: int) -> list[ClaimedRow]:
        """Claim at most ``limit`` rows that are due and that no process has."""
        async with asyncio.timeout(time_limit()):
            claimed = await self.store.claim(limit, token=self.token)
        # Its lease has ended here, because the database did not answer, and its message is still being dealt with.
        again = {row.id for row in claimed if row.id in self._in_hand}
        for row in claimed:
            self.take(row.id)
        return [row for row in claimed if row.id not in again]

    async def has(self, row_id: str) -> bool:
        """True while no other process can have taken the row; asks the database where the lease may have ended."""
        until = self._in_hand.get(row_id)
        if until is None:
            return False
        if time.monotonic() < until - _UNSURE:
            return True
        try:
            async with asyncio.timeout(time_limit()):
                await self._extend([row_id])
        except Exception as error:  # noqa: BLE001 - of any driver; sent twice is better than never
            logger.debug("a lease could not be requested: %s", type(error).__name__)
            return True
        return row_id in self._in_hand

    async def begin(self, row_ids: Sequence[str]) -> set[str]:
        """Return the rows that no other process can have taken, whose attempts begin now; mark them where that is done.

        Raises:
            Exception: of the driver, where they are to be marked: then nothing may be attempted.
        """
        if not self._marks_attempts:
            return {row_id for row_id in row_ids if await self.has(row_id)}
        now = time.monotonic()
        async with asyncio.timeout(time_limit()):
            marked = await self.store.mark([each for each in row_ids if each in self._in_hand], token=self.token)
        self._marked |= marked
        self._in_hand.update(dict.fromkeys(marked, now + LEASE))
        return marked

    def answer(self, row_id: str, answer: Answer) -> "asyncio.Future[bool]":
        """Record how a row ends, soon.

        The future resolves when that is done, with False if another process has the row by now.
        """
        pending = _Pending(answer, time.monotonic(), asyncio.get_running_loop().create_future())
        if row_id not in self._in_hand:
            pending.recorded.set_result(False)
            return pending.recorded
        self._pending[row_id] = pending
        self._work(pending.at + self._patience)
        return pending.recorded

    async def release(self, row_ids: Iterable[str]) -> None:
        """Let the relay of any process take rows whose messages have not been attempted."""
        ids = [row_id for row_id in row_ids if self._in_hand.pop(row_id, None) is not None]
        if ids:
            async with asyncio.timeout(time_limit()):
                await self.store.release(ids, token=self.token, marked=self._marked.intersection(ids))
            self._marked.difference_update(ids)

    def unanswered(self) -> set[str]:
        """Return the rows in hand for which no answer is pending."""
        return self._in_hand.keys() - self._pending.keys()

    def deletions(self) -> list[str]:
        """Return the rows whose deletion waits, on SQLite, for a commit of this process to be part of."""
        return [row_id for row_id, pending in self._pending.items() if pending.answer is DELETE]

    def deleted(self, row_ids: Iterable[str]) -> None:
        """Note that a commit has deleted rows."""
        for row_id in row_ids:
            if row_id in self._pending:
                self._finish(row_id, recorded=True)

    async def aclose(self, timeout: float) -> None:
        """Record the answers that are pending, for at most ``timeout`` seconds, and let the leases end."""
        self._closed = self._hurried = True
        self._not_before = 0.0
        self._wake.set()
        if waiting := [pending.recorded for pending in self._pending.values()]:
            await asyncio.wait(waiting, timeout=timeout)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for pending in self._pending.values():
            pending.recorded.cancel()
        self._pending.clear()
        self._in_hand.clear()

    async def hurry(self) -> None:
        """Record now what is pending, and return when it is recorded or has failed once."""
        self._hurried = True
        self._wake.set()
        waiting = [pending.recorded for pending in self._pending.values()]
        if waiting:
            await asyncio.wait(waiting, timeout=time_limit())

    def _work(self, due: float) -> None:
        """Have the task look at ``due`` at the latest (``time.monotonic()``)."""
        if self._task is None or self._task.done():
            # An empty context: the task outlives the request and must not see its outbox or transaction.
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        elif max(due, self._not_before) < self._wakes_at:
            self._wake.set()

    async def _run(self) -> None:
        while self._in_hand:
            due = self._due()
            if due > time.monotonic():
                await self._sleep_until(due)
                continue
            try:
                async with asyncio.timeout(time_limit()):
                    await self._record()
                    if time.monotonic() >= self._extended_at + _EXTEND_EVERY:
                        # What is answered and not recorded is locked, so that nobody can claim it, nor extend it.
                        await self._extend(self.unanswered())
                        self._extended_at = time.monotonic()
            except Exception as error:  # noqa: BLE001 - of any driver; rows must be kept in hand all the same
                self._failed(error)
            else:
                self._not_before = 0.0
                self._backoff.succeeded()

    async def _sleep_until(self, due: float) -> None:
        self._wakes_at = due
        timer = asyncio.get_running_loop().call_later(due - time.monotonic(), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
            self._wake.clear()
            self._wakes_at = 0.0

    @property
    def _patience(self) -> float:
        """Return the seconds for which an answer waits until it is recorded in a transaction of its own."""
        return _RIDE_WITHIN if self.store.on_sqlite and not self._hurried else 0.0

    def _due(self) -> float:
        due = self._extended_at + _EXTEND_EVERY
        if self._pending:
            due = min(due, min(pending.at for pending in self._pending.values()) + self._patience)
        return max(due, self._not_before)

    def _failed(self, error: Exception) -> None:
        if not self._backoff.active:
            logger.warning(
                "the outbox does not answer (%s): its mail is delivered from memory, and what is delivered may be sent "
                "again if this process ends before the database answers",
                type(error).__name__,
            )
        self._not_before = time.monotonic() + self._backoff.failed()

    async def _record(self) -> None:
        pending = dict(self._pending)
        if not pending:
            return
        self._hurried = False
        now = time.monotonic()
        answers = {row_id: _elapsed(each, now) for row_id, each in pending.items()}
        done = await self.store.answer(answers, token=self.token)
        left = pending.keys() - done
        # A row that another transaction has locked is ours all the same, and would be sent again.
        locked = await self.store.owned(left, token=self.token) if left else set()
        for row_id, each in pending.items():
            if row_id in locked:
                each.rounds += 1
                each.at = now + min(_RIDE_WITHIN * 2**each.rounds, _LOCKED_WAIT)
            else:
                self._finish(row_id, recorded=row_id in done)

    def _finish(self, row_id: str, *, recorded: bool) -> None:
        pending = self._pending.pop(row_id, None)
        self._in_hand.pop(row_id, None)
        self._marked.discard(row_id)
        if pending is not None and not pending.recorded.done():
            pending.recorded.set_result(recorded)

    async def _extend(self, row_ids: Iterable[str]) -> None:
        asked, now = list(row_ids), time.monotonic()
        kept = await self.store.extend(asked, token=self.token)
        for row_id in asked:
            if row_id in kept:
                self._in_hand[row_id] = now + LEASE
            elif row_id not in self._pending:
                self._in_hand.pop(row_id, None)  # another process has it, or nobody: it is gone
                self._marked.discard(row_id)


def _may_be_stored(error: BaseException) -> bool:
    """True if the database may have committed what ended with ``error``: only its answer may be missing."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    if not isinstance(error, Exception):  # cancelled: on SQLite the statement goes on in its thread
        return True
    return isinstance(error, OSError) and not isinstance(error, ConnectionRefusedError)  # a TimeoutError is one, too


def _elapsed(pending: _Pending, now: float) -> Answer:
    """Return the answer as of now: its delay counts from when it was given."""
    answer = pending.answer
    if answer.retry_in is None:
        return answer
    return answer._replace(retry_in=max(0.0, answer.retry_in - max(0.0, now - pending.at)))
