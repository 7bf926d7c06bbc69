"""The connections of one event loop: lent, taken back, replaced, and never more of them than ``pool_size``."""

import asyncio
import copy
import threading
import time
from collections import OrderedDict
from contextvars import Context
from dataclasses import dataclass

from openviper.backoff import Backoff
from openviper.core.email.backends.attempt import mark_started, mark_waiting
from openviper.core.email.backends.smtp.connection import Connection
from openviper.core.email.backends.smtp.errors import StaleConnection, peer_name
from openviper.core.email.backends.smtp.handshake import connect
from openviper.core.email.backends.smtp.transaction import TransferOptions, transfer
from openviper.core.email.errors import ConnectionFailed, DeliveryError, PoolTimeout
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings
from openviper.core.email.settings.units import Rate

__all__ = ["ConnectionPool", "PoolStats", "RateLimiter", "shared_limiter"]

# Times ``timeout``: how long a sender may wait for a connection.
_PATIENCE = 6.0
_QUIT_LIMIT = 2.0  # seconds
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds before connecting again to a server that refused


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool at one moment.

    ``open``: connections that exist, idle ones included; ``waiting``: senders without one; ``sent``: transactions that
    the server accepted; ``reconnects``: transactions that were repeated because their kept connection was gone.
    """

    open: int
    idle: int
    waiting: int
    sent: int
    reconnects: int


class RateLimiter:
    """Lets one transaction through for each token; a second's worth of tokens (at least one) may be saved up."""

    def __init__(self, rate: Rate) -> None:
        self._interval = rate.interval
        self._burst = max(1.0, rate.count / rate.period) * rate.interval
        self._lock = threading.Lock()
        self._next = 0.0  # when the next token is due, were none ever saved up

    async def wait(self) -> None:
        """Return when it is this caller's turn: first come, first served. A cancelled wait has used its turn up."""
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now - self._burst + self._interval)
            due = self._next
            self._next += self._interval
        if due > now:
            await asyncio.sleep(due - now)


