"""Small messages over the connections of a pool, many to each at a time (RFC 2920, RFC 3030)."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, replace

from openviper.core.email.backends.smtp.commands import mail_from, rcpt_to
from openviper.core.email.backends.smtp.connection import Connection, Exchange
from openviper.core.email.backends.smtp.content import check_content
from openviper.core.email.backends.smtp.dialogue import SERVER_CLOSING, Dialogue
from openviper.core.email.backends.smtp.errors import StaleConnection, WireFailure, wire_error
from openviper.core.email.backends.smtp.pool import ConnectionPool, PoolStats
from openviper.core.email.backends.smtp.replies import Reply
from openviper.core.email.backends.smtp.transaction import TRUSTED_FOR, TransferOptions, check_limits
from openviper.core.email.errors import MessageRefused, RecipientsRefused
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import OutgoingMessage

__all__ = ["NotAccepted", "PipelinedConnection", "PipelinedSender"]

_WORTH_A_CONNECTION = 20  # waiting messages


class NotAccepted(Exception):
    """The server has certainly not taken the message, and has not refused it either: it may be sent again."""


class PipelinedConnection:
    """``count`` places are taken; when the last one is left after ``broken`` was set, the connection is closed."""

    def __init__(self, connection: Connection, options: TransferOptions) -> None:
        self.connection = connection
        self.count = 0
        self.broken = False
        self._bytes = 0
        self._longest = 0.0
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._last: Exchange | None = None

    @property
    def closed(self) -> bool:
        """True when no further message may go this way."""
        return self.broken or not self.connection.usable

    def has_room(self, size: int) -> bool:
        """True when a message of ``size`` bytes may be under way as well."""
        return self.count < _MESSAGES and (self.count == 0 or self._bytes + size <= _BYTES)

    def enter(self, size: int) -> None:
        """Take a place; ``leave`` gives it back."""
        self.count += 1
        self._bytes += size

    def leave(self, size: int) -> None:
        """Give a place back."""
        self.count -= 1
        self._bytes -= size

    def finish(self) -> None:
        """Make the connection fit for others, or close it; when the last place was given back."""
        if self.broken:
            self.connection.abort()
        self.connection.expire_at(float("inf"))

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Send ``message`` in a place that was taken for it.

        Raises:
            NotAccepted: to be sent again; nothing of it will be delivered.
            InvalidMessage: it cannot be put on the wire; nothing was sent.
            MessageRefused: the server refused the sender or the content.
            RecipientsRefused: all of them.
            DeliveryError: the connection failed; ``uncertain`` when the server may have taken the message.
        """
        connection = self.connection
        size = await check_content(message.content)
        check_limits(connection, message, size)
        recipients = message.envelope.recipients
        commands = (mail_from(message.envelope, size, connection.capabilities), *map(rcpt_to, recipients))
        flight = b"".join((b"RSET\r\n", *commands, b"BDAT %d LAST\r\n" % size, *message.content))
        self._longest = max(self._longest, self._options.longest(len(recipients), size))
        exchange = await self._write(flight, len(recipients) + 3)
        interpreter = _FlightInterpreter(connection, recipients)
        try:
            await exchange.waiter
        except WireFailure as failure:
            if exchange is self._last and not connection.flushed:
                raise NotAccepted from failure  # its end never left this process
            raise interpreter.of_failure(failure) from failure
        except asyncio.CancelledError:
            # Its replies may still come, and nobody will know what they leave behind.
            self.broken = True
            raise
        try:
            return interpreter.of_replies(exchange.replies)
        finally:
            self.broken = self.broken or interpreter.broken

    async def _write(self, flight: bytes, replies: int) -> Exchange:
        """Write ``flight`` when all that was written before has left this process, so that it is known what has."""
        connection = self.connection
        async with self._turn:
            try:
                while not connection.flushed:
                    await connection.drain()
                if self.closed:
                    raise NotAccepted
                connection.expire_at(self._loop.time() + self._longest * self.count)
                exchange = connection.request(flight, replies, final_limit=self._options.data_timeout)
            except WireFailure as failure:
                raise NotAccepted from failure
            if not connection.usable:
                raise NotAccepted  # the system did not take a byte of it
            self._last = exchange
            return exchange


