"""Pipeline several transactions on one connection without waiting for replies (RFC 2920, RFC 3030).

Each message is one flight: RSET, MAIL, RCPT for each recipient, and BDAT LAST. After a refusal the client cannot know
whether the server still has a transaction open, in which a further MAIL is refused (503) and a further RCPT adds to the
recipients of the earlier message. RSET at the start of each flight keeps one message's recipients out of another, so
only connections whose server has accepted RSET are used.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, replace

from openviper.core.email.backends.base import PoolStats
from openviper.core.email.backends.brake import Brake
from openviper.core.email.backends.smtp.commands import envelope_commands
from openviper.core.email.backends.smtp.connection import TRUSTED_FOR, Connection, Exchange
from openviper.core.email.backends.smtp.content import check_content
from openviper.core.email.backends.smtp.dialogue import UNKNOWN_COMMAND, Dialogue
from openviper.core.email.backends.smtp.errors import ChunkingRefused, StaleConnection, WireFailure, wire_error
from openviper.core.email.backends.smtp.pool import ConnectionPool, copy_error
from openviper.core.email.backends.smtp.protocol_log import ProtocolLog
from openviper.core.email.backends.smtp.replies import SERVER_CLOSING, Reply
from openviper.core.email.backends.smtp.transaction import TransactionOptions, check_limits
from openviper.core.email.errors import (
    AuthenticationFailed,
    DeliveryError,
    MessageRefused,
    PoolTimeout,
    RecipientsRefused,
)
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import OutgoingMessage

__all__ = ["NotAccepted", "PipelinedConnection", "PipelinedSender"]

_MAX_IN_FLIGHT = 20  # messages without a reply on one connection
_MAX_IN_FLIGHT_BYTES = 256 * 1024
_WORTH_A_CONNECTION = 20  # waiting messages for which a further connection is opened

_BAD_SEQUENCE = 503
_COMPLETED = 250


class NotAccepted(Exception):
    """The server has certainly neither accepted nor refused the message: it may be sent again."""


class PipelinedConnection:
    """A connection with up to 20 messages in flight, each of which has a reservation.

    After ``broken`` was set no further message is sent; the connection is closed with its last reservation.
    """

    def __init__(self, connection: Connection, options: TransactionOptions, brake: Brake | None = None) -> None:
        self.connection = connection
        self._brake = brake
        self.in_flight = 0
        self.broken = False
        self._bytes = 0
        self._time_limit = 0.0
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._write_lock = asyncio.Lock()
        self._last: Exchange | None = None
        self._misaligned = False

    @property
    def closed(self) -> bool:
        """True if no further message may be sent on this connection."""
        return self.broken or not self.connection.usable or not self.connection.capabilities.chunking

    def has_room(self, size: int) -> bool:
        """True if a message of ``size`` bytes may be in flight as well."""
        return self.in_flight < _MAX_IN_FLIGHT and (self.in_flight == 0 or self._bytes + size <= _MAX_IN_FLIGHT_BYTES)

    def reserve(self, size: int) -> None:
        """Reserve room for a message of ``size`` bytes, until ``cancel_reservation``."""
        self.in_flight += 1
        self._bytes += size

    def cancel_reservation(self, size: int) -> None:
        """Free the room for a message of ``size`` bytes, and count its transaction."""
        self.in_flight -= 1
        self._bytes -= size
        self.connection.messages += 1

    def finish(self) -> None:
        """Prepare the connection for other uses, or close it if it is broken; call it without reservations only."""
        if self.broken:
            self.connection.abort()
        self.connection.expire_at(float("inf"))

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Send ``message``, for which the caller has a reservation.

        Raises:
            NotAccepted: the message will not be delivered, and may be sent again.
            SendingPaused: sending was paused before the transaction could begin.
            ChunkingRefused: likewise, by DATA, because the server does not know BDAT.
            TooManyRecipients: the envelope has more than the server allows; nothing was sent.
            InvalidMessage: the content has invalid line ends; nothing was sent.
            MessageRefused: the server refused the sender or the content.
            RecipientsRefused: all of them.
            DeliveryError: the connection failed; ``uncertain`` if the server may have accepted the message.
        """
        connection = self.connection
        size = await check_content(message.content)
        check_limits(connection, message, size)
        recipients = message.envelope.recipients
        commands = envelope_commands(message.envelope, size, connection.capabilities)
        flight = b"".join((b"RSET\r\n", *commands, b"BDAT %d LAST\r\n" % size, *message.content))
        self._time_limit = max(self._time_limit, self._options.time_limit(len(recipients), size))
        exchange, before = await self._write(flight, len(recipients) + 3, message)
        interpreter = _FlightInterpreter(connection, recipients)
        try:
            report = await self._report(interpreter, exchange, before)
        except DeliveryError as error:
            if self._options.protocol_log:
                error.protocol = _protocol(flight, exchange.replies)
            raise
        if report.refused and self._options.protocol_log:
            return report._replace(protocol=_protocol(flight, exchange.replies))
        return report

    async def _report(
        self, interpreter: "_FlightInterpreter", exchange: Exchange, before: Exchange | None
    ) -> DeliveryReport:
        """Wait for the replies to a flight and interpret them; ``before`` is the flight before."""
        connection = self.connection
        try:
            await exchange.waiter
        except WireFailure as failure:
            if exchange is self._last and not connection.flushed:
                raise NotAccepted from failure  # the end of the flight never left this process
            if self._is_misaligned(before, failure.replies):
                raise NotAccepted from failure
            raise interpreter.failure_error(failure) from failure
        except asyncio.CancelledError:
            # Its replies may still arrive, but nobody interprets them, so the state of the session is unknown.
            self.broken = True
            raise
        if self._is_misaligned(before, exchange.replies):
            raise NotAccepted
        try:
            return interpreter.interpret(exchange.replies)
        finally:
            self.broken = self.broken or interpreter.broken

    def _is_misaligned(self, before: Exchange | None, replies: Sequence[Reply]) -> bool:
        """True if ``replies`` are not those to their own flight, but to content that was read as commands.

        A server that does not know BDAT answers each line of the content behind it, and accepts no message. ``before``
        is the flight before.
        """
        if before is not None and before.replies and replies and not self._misaligned:
            refused, next_reset = before.replies[-1], replies[0]
            self._misaligned = refused.code in UNKNOWN_COMMAND and next_reset.code != _COMPLETED
        return self._misaligned

    async def _write(self, flight: bytes, replies: int, message: OutgoingMessage) -> tuple[Exchange, Exchange | None]:
        """Write ``flight`` once all earlier bytes have left this process, so that it is known which flights have.

        Return its exchange, and that of the flight before.

        Raises:
            SendingPaused: ``message`` may not be sent now.
        """
        connection = self.connection
        async with self._write_lock:
            try:
                while not connection.flushed:
                    await connection.drain()
                if self.closed:
                    raise NotAccepted
                if self._brake is not None and self._brake.on:
                    self._brake.check(message.mailer)
                connection.expire_at(self._loop.time() + self._time_limit * self.in_flight)
                exchange = connection.request(flight, replies, final_limit=self._options.data_timeout)
            except WireFailure as failure:
                raise NotAccepted from failure
            if not connection.usable:
                raise NotAccepted  # the system did not take a byte of it
            before, self._last = self._last, exchange
            return exchange, before