class ConnectionPool:
    """Sends over kept connections. Belongs to the event loop it is made in.

    Grows while senders wait, serves them first come, first served, uses the latest idle connection first so that the
    others can expire, and hears at once when an idle one dies. While the server refuses connections and none is left,
    senders get its error at once; further attempts are made one at a time, with growing pauses.
    """

    def __init__(self, settings: EmailSettings, *, patience: float | None = None) -> None:
        """``patience``: seconds that a sender waits for a connection; None: six times ``timeout``."""
        self._settings = settings
        self._peer = peer_name(settings)
        self._patience = _PATIENCE * settings.timeout if patience is None else patience
        self.options = TransferOptions(
            one_flight=settings.one_flight,
            allow_partial=settings.allow_partial,
            timeout=settings.timeout,
            data_timeout=settings.data_timeout,
        )
        self._limiter = shared_limiter(settings.host, settings.port, settings.username, settings.rate_limit)
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._idle: list[Connection] = []  # the longest idle one first
        self._busy: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._waiters: OrderedDict[asyncio.Future[Connection], None] = OrderedDict()
        self._backoff = Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        self._not_before = 0.0
        self._grow_timer: asyncio.TimerHandle | None = None
        self._reap_timer: asyncio.TimerHandle | None = None
        self._returned: asyncio.Future[None] | None = None
        self._closed = False
        self._sent = 0
        self._reconnects = 0

    @property
    def stats(self) -> PoolStats:
        """What it holds and has done."""
        return PoolStats(
            open=len(self._idle) + len(self._busy) + len(self._leaving),
            idle=len(self._idle),
            waiting=len(self._waiters),
            sent=self._sent,
            reconnects=self._reconnects,
        )

    async def warm(self) -> None:
        """Open one connection for later.

        Raises:
            DeliveryError: it could not be opened.
        """
        self.release(await self.acquire())

    async def turn(self) -> None:
        """Wait until ``EMAIL["rate_limit"]`` allows another transaction."""
        if self._limiter is not None:
            await self._limiter.wait()

    async def send(self, message: OutgoingMessage, *, turn_taken: bool = False) -> DeliveryReport:
        """One transaction, on a kept connection or a new one; after its ``turn``, unless that was waited for.

        A kept connection that turns out to be gone before the message can have been taken is replaced once.

        Raises:
            PoolTimeout: no connection became free in time.
            DeliveryError: see ``transfer`` and ``connect``.
        """
        if self._limiter is not None and not turn_taken:
            await self._limiter.wait()
        connection = self._idle_one() or await self.acquire()
        mark_started()
        try:
            try:
                outcome = await transfer(connection, message, self.options)
            except StaleConnection as stale:
                if not connection.kept:
                    raise stale.error from stale.__cause__
                connection = await self._replace(connection)
                outcome = await self._send_afresh(connection, message)
            self.note_sent(connection)
            return outcome
        finally:
            self.release(connection)

    def note_sent(self, connection: Connection) -> None:
        """Count a transaction that the server has accepted."""
        connection.messages += 1
        self._sent += 1

    def wants_back(self, connection: Connection, *, under_way: int, waiting: int) -> bool:
        """True when who was lent ``connection`` should begin nothing further on it.

        ``under_way``: transactions begun on it and not counted yet; ``waiting``: calls of ``acquire`` of the borrower
        himself, besides which nobody may be waiting.
        """
        return (
            self._closed
            or len(self._waiters) > waiting
            or connection.messages + under_way >= self._settings.max_messages_per_connection
            or self._worn_out(connection)
        )

    async def acquire(self) -> Connection:
        """Lend a connection; give it back with ``release``, whatever has become of it.

        Raises:
            PoolTimeout: none became free within ``patience``.
            DeliveryError: the server cannot be reached and no connection is left, or the pool is closed.
        """
        if self._closed:
            raise self._closed_error()
        connection = self._idle_one()
        if connection is not None:
            return connection
        waiter: asyncio.Future[Connection] = self._loop.create_future()
        self._waiters[waiter] = None
        timer = self._loop.call_later(self._patience, self._give_up, waiter, context=self._context)
        self._grow()
        mark_waiting()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            raise
        finally:
            timer.cancel()
            self._waiters.pop(waiter, None)

    def release(self, connection: Connection) -> None:
        """Take a connection back: for the next sender, or to be closed when it is worn out or broken."""
        self._busy.discard(connection)
        connection.kept = True
        now = self._loop.time()
        if not connection.usable:
            connection.abort()
            self._grow()
        elif self._closed or self._had_its_time(connection, now):
            self._retire(connection)
        else:
            self._offer(connection, now)
        if self._returned is not None and not self._busy and not self._returned.done():
            self._returned.set_result(None)

    async def aclose(self, limit: float = 5.0) -> None:
        """Close every connection with QUIT; those in use get up to ``limit`` seconds to finish. May be called again."""
        self._closed = True
        for timer in (self._grow_timer, self._reap_timer):
            if timer is not None:
                timer.cancel()
        self._fail_waiters(self._closed_error(), all_of_them=True)
        opening = tuple(self._opening)
        for task in opening:
            task.cancel()
        while self._idle:
            self._retire(self._idle.pop())
        try:
            if self._busy:
                self._returned = self._loop.create_future()
                await asyncio.wait((self._returned,), timeout=limit)
            await asyncio.gather(*opening, *self._leaving, return_exceptions=True)
        finally:
            for connection in tuple(self._busy):
                connection.abort()

    # Inside

    def _idle_one(self) -> Connection | None:
        """A connection that waits for nobody else, lent."""
        if self._waiters:
            return None
        while self._idle:
            connection = self._idle.pop()
            if not self._worn_out(connection):
                self._busy.add(connection)
                return connection
            self._retire(connection)
        return None

    async def _replace(self, gone: Connection) -> Connection:
        """A fresh connection in the place of one that is gone."""
        self._reconnects += 1
        task = self._loop.create_task(connect(self._settings), context=Context())
        try:
            fresh = await task
        except BaseException:
            task.cancel()
            task.add_done_callback(_abort_result)
            raise
        self._backoff.succeeded()
        self._busy.discard(gone)
        self._busy.add(fresh)
        return fresh

    async def _send_afresh(self, connection: Connection, message: OutgoingMessage) -> DeliveryReport:
        try:
            return await transfer(connection, message, self.options)
        except StaleConnection as stale:
            raise stale.error from stale.__cause__

    def _offer(self, connection: Connection, now: float) -> None:
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                self._busy.add(connection)
                waiter.set_result(connection)
                return
        connection.kept = True
        connection.idle_since = now
        connection.on_closed = self._idle_one_died
        self._idle.append(connection)
        if self._reap_timer is None:
            self._schedule_reaping()

    def _idle_one_died(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def _worn_out(self, connection: Connection) -> bool:
        return not connection.usable or self._had_its_time(connection, self._loop.time())

    def _had_its_time(self, connection: Connection, now: float) -> bool:
        settings = self._settings
        return (
            connection.messages >= settings.max_messages_per_connection
            or now - connection.opened_at >= settings.max_connection_age
        )

    def _retire(self, connection: Connection) -> None:
        connection.on_closed = None
        task = self._loop.create_task(connection.quit(min(_QUIT_LIMIT, self._settings.timeout)), context=Context())
        self._leaving.add(task)
        task.add_done_callback(self._left, context=self._context)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        self._grow()

    # Growing

    def _grow(self) -> None:
        if self._closed or not self._waiters:
            return
        wanted = len(self._waiters) - len(self._opening)
        if self._backoff.active:
            now = self._loop.time()
            if now < self._not_before:
                if self._grow_timer is None:
                    self._grow_timer = self._loop.call_at(self._not_before, self._grow_later, context=self._context)
                return
            wanted = 0 if self._opening else 1
        taken = len(self._idle) + len(self._busy) + len(self._opening) + len(self._leaving)
        for _ in range(min(wanted, self._settings.pool_size - taken)):
            task = self._loop.create_task(self._open(), context=Context())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard, context=self._context)

    def _grow_later(self) -> None:
        self._grow_timer = None
        self._grow()

    async def _open(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            connection = await connect(self._settings)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._opening.discard(task)
            self._refused(error)
        else:
            self._opening.discard(task)
            self._backoff.succeeded()
            if self._closed:
                connection.abort()
            else:
                self._offer(connection, self._loop.time())
                self._grow()

    def _refused(self, error: Exception) -> None:
        self._not_before = self._loop.time() + self._backoff.failed()
        if not (self._busy or self._idle):
            self._fail_waiters(error, all_of_them=not self._opening)
        self._grow()

    def _fail_waiters(self, error: Exception, *, all_of_them: bool) -> None:
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_exception(_copy(error))
                if not all_of_them:
                    return

    def _give_up(self, waiter: asyncio.Future[Connection]) -> None:
        if not waiter.done():
            waiter.set_exception(
                PoolTimeout(
                    f'{self._peer}: none of {self._settings.pool_size} connections (EMAIL["pool_size"]) became free '
                    f"in {self._patience:g} s",
                    temporary=True,
                )
            )

    def _closed_error(self) -> DeliveryError:
        return ConnectionFailed(f"{self._peer}: the connection pool is closed", temporary=True)

    # Shrinking

    def _schedule_reaping(self) -> None:
        if self._idle:
            when = self._idle[0].idle_since + self._settings.idle_timeout
            self._reap_timer = self._loop.call_at(when, self._reap, context=self._context)

    def _reap(self) -> None:
        self._reap_timer = None
        now = self._loop.time()
        while self._idle and now - self._idle[0].idle_since >= self._settings.idle_timeout:
            self._retire(self._idle.pop(0))
        self._schedule_reaping()


def _copy(error: Exception) -> Exception:
    """An error of its own for each of many senders, so that they do not share a traceback."""
    if not isinstance(error, DeliveryError):
        return error
    duplicate = copy.copy(error)
    duplicate.__cause__ = error.__cause__
    return duplicate


def _abort_result(task: asyncio.Task[Connection]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().abort()


_limiters: dict[tuple[str, int, str | None, Rate], RateLimiter] = {}
_limiters_lock = threading.Lock()


def shared_limiter(host: str, port: int, username: str | None, rate: Rate | None) -> RateLimiter | None:
    """The process's limiter for an account on a server; None without a limit."""
    if rate is None:
        return None
    with _limiters_lock:
        return _limiters.setdefault((host, port, username, rate), RateLimiter(rate))
