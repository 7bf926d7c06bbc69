"""Limit the rate of SMTP transactions: those of this process, or in shares those of all processes."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import NamedTuple

from openviper.backoff import Backoff
from openviper.core.email.settings.units import Rate
from openviper.loops import after_fork_in_child

__all__ = ["SAVED", "RateLimiter", "Reserve", "SharedRateLimiter", "limiter_of"]

logger = logging.getLogger("openviper.email")

# Seconds of the rate. Of a shared one the common bucket saves half a second, and a process may use what it has
# reserved half a second late: together no more than the bucket of one process.
SAVED = 0.5
_LATE = 0.5
_SHARE = 0.1  # the most that a process reserves at a time, so that the others come in between
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 10.0  # seconds before the shared bucket is asked again after a failure

Reserve = Callable[[int], float]
"""Reserves so many tokens in a row of the bucket that all processes share; returns the seconds until the first is due.

0 reserves none and may take longer, for what only a first call needs. Blocks, and raises whatever keeps it from an
answer. It is hashable: equal ones reserve from the same bucket.
"""


class RateLimiter:
    """A token bucket for ``EMAIL["rate_limit"]``: one token for each transaction.

    It holds the tokens of one second, at least one. All event loops and threads of the process share it.
    """

    def __init__(self, rate: Rate) -> None:
        self._interval = rate.interval
        self._burst = max(1.0, rate.count / rate.period) * rate.interval
        self._lock = threading.Lock()
        self._next = 0.0  # when the next token is due, if none were saved

    async def wait(self) -> None:
        """Wait for a token, first come, first served. A cancelled wait has used its token."""
        await _sleep_until(self.take())

    def take(self) -> float:
        """Take the next token; return when it is due (``time.monotonic()``)."""
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now - self._burst + self._interval)
            due = self._next
            self._next += self._interval
        return due

    def drop_saved(self) -> None:
        """Start with one token and none saved."""
        with self._lock:
            self._next = max(self._next, time.monotonic())


class _Waiter(NamedTuple):
    loop: asyncio.AbstractEventLoop
    due: "asyncio.Future[float]"


class _Share(NamedTuple):
    """Tokens that this process has reserved: ``tokens``, the first due at ``first`` (``time.monotonic()``).

    ``asked`` and ``answered``: when it was reserved.
    """

    tokens: int
    first: float
    asked: float
    answered: float


class SharedRateLimiter:
    """Takes tokens from a bucket that all processes share, a share at a time.

    A thread reserves the next share as the last one ends, as long as senders wait, so a process has one share at most,
    and processes take turns. A share is for those who wait, or as large as the last one that was used up. What is not
    used in time is lost. While the bucket cannot be asked, ``rate`` counts for this process alone, which is logged.
    """

    def __init__(self, rate: Rate, reserve: Reserve, *, name: str) -> None:
        """Create a limiter; ``name`` is what is limited, for the log."""
        self._rate = rate
        self._reserve = reserve
        self._name = name
        self._own = RateLimiter(rate)
        self._most = max(1, int(_SHARE / rate.interval))
        self._lock = threading.Lock()
        self._waiting: deque[_Waiter] = deque()  # empty while the share has tokens
        self._share = _Share(0, 0.0, 0.0, 0.0)
        self._taken = 0  # tokens of the share, used or lost
        self._lost = 0
        self._early = False  # the share was used up long before its tokens would have been lost
        self._reserving = False
        self._ready = False  # False: the next reservation may have to connect first
        self._backoff = Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        self._ask_again = 0.0  # after a failure

    async def wait(self) -> None:
        """Wait for a token, first come, first served in this process. A cancelled wait may have used its token."""
        waiter = None
        with self._lock:
            now = time.monotonic()
            due = self._take(now)
            failing = self._backoff.active
            if due is None and failing:
                due = self._own.take()
            if due is None:
                loop = asyncio.get_running_loop()
                waiter = _Waiter(loop, loop.create_future())
                self._waiting.append(waiter)
            if not self._reserving and (waiter is not None or (failing and now >= self._ask_again)):
                self._reserving = True
                threading.Thread(target=self._reserve_shares, name="openviper-rate", daemon=True).start()
        if waiter is not None:
            due = await waiter.due
        assert due is not None, "taken, or waited for"
        await _sleep_until(due)

    def _take(self, now: float) -> float | None:
        """Take the next token of the share that may be used yet; return when it is due, None if there is none."""
        share, interval = self._share, self._rate.interval
        while self._taken < share.tokens:
            due = share.first + self._taken * interval
            self._taken += 1
            # The bucket may have counted it for as early as the moment at which it was asked.
            late = now - max(due - (share.answered - share.asked), share.asked)
            if late <= _LATE:
                self._early = late < _LATE / 2
                return due
            self._lost += 1
            self._early = False
        return None

    def _next_count(self) -> int:
        """Return how many tokens to reserve: for all who wait, or as many as were used of the last share, or more."""
        used = self._share.tokens - self._lost
        return min(self._most, max(len(self._waiting), 2 * used if self._early else used, 1))

    def _reserve_shares(self) -> None:
        while True:
            with self._lock:
                while self._waiting and self._waiting[0].due.done():
                    self._waiting.popleft()
                failing = self._backoff.active
                if not self._waiting and not failing:
                    self._reserving = False
                    return
                count = 1 if failing else self._next_count()
                ends = self._share.first + (self._share.tokens - 1) * self._rate.interval
                pause = ends - time.monotonic()
            if pause > 0 and not failing:
                time.sleep(pause)
                continue
            try:
                if not self._ready:
                    self._reserve(0)
                asked = time.monotonic()
                wait = self._reserve(count)
                answered = time.monotonic()
                if answered - asked > _LATE:
                    raise TimeoutError(f"the answer took {answered - asked:.1f} s")
            except Exception as error:  # noqa: BLE001 - whatever a client library raises, senders wait for their token
                self._fall_back(error)
                return
            self._serve(_Share(count, answered + wait, asked, answered))
            if failing:
                logger.info("%s is shared by all processes again", self._name)

    def _serve(self, share: _Share) -> None:
        """Use ``share`` for those who wait."""
        with self._lock:
            self._backoff.succeeded()
            self._ready = True
            self._share, self._taken, self._lost = share, 0, 0
            now, given = time.monotonic(), []
            while self._waiting and self._taken < share.tokens:
                waiter = self._waiting.popleft()
                if not waiter.due.done():
                    due = self._take(now)
                    if due is None:
                        self._waiting.appendleft(waiter)
                        break
                    given.append((waiter, due))
        _resolve(given)

    def _fall_back(self, error: Exception) -> None:
        """Serve those who wait from the process's own bucket, and log the first failure."""
        with self._lock:
            first = not self._backoff.active
            if first:
                self._own.drop_saved()
            self._ask_again = time.monotonic() + self._backoff.failed()
            self._reserving = self._ready = False
            given = [(waiter, self._own.take()) for waiter in self._waiting if not waiter.due.done()]
            self._waiting.clear()
        if first:
            logger.warning(
                "%s counts for each process separately until it can be shared again: %s",
                self._name,
                error if str(error) else type(error).__name__,
            )
        _resolve(given)