class _FlightInterpreter:
    """Interpreter of the replies to one flight; ``broken`` if the connection is of no further use."""

    def __init__(self, connection: Connection, recipients: tuple[str, ...]) -> None:
        self.broken = False
        self._connection = connection
        self._dialogue = Dialogue(connection, recipients, allow_partial=True)
        self._dialogue.body_flushed = True
        self._steps = ["RSET", "MAIL FROM", *["RCPT TO"] * len(recipients), "BDAT"]

    def failure_error(self, failure: WireFailure) -> Exception:
        """Return the error for a connection that ended before all replies to the flight arrived."""
        replies = failure.replies
        if self._connection.server_closing:
            return NotAccepted()
        if _is_out_of_sequence(replies):
            return NotAccepted()
        try:
            self._dialogue.check_interrupted_flight(self._steps, replies)
        except StaleConnection:
            return NotAccepted()
        except (AuthenticationFailed, MessageRefused, RecipientsRefused) as refusal:
            return refusal
        return self._dialogue.interruption_error(self._steps, failure)

    def interpret(self, replies: list[Reply]) -> DeliveryReport:
        """Return the report if a recipient got the message, else raise like ``PipelinedConnection.send``."""
        dialogue, connection = self._dialogue, self._connection
        if replies[-1].code == SERVER_CLOSING and _is_out_of_sequence(replies):
            raise NotAccepted
        try:
            dialogue.check_server_closing(self._steps, replies)
        except StaleConnection as stale:
            raise NotAccepted from stale.error
        reset, mail, *_, content = replies
        if not reset.positive:
            self.broken = True
        if not mail.positive and content.positive:
            self.broken = True
            failure = WireFailure("broken", f"the content was accepted ({content}) although MAIL was not ({mail})")
            raise wire_error(connection.peer, "BDAT", failure, body_sent=True)
        connection.needs_reset = True
        if mail.code == _BAD_SEQUENCE or not (reset.positive or content.positive):
            raise NotAccepted
        try:
            dialogue.interpret_envelope(replies[1:])
            report = dialogue.interpret_content("BDAT", content)
        except ChunkingRefused:
            self.broken = True
            raise
        except StaleConnection as stale:
            self.broken = True
            raise NotAccepted from stale.error
        connection.needs_reset = False
        return report