@dataclass(slots=True, eq=False)
class _Reservation:
    """``connection`` resolves to None when the message has to go alone."""

    size: int
    connection: asyncio.Future[PipelinedConnection | None]


class PipelinedSender:
    """Borrow connections from ``pool`` while there is something to send, at most ``connections``.

    What cannot be pipelined goes through ``pool.send`` one by one: messages over 256 kB, those that need an answer
    before their content may leave (``one_flight``, ``allow_partial``), all where the server does not offer PIPELINING
    and CHUNKING or does not know RSET, and the repeats of those that a broken connection or another message's failure
    has kept from being taken.
    """

    def __init__(self, pool: ConnectionPool, *, connections: int) -> None:
        self.pool = pool
        self._connections = connections
        self._pipelined: list[PipelinedConnection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[_Reservation] = deque()
        # Those who wait here may take their time; in the pool they would give up after a while.
        self._alone = asyncio.Semaphore(connections)
        self._going_alone = 0  # messages that wait for their turn to, or do
        self._acquiring = 0  # pipelined connections that are being opened
        self._loop = asyncio.get_running_loop()

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """One transaction; call it for many messages at once.

        Raises:
            DeliveryError: see ``ConnectionPool.send``.
        """
        await self.pool.turn()
        if self.pool.options.fits_one_flight(len(message.envelope.recipients), message.size):
            pipelined = await self._reserve(message.size)
            if pipelined is not None:
                try:
                    outcome = await pipelined.send(message)
                    self.pool.note_sent(pipelined.connection)
                    return outcome
                except NotAccepted:
                    pass
                finally:
                    self._left(pipelined, message.size)
        self._going_alone += 1
        try:
            async with self._alone:
                return await self.pool.send(message, turn_taken=True)
        finally:
            self._going_alone -= 1

    @property
    def stats(self) -> PoolStats:
        """Return the pool's stats; ``waiting`` counts the messages that wait here, not the connections for them."""
        stats = self.pool.stats
        for_a_connection = sum(not reservation.connection.done() for reservation in self._waiting)
        for_their_turn = max(0, self._going_alone - self._connections)
        return replace(stats, waiting=max(0, stats.waiting - self._acquiring) + for_a_connection + for_their_turn)

    async def _reserve(self, size: int) -> PipelinedConnection | None:
        """Reserve a place on a connection, first come, first served; None if none can be had."""
        reservation = _Reservation(size, self._loop.create_future())
        self._waiting.append(reservation)
        self._assign()
        try:
            return await reservation.connection
        except asyncio.CancelledError:
            pipelined = None if reservation.connection.cancelled() else reservation.connection.result()
            if pipelined is not None:
                self._left(pipelined, size)
            raise

    def _left(self, pipelined: PipelinedConnection, size: int) -> None:
        pipelined.leave(size)
        self._assign()
        self._give_back(pipelined)

    def _assign(self) -> None:
        while self._waiting:
            reservation = self._waiting[0]
            if not reservation.connection.done():
                pipelined = self._emptiest(reservation.size)
                if pipelined is None:
                    break
                pipelined.enter(reservation.size)
                reservation.connection.set_result(pipelined)
            self._waiting.popleft()
        if not self._waiting:
            return
        wanted = -(-len(self._waiting) // _WORTH_A_CONNECTION) - len(self._opening)
        for _ in range(min(wanted, self._connections - len(self._pipelined) - len(self._opening))):
            task = self._loop.create_task(self._open(), context=Context())
            self._opening.add(task)

    def _emptiest(self, size: int) -> PipelinedConnection | None:
        open_ones = [each for each in self._pipelined if each.has_room(size) and not self._ends(each)]
        return min(open_ones, key=lambda each: each.count, default=None)

    def _ends(self, pipelined: PipelinedConnection) -> bool:
        waiting = len(self._opening)
        return pipelined.closed or self.pool.wants_back(
            pipelined.connection, under_way=pipelined.count, waiting=waiting
        )

    def _give_back(self, pipelined: PipelinedConnection) -> None:
        if pipelined.count == 0 and pipelined in self._pipelined:
            self._pipelined.remove(pipelined)
            pipelined.finish()
            self.pool.release(pipelined.connection)
            self._assign()

    async def _open(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection: Connection | None = None
        keep_waiting = False
        try:
            connection = await self._fit_connection()
        except Exception:  # noqa: BLE001 - those who have no connection meet it by themselves, each as an error of its own
            keep_waiting = bool(self._pipelined) or len(self._opening) > 1
        finally:
            self._opening.discard(task)
            if connection is None and not keep_waiting:
                self._send_alone()
        if connection is None:
            return
        pipelined = PipelinedConnection(connection, self.pool.options)
        self._pipelined.append(pipelined)
        self._assign()
        self._give_back(pipelined)

    async def _fit_connection(self) -> Connection | None:
        """A connection that messages may be pipelined on; None when the server cannot.

        Raises:
            DeliveryError: there is no connection.
        """
        while True:
            self._acquiring += 1
            try:
                connection = await self.pool.acquire()
            finally:
                self._acquiring -= 1
            kept = connection.kept
            fit = False
            try:
                fit = await _is_fit(connection)
            except WireFailure:
                if kept:
                    continue  # it was dead; each one that is met so is one fewer
            finally:
                if not fit:
                    self.pool.release(connection)
            return connection if fit else None

    def _send_alone(self) -> None:
        while self._waiting:
            reservation = self._waiting.popleft()
            if not reservation.connection.done():
                reservation.connection.set_result(None)


async def _is_fit(connection: Connection) -> bool:
    """True when the server offers what it takes, knows RSET, and was heard a moment ago."""
    capabilities = connection.capabilities
    if not (capabilities.pipelining and capabilities.chunking) or connection.takes_reset is False:
        return False
    quiet = asyncio.get_running_loop().time() - connection.heard_at
    if connection.takes_reset is None or quiet >= TRUSTED_FOR:
        (reply,) = await connection.ask(b"RSET\r\n")
        if not connection.usable:
            raise WireFailure("lost", f"the server closed the connection: {reply}")
        connection.takes_reset = reply.positive
    return connection.takes_reset


_MESSAGES = 20  # without a reply
_BYTES = 256 * 1024

_BAD_SEQUENCE = 503


class _FlightInterpreter:
    """What the replies to one flight mean for its message; ``broken`` when the connection is of no further use."""

    def __init__(self, connection: Connection, recipients: tuple[str, ...]) -> None:
        self.broken = False
        self._connection = connection
        self._dialogue = Dialogue(connection, recipients, allow_partial=True)
        self._dialogue.body_left = True
        self._steps = ["RSET", "MAIL FROM", *["RCPT TO"] * len(recipients), "BDAT"]

    def of_failure(self, failure: WireFailure) -> Exception:
        """The flight was written and the connection ended before all of the replies were there."""
        replies = failure.replies
        if self._connection.server_closing:
            return NotAccepted()
        if _out_of_sequence(replies):
            return NotAccepted()
        try:
            self._dialogue.check_cut_flight(self._steps, replies)
        except (MessageRefused, RecipientsRefused) as refusal:
            return refusal
        return self._dialogue.failed(self._steps, failure)

    def of_replies(self, replies: list[Reply]) -> DeliveryReport:
        """Raises like ``PipelinedConnection.send``."""
        dialogue, connection = self._dialogue, self._connection
        if replies[-1].code == SERVER_CLOSING and _out_of_sequence(replies):
            raise NotAccepted
        try:
            dialogue.check_departure(self._steps, replies)
        except StaleConnection as stale:
            raise NotAccepted from stale.error
        reset, mail, *_, content = replies
        if not reset.positive:
            self.broken = True
        if not mail.positive and content.positive:
            self.broken = True
            failure = WireFailure("broken", f"content was taken ({content}) behind a MAIL that was not ({mail})")
            raise wire_error(connection.peer, "BDAT", failure, body_sent=True)
        connection.needs_reset = True
        if mail.code == _BAD_SEQUENCE or not (reset.positive or content.positive):
            raise NotAccepted
        dialogue.interpret_envelope(replies[1:])
        outcome = dialogue.interpret_content("BDAT", content)
        connection.needs_reset = False
        return outcome


def _out_of_sequence(replies: Sequence[Reply]) -> bool:
    """True when MAIL was refused behind RSET: for another message, then, and not for its own sake."""
    return len(replies) > 1 and replies[0].positive and replies[1].code == _BAD_SEQUENCE
