"""Read, retry and delete the queue's dead letters for the inbox page, off the event loop and with a time limit."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Literal, NamedTuple, TypeVar

from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.queue import StoredMail, stored_mail
from openviper.core.email.queue.job import FailedJob

__all__ = ["Action", "ChangeResult", "DeadLetter", "DeadLetterList", "DeadLetters"]

T = TypeVar("T")

Action = Literal["retry", "purge"]

_LIMIT = 10.0  # seconds that a request waits for the broker
_MOST = 500


class DeadLetter(NamedTuple):
    """A message that was given up. ``head``: From, To, Cc, Bcc and Subject, empty where they cannot be read."""

    job: FailedJob
    head: Mapping[str, str]


class DeadLetterList(NamedTuple):
    """The oldest dead letters, at most 500, and the number of all; ``broker`` is its address without a password."""

    broker: str
    letters: list[DeadLetter]
    total: int


class ChangeResult(NamedTuple):
    """How many were retried or purged, and how many could not be retried because their content was not kept."""

    changed: int
    dropped: int = 0


class DeadLetters:
    """The dead letters on the project's broker.

    Requests that come while the queue is read share that reading, and only one change is made at a time: RabbitMQ lets
    one reader at its failed mail, so that more threads would only wait. ``limit`` is in seconds.
    """

    def __init__(self, limit: float = _LIMIT) -> None:
        self._limit = limit
        self._reading: Future[DeadLetterList | None] | None = None
        self._change: Future[ChangeResult | None] | None = None

    async def read(self) -> DeadLetterList | None:
        """Return the dead letters, oldest first; None without a broker and an outbox.

        Raises:
            QueueUnavailable: the broker did not answer, or not in time.
            MissingDependency: the broker's client library is not installed.
        """
        if self._reading is None or self._reading.done():
            self._reading = _in_thread(_read)
        return await self._result(self._reading)

    async def change(self, action: Action, message_ids: frozenset[str] | None) -> ChangeResult | None:
        """Retry or purge these (None: all), and return how many; None without a broker and an outbox.

        Raises:
            QueueUnavailable: the broker did not answer in time, when the change may still be made; or another change
                has not ended.
            MissingDependency: the broker's client library is not installed.
        """
        if self._change is not None and not self._change.done():
            raise QueueUnavailable("an earlier command is still changing the failed mail; try again later")
        self._change = _in_thread(lambda: _change(action, message_ids))
        try:
            return await self._result(self._change)
        finally:
            self._reading = None  # it may have begun before the change

    async def _result(self, future: "Future[T]") -> T:
        done = asyncio.wrap_future(future)
        done.add_done_callback(_retrieve_error)  # nobody else does after the limit
        await asyncio.wait([done], timeout=self._limit)
        if not done.done():
            raise QueueUnavailable(f"the broker gave no answer within {self._limit:g} s; reload to see what was done")
        return done.result()


def _read() -> DeadLetterList | None:
    stored = stored_mail()
    if stored is None:
        return None
    jobs = stored.store.failed(_MOST)
    letters = [DeadLetter(job, _head(job)) for job in jobs]
    return DeadLetterList(stored.address, letters, len(jobs) if len(jobs) < _MOST else _count(stored, len(jobs)))


def _count(stored: StoredMail, at_least: int) -> int:
    return max(stored.store.stats().failed, at_least)


def _head(job: FailedJob) -> Mapping[str, str]:
    return dict.fromkeys(("From", "To", "Cc", "Bcc", "Subject"), "") if job.payload is None else job.payload.summary()


def _change(action: Action, message_ids: frozenset[str] | None) -> ChangeResult | None:
    stored = stored_mail()
    if stored is None:
        return None
    store, dropped = stored.store, itertools.count()
    if action == "purge":
        return ChangeResult(store.purge_failed(message_ids))
    return ChangeResult(store.retry_failed(message_ids, on_dropped=lambda: next(dropped)), next(dropped))


def _in_thread(work: Callable[[], T]) -> "Future[T]":
    """Call ``work`` in a thread that neither takes a place in the loop's pool nor delays the end of the process."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised again where the result is awaited
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="openviper-inbox-queue", daemon=True).start()
    return future


def _retrieve_error(done: "asyncio.Future[T]") -> None:
    if not done.cancelled():
        done.exception()