Limiter = RateLimiter | SharedRateLimiter
_limiters: dict[tuple[str, int, str | None, Rate, Hashable], Limiter] = {}
_limiters_lock = threading.Lock()


def limiter_of(
    host: str, port: int, username: str | None, rate: Rate | None, reserve: Reserve | None
) -> Limiter | None:
    """Return the process's limiter for an account on a server; None if ``rate`` is None.

    ``reserve`` None: the rate counts for this process alone.
    """
    if rate is None:
        return None
    with _limiters_lock:
        limiter = _limiters.get((host, port, username, rate, reserve))
        if limiter is None:
            name = f'EMAIL["rate_limit"] ({rate}) of {host}:{port}'
            limiter = RateLimiter(rate) if reserve is None else SharedRateLimiter(rate, reserve, name=name)
            _limiters[host, port, username, rate, reserve] = limiter
        return limiter


def _forget_in_child() -> None:
    # A thread of the parent may have held a lock, and its reservations are the parent's.
    global _limiters_lock
    _limiters_lock = threading.Lock()
    _limiters.clear()


after_fork_in_child(_forget_in_child)


async def _sleep_until(moment: float) -> None:
    pause = moment - time.monotonic()
    if pause > 0:
        await asyncio.sleep(pause)


def _resolve(given: list[tuple[_Waiter, float]]) -> None:
    """Tell waiters on their event loops when their tokens are due."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Waiter, float]]] = {}
    for each in given:
        by_loop.setdefault(each[0].loop, []).append(each)
    for loop, tokens in by_loop.items():
        with suppress(RuntimeError):  # the loop has ended, and with it its senders
            loop.call_soon_threadsafe(_set_due, tokens)


def _set_due(given: list[tuple[_Waiter, float]]) -> None:
    for waiter, due in given:
        if not waiter.due.done():
            waiter.due.set_result(due)
