"""Keep the connections of one event loop: acquire, release and replace them, at most ``pool_size`` at a time."""

import asyncio
import copy
import logging
from collections import OrderedDict
from collections.abc import Iterable
from contextvars import Context
from dataclasses import replace

from openviper.backoff import Backoff
from openviper.core.email.backends.attempt import mark_waiting
from openviper.core.email.backends.base import PoolStats
from openviper.core.email.backends.brake import Brake
from openviper.core.email.backends.rate_limit import Reserve, limiter_of
from openviper.core.email.backends.smtp.assignment import (
    Capacity,
    MessageLimit,
    Slot,
    State,
    assign,
    has_reached_limit,
    is_fit,
)
from openviper.core.email.backends.smtp.connection import Connection
from openviper.core.email.backends.smtp.errors import (
    ChunkingRefused,
    StaleConnection,
    is_connection_refusal,
    peer_name,
)
from openviper.core.email.backends.smtp.handshake import connect
from openviper.core.email.backends.smtp.oauth2 import TokenSource
from openviper.core.email.backends.smtp.transaction import TransactionOptions, run_recorded_transaction, run_transaction
from openviper.core.email.errors import AuthenticationFailed, ConnectionFailed, DeliveryError, PoolTimeout
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import OpenViperError

__all__ = ["ConnectionPool", "copy_error"]

logger = logging.getLogger("openviper.email")

_ACQUIRE_TIMEOUTS = 6.0  # times ``timeout``: how long a sender waits for a connection
_CANCEL_EVERY = 0.5  # seconds
_QUIT_LIMIT = 2.0  # seconds
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds before connecting again to a server that refused

# Seconds before more connections are asked for than the server allowed. Servers that limit rates count them for a
# minute (Postfix: anvil_rate_time_unit), and a limit of connections seldom changes sooner.
_GROW_AFTER = 60.0

# A server may count a connection for a moment after its end. These are seconds: how long that is, and the pauses
# between attempts to connect again meanwhile.
_STILL_COUNTED = 1.0
_WHILE_CROWDED = (0.1, 0.3, 0.6)

_IDLE, _IN_USE = State.IDLE, State.IN_USE  # a look-up in an enumeration costs as much as a call, at each send

# A server that closes a connection so soon (seconds) after a message closes it for the number of its messages. What
# was found out is forgotten after a while, because servers change.
_CLOSED_AFTER_MESSAGE = 1.0
_KEEP_MESSAGE_LIMIT = 600.0