def _protocol(flight: bytes, replies: Sequence[Reply]) -> str:
    """Return the dialogue of one flight, without those around it."""
    log = ProtocolLog()
    log.record_sent(flight)
    for reply in replies:
        log.record_reply(reply)
    return log.text()


def _is_out_of_sequence(replies: Sequence[Reply]) -> bool:
    """True if MAIL was refused after RSET: because of another message, not for its own sake."""
    return len(replies) > 1 and replies[0].positive and replies[1].code == _BAD_SEQUENCE


@dataclass(slots=True, eq=False)
class _Reservation:
    """A message that waits for room; ``connection`` resolves to None if it cannot be pipelined."""

    size: int
    connection: asyncio.Future[PipelinedConnection | None]


class PipelinedSender:
    """Sender that pipelines small messages over at most ``connections`` connections of ``pool``.

    Messages that cannot be pipelined go through ``pool.send`` one by one: those over 256 kB, those whose content must
    wait for a reply (``one_flight``, ``allow_partial``), all if the server does not offer PIPELINING and CHUNKING or
    does not support RSET, and repeats of those that were not accepted because the connection broke or another message
    failed.
    """

    def __init__(self, pool: ConnectionPool, *, connections: int) -> None:
        self.pool = pool
        self._connections = connections
        self._pipelined: list[PipelinedConnection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[_Reservation] = deque()
        # Unlike the pool's waiters, messages may wait for this semaphore without a time limit.
        self._single_slots = asyncio.Semaphore(connections)
        self._single = 0  # messages that are sent one by one, or wait for it
        self._acquiring = 0  # connections that are being acquired for pipelining
        self._loop = asyncio.get_running_loop()

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Send ``message`` in one transaction; to be called for many messages concurrently.

        Raises:
            TooManyRecipients: the envelope has more than the server allows; nothing was sent.
            DeliveryError: see ``ConnectionPool.send``.
        """
        await self.pool.wait_for_rate_limit()
        if self.pool.options.fits_one_flight(len(message.envelope.recipients), message.size):
            pipelined = await self._reserve(message.size)
            if pipelined is not None:
                try:
                    report = await pipelined.send(message)
                    self.pool.record_sent(pipelined.connection)
                    return report if message.envelope.dsn is None else self.pool.with_dsn(report, pipelined.connection)
                except ChunkingRefused:
                    self.pool.stop_chunking()
                except NotAccepted:
                    pass
                finally:
                    self._cancel_reservation(pipelined, message.size)
        self._single += 1
        try:
            async with self._single_slots:
                return await self.pool.send(message, rate_limited=False)
        finally:
            self._single -= 1

    @property
    def stats(self) -> PoolStats:
        """Return the pool's stats; ``waiting`` counts the messages that wait here, not the connections for them."""
        stats = self.pool.stats
        for_room = sum(not reservation.connection.done() for reservation in self._waiting)
        for_single_slot = max(0, self._single - self._connections)
        return replace(stats, waiting=max(0, stats.waiting - self._acquiring) + for_room + for_single_slot)

    async def _reserve(self, size: int) -> PipelinedConnection | None:
        """Reserve room on a connection, first come, first served; None if no connection can be pipelined."""
        reservation = _Reservation(size, self._loop.create_future())
        self._waiting.append(reservation)
        self._assign()
        try:
            return await reservation.connection
        except asyncio.CancelledError:
            assigned = reservation.connection
            failed = assigned.cancelled() or assigned.exception() is not None
            pipelined = None if failed else assigned.result()
            if pipelined is not None:
                self._cancel_reservation(pipelined, size)
            raise

    def _cancel_reservation(self, pipelined: PipelinedConnection, size: int) -> None:
        pipelined.cancel_reservation(size)
        self._assign()
        self._release_if_unused(pipelined)

    def _assign(self) -> None:
        """Assign connections with room to waiting messages, and open connections for the rest."""
        while self._waiting:
            reservation = self._waiting[0]
            if not reservation.connection.done():
                pipelined = self._least_loaded(reservation.size)
                if pipelined is None:
                    break
                pipelined.reserve(reservation.size)
                reservation.connection.set_result(pipelined)
            self._waiting.popleft()
        if not self._waiting:
            return
        wanted = -(-len(self._waiting) // _WORTH_A_CONNECTION) - len(self._opening)
        for _ in range(min(wanted, self._connections - len(self._pipelined) - len(self._opening))):
            task = self._loop.create_task(self._open(), context=Context())
            self._opening.add(task)

    def _least_loaded(self, size: int) -> PipelinedConnection | None:
        with_room = [each for each in self._pipelined if each.has_room(size) and not self._should_release(each)]
        return min(with_room, key=lambda each: each.in_flight, default=None)

    def _should_release(self, pipelined: PipelinedConnection) -> bool:
        return pipelined.closed or self.pool.should_release(
            pipelined.connection, in_flight=pipelined.in_flight, own_waiters=len(self._opening)
        )

    def _release_if_unused(self, pipelined: PipelinedConnection) -> None:
        if pipelined.in_flight == 0 and pipelined in self._pipelined:
            self._pipelined.remove(pipelined)
            pipelined.finish()
            self.pool.release(pipelined.connection)
            self._assign()

    async def _open(self) -> None:
        """Acquire a connection for the waiting messages; where none can be pipelined they are sent one by one."""
        task = asyncio.current_task()
        assert task is not None
        connection: Connection | None = None
        error: Exception | None = None
        keep_waiting = False
        try:
            connection = await self._acquire()
        except Exception as failure:  # noqa: BLE001 - the messages must get the error, whatever it is
            keep_waiting = bool(self._pipelined) or len(self._opening) > 1
            error = None if isinstance(failure, PoolTimeout) else failure
        finally:
            self._opening.discard(task)
            if connection is None and not keep_waiting:
                self._decline_waiting(error)
        if connection is None:
            return
        pipelined = PipelinedConnection(connection, self.pool.options, self.pool.brake)
        self._pipelined.append(pipelined)
        self._assign()
        self._release_if_unused(pipelined)

    async def _acquire(self) -> Connection | None:
        """Acquire a connection that supports pipelining; None if the server does not.

        Raises:
            DeliveryError: no connection could be acquired.
        """
        while True:
            self._acquiring += 1
            try:
                connection = await self.pool.acquire()
            finally:
                self._acquiring -= 1
            reused = connection.reused
            supported = False
            try:
                supported = await _supports_pipelining(connection)
            except WireFailure:
                if reused:
                    self.pool.distrust_elders(connection)
                    continue  # it was lost while idle; the pool has one fewer of these now
                if self._pipelined and connection.server_closing:
                    continue  # the server allows fewer connections; the others are in use here
            finally:
                if not supported:
                    self.pool.release(connection)
            return connection if supported else None

    def _decline_waiting(self, error: Exception | None) -> None:
        """Have the waiting messages sent one by one, or fail them with ``error``, after which that would fail too."""
        while self._waiting:
            reservation = self._waiting.popleft()
            if reservation.connection.done():
                continue
            if error is None:
                reservation.connection.set_result(None)
            else:
                reservation.connection.set_exception(copy_error(error))


async def _supports_pipelining(connection: Connection) -> bool:
    """True if the server offers the extensions and accepts RSET; sends RSET unless a recent reply is known."""
    capabilities = connection.capabilities
    if not (capabilities.pipelining and capabilities.chunking) or connection.supports_reset is False:
        return False
    silence = asyncio.get_running_loop().time() - connection.last_read_at
    if connection.supports_reset is None or silence >= TRUSTED_FOR:
        (reply,) = await connection.ask(b"RSET\r\n")
        if not connection.usable:
            raise WireFailure("lost", f"the server closed the connection: {reply}")
        connection.supports_reset = reply.positive
    return connection.supports_reset
