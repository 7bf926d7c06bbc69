"""Keep the connections of one event loop: acquire, release and replace them, at most ``pool_size`` at a time."""

import asyncio
import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextvars import Context
from dataclasses import dataclass

from openviper.backoff import Backoff
from openviper.core.email.backends.attempt import mark_started, mark_waiting
from openviper.core.email.backends.smtp.connection import Connection
from openviper.core.email.backends.smtp.errors import StaleConnection, peer_name
from openviper.core.email.backends.smtp.handshake import connect
from openviper.core.email.backends.smtp.oauth2 import TokenSource
from openviper.core.email.backends.smtp.transaction import TransactionOptions, run_transaction
from openviper.core.email.errors import ConnectionFailed, DeliveryError, PoolTimeout
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings
from openviper.core.email.settings.units import Rate

__all__ = ["ConnectionPool", "PoolStats"]

_ACQUIRE_TIMEOUTS = 6.0  # times ``timeout``: how long a sender waits for a connection
_CANCEL_EVERY = 0.5  # seconds
_QUIT_LIMIT = 2.0  # seconds
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds before connecting again to a server that refused


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool's numbers at one moment.

    ``open``: connections, idle ones included; ``waiting``: senders without a connection; ``sent``: transactions that
    the server accepted; ``reconnects``: transactions repeated because their idle connection had been lost.
    """

    open: int
    idle: int
    waiting: int
    sent: int
    reconnects: int


class _RateLimiter:
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
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now - self._burst + self._interval)
            due = self._next
            self._next += self._interval
        if due > now:
            await asyncio.sleep(due - now)


_limiters: dict[tuple[str, int, str | None, Rate], _RateLimiter] = {}
_limiters_lock = threading.Lock()


def _shared_limiter(host: str, port: int, username: str | None, rate: Rate | None) -> _RateLimiter | None:
    """Return the process's limiter for an account on a server; None if ``rate`` is None."""
    if rate is None:
        return None
    with _limiters_lock:
        return _limiters.setdefault((host, port, username, rate), _RateLimiter(rate))