class ConnectionPool:
    """Connections to one server that are kept between messages. Belongs to the event loop that creates it.

    ``assign`` decides which waiting sender gets which connection, and which to open and to close: first come, first
    served, the latest idle connection first. Senders wait for connections that are being opened, so a server that
    refuses some of them costs no message. What it refused is not asked for again for a minute.

    While the server refuses connections and none is left, senders get its error at once; from the second failure in a
    row, connecting is tried again after pauses that grow, one connection at a time. Until a login has succeeded one
    connection is opened at a time, so that a wrong password is one failed login.
    """

    def __init__(
        self,
        settings: EmailSettings,
        *,
        brake: Brake | None = None,
        reserve: Reserve | None = None,
        acquire_timeout: float | None = None,
        grow_after: float = _GROW_AFTER,
    ) -> None:
        """Create an empty pool.

        ``brake``: asked before each transaction whether mail may be sent; None: it may.
        ``reserve``: reserves tokens of a ``rate_limit`` that all processes share; None: it counts for this process.
        ``acquire_timeout``: seconds that a sender waits for a connection; None: six times ``timeout``. ``grow_after``:
        seconds before more connections are opened than the server allowed.
        """
        self._settings = settings
        self.brake = brake
        self._tokens = TokenSource.from_settings(settings)
        self._peer = peer_name(settings)
        self._acquire_timeout = _ACQUIRE_TIMEOUTS * settings.timeout if acquire_timeout is None else acquire_timeout
        self.options = TransactionOptions(
            one_flight=settings.one_flight,
            allow_partial=settings.allow_partial,
            timeout=settings.timeout,
            data_timeout=settings.data_timeout,
            protocol_log=settings.protocol_log,
        )
        self._transact = run_recorded_transaction if settings.protocol_log else run_transaction
        self._limiter = limiter_of(settings.host, settings.port, settings.username, settings.rate_limit, reserve)
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._slots: list[Slot] = []  # idle ones: the longest idle one first
        self._requests: OrderedDict[asyncio.Future[Connection], None] = OrderedDict()
        self._capacity = Capacity(settings.pool_size, grow_after=grow_after)
        self._message_limit = MessageLimit(keep=_KEEP_MESSAGE_LIMIT)
        self._grow_timer: asyncio.TimerHandle | None = None
        self._backoff = Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        self._paused_until = 0.0
        self._last_error: Exception | None = None  # of the attempt before the pause
        self._logged_in = settings.username is None
        self._chunking = True  # False once the server has refused BDAT as unknown
        self._crowded = False  # several were refused at once while none was open
        self._ended_at = float("-inf")  # when a connection in use last ended
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._all_released: asyncio.Future[None] | None = None
        self._closed = False
        self._dsn_missed = False
        self._sent = 0
        self._reconnects = 0

    @property
    def stats(self) -> PoolStats:
        """Return the pool's numbers at this moment."""
        return PoolStats(
            open=len(self._slots) - self._count(State.OPENING),
            idle=self._count(State.IDLE),
            waiting=len(self._requests),
            sent=self._sent,
            reconnects=self._reconnects,
        )

    @property
    def reachable(self) -> bool | None:
        """False if the last attempt to connect failed and no connection is left; None before the first one."""
        if self._backoff.active:
            return False
        return True if self._sent or len(self._slots) > self._count(State.OPENING) else None

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

        It is sent again on another connection if the first one was lost, or closed by the server as one too many,
        before the message can have been accepted. ``rate_limited`` False: the caller has awaited
        ``wait_for_rate_limit`` itself.

        Raises:
            PoolTimeout: no connection became free in time.
            SendingPaused: sending was paused before the transaction could begin.
            TooManyRecipients: the envelope has more than the server allows; nothing was sent.
            DeliveryError: see ``run_transaction`` and ``connect``.
        """
        if self._limiter is not None and rate_limited:
            await self._limiter.wait()
        mark_waiting()
        connection = self._take_idle() or await self.acquire()
        repeats = 0
        while True:
            if self.brake is not None and self.brake.on:
                self._check_brake(connection, message)
            connection.messages += 1
            try:
                report = await self._transact(connection, message, self.options)
                self.record_sent(connection)
                return report if message.envelope.dsn is None else self.with_dsn(report, connection)
            except StaleConnection as stale:
                repeats += 1
                if repeats > self._settings.pool_size or not self._may_repeat(connection, stale):
                    raise stale.error from stale.__cause__
            finally:
                self.release(connection)
            connection = await self.acquire(first=True)

    def _check_brake(self, connection: Connection, message: OutgoingMessage) -> None:
        """Give the connection back if the message may not be sent."""
        assert self.brake is not None
        try:
            self.brake.check(message.mailer)
        except DeliveryError:
            self.release(connection)
            raise

    def record_sent(self, connection: Connection) -> None:
        """Count a transaction that the server has accepted."""
        connection.reused = True
        self._sent += 1

    def with_dsn(self, report: DeliveryReport, connection: Connection) -> DeliveryReport:
        """Add to the report of a message with a DSN request whether the server offers DSN; log once if it does not."""
        offered = connection.capabilities.dsn
        if not offered and not self._dsn_missed:
            self._dsn_missed = True
            logger.warning("%s does not offer DSN (RFC 3461): messages with dsn= are sent without it", self._peer)
        return report._replace(dsn=offered)

    def should_release(self, connection: Connection, *, in_flight: int, own_waiters: int) -> bool:
        """True if the holder of ``connection`` should begin no further transaction on it.

        ``in_flight``: transactions begun on it and not counted yet; ``own_waiters``: the holder's own pending
        ``acquire`` calls; any other waiter takes precedence.
        """
        return (
            self._closed
            or len(self._requests) > own_waiters
            or connection.messages + in_flight >= connection.max_messages
            or not is_fit(connection, self._loop.time())
        )

    async def acquire(self, *, first: bool = False) -> Connection:
        """Return a connection, to be given back with ``release`` whatever its state.

        ``first`` takes precedence over other waiting senders.

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
        self._requests[waiter] = None
        if first:
            self._requests.move_to_end(waiter, last=False)
        timer = self._loop.call_later(self._acquire_timeout, self._time_out, waiter, context=self._context)
        self._assign()
        mark_waiting()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            raise
        finally:
            timer.cancel()
            self._requests.pop(waiter, None)

    def release(self, connection: Connection) -> None:
        """Take ``connection`` back for the next sender, or close it if it is unusable or has reached its limits."""
        for slot in reversed(self._slots):
            if slot.connection is connection:
                break
        now = self._loop.time()
        if not connection.usable:
            if connection.server_closing and not connection.reused:
                self._record_refusal(slot, now)
            elif connection.reused and not connection.server_closing:
                # The transaction that found it closed is counted, and was none.
                self._record_close(connection, connection.messages - 1, now)
            connection.abort()
            self._remove(slot)
        elif self._closed or has_reached_limit(connection, now):
            self._retire(slot)
        else:
            self._keep_idle(slot, connection, now)
        if self._all_released is not None and not self._count(State.IN_USE) and not self._all_released.done():
            self._all_released.set_result(None)

    def distrust_elders(self, lost: Connection) -> None:
        """Close the connections that have been idle for longer than ``lost``, which was lost while idle.

        A router or firewall that forgot one connection has forgotten the older ones too; each would cost its sender a
        time limit.
        """
        for slot in tuple(self._slots):
            connection = slot.connection
            if slot.state is State.IDLE and connection is not None and connection.idle_since <= lost.idle_since:
                connection.abort()

    def stop_chunking(self) -> None:
        """Send by DATA from now on, because the server offers CHUNKING and does not know BDAT."""
        self._chunking = False
        for slot in self._slots:
            if slot.connection is not None:
                self._apply_settings(slot.connection)

    async def aclose(self, limit: float = 5.0) -> None:
        """Close every connection with QUIT, after at most ``limit`` seconds for those in use; safe to call again."""
        self._closed = True
        for timer in (self._expiry_timer, self._grow_timer):
            if timer is not None:
                timer.cancel()
        self._fail_waiters(self._closed_error())
        opening = [slot.task for slot in self._slots if slot.state is State.OPENING and slot.task is not None]
        for task in opening:
            task.cancel()
        for slot in self._slots:
            if slot.state is State.IDLE:
                self._retire(slot)
        try:
            if self._count(State.IN_USE):
                self._all_released = self._loop.create_future()
                await asyncio.wait((self._all_released,), timeout=limit)
            await _cancelled(opening)
            closing = [slot.task for slot in self._slots if slot.state is State.CLOSING and slot.task is not None]
            await asyncio.gather(*closing, return_exceptions=True)
        finally:
            for slot in tuple(self._slots):
                if slot.state is State.IN_USE and slot.connection is not None:
                    slot.connection.abort()

    def _take_idle(self) -> Connection | None:
        """Take the latest idle connection: the usual case of ``assign``, at once. None while senders are waiting."""
        if self._requests:
            return None
        now = self._loop.time()
        for slot in reversed(self._slots):
            connection = slot.connection
            if slot.state is _IDLE and connection is not None and is_fit(connection, now):
                slot.state = _IN_USE
                return connection
        return None

    def _assign(self) -> None:
        """Carry out the decisions of ``assign``."""
        if self._closed or not self._requests:
            return
        now = self._loop.time()
        plan = assign(
            self._slots,
            len(self._requests),
            allowed=self._capacity.allowed(now),
            at_once=1 if self._backoff.active or not self._logged_in else self._settings.pool_size,
            paused=now < self._paused_until,
            now=now,
        )
        for slot in plan.close:
            self._retire(slot)
        for slot in plan.serve:
            self._serve(slot)
        for _ in range(plan.open):
            slot = Slot()
            self._slots.append(slot)
            slot.task = self._loop.create_task(self._open(slot), context=Context())
        if plan.fail and self._last_error is not None:
            self._fail_waiters(self._last_error)
        if self._requests and self._grow_timer is None and (moment := self._capacity.grows_at(now)) is not None:
            # Those who wait for a connection that is in use for long get another one then.
            self._grow_timer = self._loop.call_at(moment, self._grow, context=self._context)

    def _grow(self) -> None:
        self._grow_timer = None
        self._assign()

    def _serve(self, slot: Slot) -> None:
        """Give the connection to the first waiting sender that was not cancelled."""
        while self._requests:
            waiter, _ = self._requests.popitem(last=False)
            if not waiter.done():
                assert slot.connection is not None
                slot.state = State.IN_USE
                waiter.set_result(slot.connection)
                return

    def _keep_idle(self, slot: Slot, connection: Connection, now: float) -> None:
        """Make the connection available, to waiting senders first."""
        slot.state = _IDLE
        connection.idle_since = now
        if self._slots[-1] is not slot:
            self._slots.remove(slot)
            self._slots.append(slot)
        if self._requests:
            self._assign()
            if slot.state is not State.IDLE:
                return
        connection.reused = True
        if self._expiry_timer is None:
            self._schedule_expiry()

    def _remove(self, slot: Slot) -> None:
        """Forget a connection that has ended."""
        self._slots.remove(slot)
        self._ended_at = self._loop.time()
        self._assign()

    def _drop_idle(self, connection: Connection) -> None:
        for slot in self._slots:
            if slot.connection is connection and slot.state is State.IDLE:
                self._slots.remove(slot)
                self._record_close(connection, connection.messages, self._loop.time())
                return

    def _record_close(self, connection: Connection, messages: int, now: float) -> None:
        """Learn from a close after ``messages`` whether the server limits them; the other connections end before it."""
        if now - connection.idle_since >= _CLOSED_AFTER_MESSAGE or messages <= 0:
            return
        if self._message_limit.record_close(messages, opened_at=connection.opened_at, now=now):
            for slot in self._slots:
                if slot.connection is not None:
                    self._apply_settings(slot.connection)

    def _retire(self, slot: Slot) -> None:
        """Close the connection with QUIT."""
        assert slot.connection is not None
        slot.state = State.CLOSING
        quitting = slot.connection.quit(min(_QUIT_LIMIT, self._settings.timeout))
        slot.task = self._loop.create_task(quitting, context=Context())
        slot.task.add_done_callback(lambda _: self._remove(slot), context=self._context)

    async def _open(self, slot: Slot) -> None:
        try:
            connection = await self._connect(slot)
        except Exception as error:  # noqa: BLE001 - the waiters must get the error, whatever it is
            self._on_connect_failed(slot, error)
        except BaseException:
            self._slots.remove(slot)
            raise
        else:
            self._on_connected(slot, connection)

    async def _connect(self, slot: Slot) -> Connection:
        """Open a connection; try again if the server may have refused it because of others that have just ended."""
        for pause in _WHILE_CROWDED:
            try:
                return await connect(self._settings, self._tokens)
            except ConnectionFailed as error:
                if not (self._is_crowded(slot) and is_connection_refusal(error)):
                    raise
            await asyncio.sleep(pause)
        return await connect(self._settings, self._tokens)

    def _is_crowded(self, slot: Slot) -> bool:
        """True if the server may still have counted other connections as it refused that of ``slot``."""
        if self._loop.time() - self._ended_at < _STILL_COUNTED:
            return True
        return self._crowded and all(other is slot or other.state is State.CLOSING for other in self._slots)

    def _on_connected(self, slot: Slot, connection: Connection) -> None:
        self._backoff.succeeded()
        self._paused_until = 0.0
        self._last_error = None
        self._logged_in = True
        self._crowded = False
        if self._closed:
            self._slots.remove(slot)
            connection.abort()
            return
        self._apply_settings(connection)
        connection.on_closed = self._drop_idle
        slot.connection, slot.task = connection, None
        self._keep_idle(slot, connection, connection.opened_at)
        self._capacity.record_opened(self._count(State.IDLE) + self._count(State.IN_USE))
        self._assign()

    def _apply_settings(self, connection: Connection) -> None:
        """Set the limits of ``connection``: those of the settings, or lower ones of the server."""
        settings, capabilities = self._settings, connection.capabilities
        most = settings.max_messages_per_connection
        learned = self._message_limit.current(self._loop.time())
        connection.max_messages = min(most, capabilities.max_messages or most, learned or most)
        connection.expires_at = connection.opened_at + settings.max_connection_age
        if not self._chunking:
            connection.capabilities = replace(capabilities, chunking=False)

    def _on_connect_failed(self, slot: Slot, error: Exception) -> None:
        now = self._loop.time()
        if isinstance(error, AuthenticationFailed):
            self._logged_in = False
        if self._record_refusal(slot, now):
            self._slots.remove(slot)
            self._assign()
            return
        self._slots.remove(slot)
        self._pause(error, now)

    def _record_refusal(self, slot: Slot, now: float) -> bool:
        """Shrink the pool to its other connections; False if none is open or being opened."""
        others = [other.state for other in self._slots if other is not slot and other.state is not State.CLOSING]
        if others:
            self._capacity.record_refusal(len(others), now)
        self._crowded = bool(others) and all(state is State.OPENING for state in others)
        return bool(others)

    def _pause(self, error: Exception, now: float) -> None:
        """Fail the waiting senders with ``error``, from the second failure in a row also those of the next moments."""
        self._capacity.reset()
        self._last_error = error
        repeated = self._backoff.active
        pause = self._backoff.failed()
        self._paused_until = now + pause if repeated else now
        self._fail_waiters(error)

    def _may_repeat(self, connection: Connection, stale: StaleConnection) -> bool:
        """True if a message that found ``connection`` unusable should be sent on another one."""
        if isinstance(stale, ChunkingRefused):
            self.stop_chunking()
            return True
        if connection.reused:
            self._reconnects += 1
            if not connection.server_closing:
                self.distrust_elders(connection)
            return True
        if not connection.server_closing:
            return False
        if any(slot.connection is not connection and slot.state is not State.CLOSING for slot in self._slots):
            return True
        self._pause(stale.error, self._loop.time())
        return False

    def _count(self, state: State) -> int:
        return sum(slot.state is state for slot in self._slots)

    def _fail_waiters(self, error: Exception) -> None:
        """Raise ``error`` in all waiting senders."""
        while self._requests:
            waiter, _ = self._requests.popitem(last=False)
            if not waiter.done():
                waiter.set_exception(copy_error(error))

    def _time_out(self, waiter: asyncio.Future[Connection]) -> None:
        if not waiter.done():
            text = (
                f'{self._peer}: none of {self._settings.pool_size} connections (EMAIL["pool_size"]) became free '
                f"in {self._acquire_timeout:g} s (docs: troubleshooting#slow)"
            )
            waiter.set_exception(PoolTimeout(text, temporary=True, summary=text))

    def _closed_error(self) -> DeliveryError:
        text = f"{self._peer}: the connection pool is closed"
        return ConnectionFailed(text, temporary=True, summary=text)

    def _schedule_expiry(self) -> None:
        for slot in self._slots:
            if slot.state is State.IDLE and slot.connection is not None:
                when = slot.connection.idle_since + self._settings.idle_timeout
                self._expiry_timer = self._loop.call_at(when, self._retire_idle, context=self._context)
                return

    def _retire_idle(self) -> None:
        """Close the connections that have been idle for ``idle_timeout``."""
        self._expiry_timer = None
        before = self._loop.time() - self._settings.idle_timeout
        for slot in self._slots:
            if slot.state is State.IDLE and slot.connection is not None and slot.connection.idle_since <= before:
                self._retire(slot)
        self._schedule_expiry()


def copy_error(error: Exception) -> Exception:
    """Return a copy of an error, so that its many senders do not share a traceback."""
    if not isinstance(error, OpenViperError):
        return error.with_traceback(None)
    duplicate = copy.copy(error)
    duplicate.__cause__ = error.__cause__
    return duplicate


async def _cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel ``tasks`` until they end: up to Python 3.11 ``wait_for`` can swallow a cancellation (cpython#86296)."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_EVERY)