class ConnectionPool:
    """Connections to one server that are kept between messages. Belongs to the event loop that creates it.

    It grows while senders wait, serves them first come, first served, uses the latest idle connection first so that the
    others can expire, and drops an idle connection as soon as the server closes it. While the server refuses
    connections and none is left, senders get its error at once; further connections are tried one at a time, with
    increasing delays.
    """

    def __init__(self, settings: EmailSettings, *, acquire_timeout: float | None = None) -> None:
        """``acquire_timeout``: seconds that a sender waits for a connection; None: six times ``timeout``."""
        self._settings = settings
        self._tokens = TokenSource.from_settings(settings)
        self._peer = peer_name(settings)
        self._acquire_timeout = _ACQUIRE_TIMEOUTS * settings.timeout if acquire_timeout is None else acquire_timeout
        self.options = TransactionOptions(
            one_flight=settings.one_flight,
            allow_partial=settings.allow_partial,
            timeout=settings.timeout,
            data_timeout=settings.data_timeout,
        )
        self._limiter = _shared_limiter(settings.host, settings.port, settings.username, settings.rate_limit)
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._idle: list[Connection] = []  # the longest idle one first
        self._busy: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._waiters: OrderedDict[asyncio.Future[Connection], None] = OrderedDict()
        self._backoff = Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        self._not_before = 0.0
        self._grow_timer: asyncio.TimerHandle | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._all_released: asyncio.Future[None] | None = None
        self._closed = False
        self._sent = 0
        self._reconnects = 0

    @property
    def stats(self) -> PoolStats:
        """Return the pool's numbers at this moment."""
        return PoolStats(
            open=len(self._idle) + len(self._busy) + len(self._closing),
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

    async def wait_for_rate_limit(self) -> None:
        """Wait until ``EMAIL["rate_limit"]`` allows another transaction."""
        if self._limiter is not None:
            await self._limiter.wait()

    async def send(self, message: OutgoingMessage, *, rate_limited: bool = True) -> DeliveryReport:
        """Send ``message`` in one transaction, on an idle connection or a new one.

        An idle connection that turns out to be lost before the server can have accepted the message is replaced once.
        ``rate_limited`` False: the caller has awaited ``wait_for_rate_limit`` itself.

        Raises:
            PoolTimeout: no connection became free in time.
            DeliveryError: see ``run_transaction`` and ``connect``.
        """
        if self._limiter is not None and rate_limited:
            await self._limiter.wait()
        connection = self._take_idle() or await self.acquire()
        mark_started()
        try:
            try:
                report = await run_transaction(connection, message, self.options)
            except StaleConnection as stale:
                if not connection.reused:
                    raise stale.error from stale.__cause__
                connection = await self._replace(connection)
                report = await self._send_on_new(connection, message)
            self.record_sent(connection)
            return report
        finally:
            self.release(connection)

    def record_sent(self, connection: Connection) -> None:
        """Count a transaction that the server has accepted."""
        connection.messages += 1
        self._sent += 1

    def should_release(self, connection: Connection, *, in_flight: int, own_waiters: int) -> bool:
        """True if the holder of ``connection`` should begin no further transaction on it.

        ``in_flight``: transactions begun on it and not counted yet; ``own_waiters``: the holder's own pending
        ``acquire`` calls; any other waiter takes precedence.
        """
        return (
            self._closed
            or len(self._waiters) > own_waiters
            or connection.messages + in_flight >= self._settings.max_messages_per_connection
            or self._is_unfit(connection)
        )

    async def acquire(self) -> Connection:
        """Return a connection, to be given back with ``release`` whatever its state.

        Raises:
            PoolTimeout: none became free in time.
            DeliveryError: the server is unreachable and no connection is left, or the pool is closed.
        """
        if self._closed:
            raise self._closed_error()
        connection = self._take_idle()
        if connection is not None:
            return connection
        waiter: asyncio.Future[Connection] = self._loop.create_future()
        self._waiters[waiter] = None
        timer = self._loop.call_later(self._acquire_timeout, self._time_out, waiter, context=self._context)
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
        """Take ``connection`` back for the next sender, or close it if it is unusable or has reached its limits."""
        self._busy.discard(connection)
        connection.reused = True
        now = self._loop.time()
        if not connection.usable:
            connection.abort()
            self._grow()
        elif self._closed or self._is_expired(connection, now):
            self._retire(connection)
        else:
            self._offer(connection, now)
        if self._all_released is not None and not self._busy and not self._all_released.done():
            self._all_released.set_result(None)

    async def aclose(self, limit: float = 5.0) -> None:
        """Close every connection with QUIT, after at most ``limit`` seconds for those in use; safe to call again."""
        self._closed = True
        for timer in (self._grow_timer, self._expiry_timer):
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
                self._all_released = self._loop.create_future()
                await asyncio.wait((self._all_released,), timeout=limit)
            await _cancelled(opening)
            await asyncio.gather(*self._closing, return_exceptions=True)
        finally:
            for connection in tuple(self._busy):
                connection.abort()

    def _take_idle(self) -> Connection | None:
        """Mark an idle connection as busy and return it; None if there is none, or other senders are waiting."""
        if self._waiters:
            return None
        while self._idle:
            connection = self._idle.pop()
            if not self._is_unfit(connection):
                self._busy.add(connection)
                return connection
            self._retire(connection)
        return None

    async def _replace(self, lost: Connection) -> Connection:
        """Open a connection in the place of ``lost``."""
        self._reconnects += 1
        task = self._loop.create_task(connect(self._settings, self._tokens), context=Context())
        try:
            connection = await task
        except BaseException:
            task.cancel()
            task.add_done_callback(_abort_result)
            raise
        self._backoff.succeeded()
        self._busy.discard(lost)
        self._busy.add(connection)
        return connection

    async def _send_on_new(self, connection: Connection, message: OutgoingMessage) -> DeliveryReport:
        try:
            return await run_transaction(connection, message, self.options)
        except StaleConnection as stale:
            raise stale.error from stale.__cause__

    def _offer(self, connection: Connection, now: float) -> None:
        """Assign ``connection`` to the first waiter, or keep it idle."""
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                self._busy.add(connection)
                waiter.set_result(connection)
                return
        connection.reused = True
        connection.idle_since = now
        connection.on_closed = self._drop_idle
        self._idle.append(connection)
        if self._expiry_timer is None:
            self._schedule_expiry()

    def _drop_idle(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def _is_unfit(self, connection: Connection) -> bool:
        return not connection.usable or self._is_expired(connection, self._loop.time())

    def _is_expired(self, connection: Connection, now: float) -> bool:
        settings = self._settings
        return (
            connection.messages >= settings.max_messages_per_connection
            or now - connection.opened_at >= settings.max_connection_age
        )

    def _retire(self, connection: Connection) -> None:
        connection.on_closed = None
        task = self._loop.create_task(connection.quit(min(_QUIT_LIMIT, self._settings.timeout)), context=Context())
        self._closing.add(task)
        task.add_done_callback(self._on_retired, context=self._context)

    def _on_retired(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        self._grow()

    def _grow(self) -> None:
        """Open connections for the waiters, as far as ``pool_size`` and the back-off allow."""
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
        existing = len(self._idle) + len(self._busy) + len(self._opening) + len(self._closing)
        for _ in range(min(wanted, self._settings.pool_size - existing)):
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
            connection = await connect(self._settings, self._tokens)
        except Exception as error:  # noqa: BLE001 - the waiters must get the error, whatever it is
            self._opening.discard(task)
            self._on_connect_failed(error)
        else:
            self._opening.discard(task)
            self._backoff.succeeded()
            if self._closed:
                connection.abort()
            else:
                self._offer(connection, self._loop.time())
                self._grow()

    def _on_connect_failed(self, error: Exception) -> None:
        self._not_before = self._loop.time() + self._backoff.failed()
        if not (self._busy or self._idle):
            self._fail_waiters(error, all_of_them=not self._opening)
        self._grow()

    def _fail_waiters(self, error: Exception, *, all_of_them: bool) -> None:
        """Raise ``error`` in the first waiter, or in all of them."""
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_exception(_copy(error))
                if not all_of_them:
                    return

    def _time_out(self, waiter: asyncio.Future[Connection]) -> None:
        if not waiter.done():
            waiter.set_exception(
                PoolTimeout(
                    f'{self._peer}: none of {self._settings.pool_size} connections (EMAIL["pool_size"]) became free '
                    f"in {self._acquire_timeout:g} s",
                    temporary=True,
                )
            )

    def _closed_error(self) -> DeliveryError:
        return ConnectionFailed(f"{self._peer}: the connection pool is closed", temporary=True)

    def _schedule_expiry(self) -> None:
        if self._idle:
            when = self._idle[0].idle_since + self._settings.idle_timeout
            self._expiry_timer = self._loop.call_at(when, self._retire_idle, context=self._context)

    def _retire_idle(self) -> None:
        """Close the connections that have been idle for ``idle_timeout``."""
        self._expiry_timer = None
        now = self._loop.time()
        while self._idle and now - self._idle[0].idle_since >= self._settings.idle_timeout:
            self._retire(self._idle.pop(0))
        self._schedule_expiry()


def _copy(error: Exception) -> Exception:
    """Return a copy of a delivery error, so that its many senders do not share a traceback."""
    if not isinstance(error, DeliveryError):
        return error
    duplicate = copy.copy(error)
    duplicate.__cause__ = error.__cause__
    return duplicate


def _abort_result(task: asyncio.Task[Connection]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().abort()


async def _cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel ``tasks`` until they end: up to Python 3.11 ``wait_for`` can swallow a cancellation (cpython#86296)."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_EVERY)
