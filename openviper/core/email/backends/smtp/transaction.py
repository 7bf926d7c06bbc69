"""Send one message over one connection in a transaction (RFC 5321), pipelined (RFC 2920) and chunked (RFC 3030)."""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from openviper.core.email.backends.attempt import mark_started
from openviper.core.email.backends.smtp.commands import envelope_commands, needs_smtputf8
from openviper.core.email.backends.smtp.connection import TRUSTED_FOR, Connection, Exchange
from openviper.core.email.backends.smtp.content import YIELD_EVERY, DotStuffer, check_content, checked_size, pieces
from openviper.core.email.backends.smtp.dialogue import Dialogue
from openviper.core.email.backends.smtp.errors import (
    StaleConnection,
    TooManyRecipients,
    WireFailure,
    too_large_error,
    wire_error,
)
from openviper.core.email.backends.smtp.protocol_log import ProtocolLog
from openviper.core.email.backends.smtp.replies import Reply
from openviper.core.email.errors import DeliveryError, InvalidMessage, MessageRefused, RecipientsRefused
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import Content, OutgoingMessage

__all__ = ["TransactionOptions", "check_limits", "run_recorded_transaction", "run_transaction"]

_ONE_FLIGHT_MAX = 256 * 1024  # bytes of content

_NEVER = float("inf")
_SLOWEST = 10_000  # bytes a second, for the deadline of a whole transaction
_CHUNK = 1024 * 1024  # bytes of one BDAT


@dataclass(frozen=True, slots=True)
class TransactionOptions:
    """``one_flight``, ``allow_partial``, ``timeout``, ``data_timeout`` and ``protocol_log`` as in the settings."""

    one_flight: bool = True
    allow_partial: bool = True
    timeout: float = 10.0
    data_timeout: float = 300.0
    protocol_log: bool = False

    def fits_one_flight(self, recipients: int, size: int) -> bool:
        """True if a message may be sent before the replies to its recipients are known."""
        return self.one_flight and size <= _ONE_FLIGHT_MAX and (self.allow_partial or recipients == 1)

    def time_limit(self, recipients: int, size: int) -> float:
        """Return the seconds that a transaction with ``recipients`` recipients and ``size`` bytes may take."""
        return 4 * (1 + recipients // 100) * self.timeout + self.data_timeout + size / _SLOWEST


async def run_transaction(
    connection: Connection, message: OutgoingMessage, options: TransactionOptions
) -> DeliveryReport:
    """Send ``message`` to the recipients of its envelope.

    Afterwards the connection is ready for the next transaction, or closed. The transaction takes at most four times
    ``timeout`` for each 100 recipients, plus ``data_timeout``, plus the time for the content at 10 kB/s.

    Raises:
        InvalidMessage: the content has invalid line ends, or the envelope no recipient; nothing was sent.
        MessageRefused: the server refused the sender or the content, or does not accept such a message.
        RecipientsRefused: all of them, or some with ``allow_partial`` off; nothing was sent.
        TooManyRecipients: the envelope has more than the server allows; nothing was sent.
        StaleConnection: the connection was lost before the server can have accepted the message.
        ChunkingRefused: the server does not know BDAT; it has not accepted the message.
        DeliveryError: the connection failed; ``uncertain`` if the server may have accepted the message.
    """
    size = checked_size(message.content)
    if size is None:
        size = await check_content(message.content)
    check_limits(connection, message, size)
    recipients = message.envelope.recipients
    commands = envelope_commands(message.envelope, size, connection.capabilities)
    now = asyncio.get_running_loop().time()
    connection.expire_at(now + options.time_limit(len(recipients), size))
    written = False
    try:
        if not (_may_send_one_flight(connection, now) and options.fits_one_flight(len(recipients), size)):
            return await _Transaction(connection, message, commands, size, options).run()
        flight = b"".join((*commands, b"BDAT %d LAST\r\n" % size, *message.content))
        mark_started()
        exchange = connection.request(flight, len(commands) + 1, final_limit=options.data_timeout)
        written = True
        await exchange.waiter
        for reply in exchange.replies:
            if not reply.positive:
                return _interpret_flight(connection, recipients, exchange.replies, options)
        return DeliveryReport(recipients, {}, str(exchange.replies[-1]))
    except (MessageRefused, RecipientsRefused):
        raise  # a complete dialogue: the connection is ready for the next transaction
    except WireFailure as failure:  # of the flight; others have been mapped already
        dialogue, steps = _flight_dialogue(connection, recipients, options, written=written)
        dialogue.check_interrupted_flight(steps, failure.replies)
        raise dialogue.interruption_error(steps, failure) from failure
    except BaseException:
        connection.abort()
        raise
    finally:
        connection.expire_at(_NEVER)


async def run_recorded_transaction(
    connection: Connection, message: OutgoingMessage, options: TransactionOptions
) -> DeliveryReport:
    """Do as ``run_transaction``, and add the dialogue to an error, and to a report with refused recipients."""
    log = connection.protocol = ProtocolLog()
    try:
        report = await run_transaction(connection, message, options)
    except StaleConnection as stale:
        stale.error.protocol = log.text()
        raise
    except DeliveryError as error:
        error.protocol = log.text()
        raise
    finally:
        connection.protocol = None
    return report._replace(protocol=log.text()) if report.refused else report


def check_limits(connection: Connection, message: OutgoingMessage, size: int) -> None:
    """Check that the server's announced limits and extensions allow ``message``, whose content has ``size`` bytes.

    Raises:
        InvalidMessage: the envelope has no recipient.
        TooManyRecipients: the envelope has more than the server allows.
        MessageRefused: the message is too large, or needs SMTPUTF8, which is not offered.
    """
    capabilities, peer = connection.capabilities, connection.peer
    if not message.envelope.recipients:
        raise InvalidMessage("the envelope has no recipient")
    if capabilities.max_recipients is not None and len(message.envelope.recipients) > capabilities.max_recipients:
        raise TooManyRecipients(capabilities.max_recipients)
    if capabilities.max_size is not None and size > capabilities.max_size:
        raise too_large_error(peer, message, size, capabilities.max_size)
    if not capabilities.smtputf8 and needs_smtputf8(message.envelope):
        text = (
            f"{peer}: an address of this message is not ASCII, and the server does not offer SMTPUTF8 (RFC 6531); "
            "use an ASCII address, or a server that offers it"
        )
        raise MessageRefused(text, summary=text)


def _may_send_one_flight(connection: Connection, now: float) -> bool:
    capabilities = connection.capabilities
    return (
        capabilities.pipelining
        and capabilities.chunking
        and not connection.needs_reset
        and now - connection.last_read_at < TRUSTED_FOR
    )


def _interpret_flight(
    connection: Connection, recipients: tuple[str, ...], replies: list[Reply], options: TransactionOptions
) -> DeliveryReport:
    """Return the report of a flight with a negative reply; raise if no recipient got the message."""
    dialogue, steps = _flight_dialogue(connection, recipients, options, written=True)
    connection.needs_reset = True
    dialogue.check_server_closing(steps, replies)
    if replies[0].negative and replies[-1].positive:
        failure = WireFailure(
            "broken", f"the content was accepted ({replies[-1]}) although MAIL was not ({replies[0]})"
        )
        raise wire_error(connection.peer, "BDAT", failure, body_sent=True)
    dialogue.interpret_envelope(replies)
    report = dialogue.interpret_content("BDAT", replies[-1])
    connection.needs_reset = False
    return report


def _flight_dialogue(
    connection: Connection, recipients: tuple[str, ...], options: TransactionOptions, *, written: bool
) -> tuple[Dialogue, list[str]]:
    """Return a dialogue that interprets the replies to a whole flight, and the names of the flight's commands."""
    dialogue = Dialogue(connection, recipients, allow_partial=options.allow_partial)
    dialogue.body_written = written
    return dialogue, [*_envelope_steps(recipients), "BDAT"]


def _envelope_steps(recipients: Sequence[str]) -> list[str]:
    return ["MAIL FROM", *["RCPT TO"] * len(recipients)]


class _Transaction:
    """A transaction that waits for replies before it sends the content."""

    def __init__(
        self,
        connection: Connection,
        message: OutgoingMessage,
        commands: list[bytes],
        size: int,
        options: TransactionOptions,
    ) -> None:
        recipients = message.envelope.recipients
        self._connection = connection
        self._content = message.content
        self._size = size
        self._data_timeout = options.data_timeout
        self._partial_allowed = options.allow_partial or len(recipients) == 1
        self._dialogue = Dialogue(connection, recipients, allow_partial=options.allow_partial)
        self._commands = commands
        self._steps = _envelope_steps(recipients)

    async def run(self) -> DeliveryReport:
        connection = self._connection
        chunking = connection.capabilities.chunking
        # A server that does not understand RSET would add these recipients to the last transaction, so nothing that
        # could cause a delivery may be sent before the reply to RSET.
        reset, connection.needs_reset = connection.needs_reset, False
        if not connection.capabilities.pipelining:
            await self._send_envelope_stepwise(reset)
        elif chunking or reset or not self._partial_allowed:
            await self._send_envelope(reset)
        else:
            await self._send_envelope_and_data()
            return await self._send_mail_data()
        if chunking:
            return await self._send_chunks()
        self._dialogue.check_data_reply((await self._dialogue.ask(b"DATA\r\n", ["DATA"]))[0])
        return await self._send_mail_data()

    async def _send_envelope(self, reset: bool) -> None:
        """Send MAIL and all RCPT together, behind RSET if ``reset``."""
        commands, steps = self._commands, self._steps
        if reset:
            commands, steps = [b"RSET\r\n", *commands], ["RSET", *steps]
        replies = await self._dialogue.ask(b"".join(commands), steps)
        if reset:
            self._dialogue.check_reset(replies.pop(0))
        self._dialogue.interpret_envelope(replies)

    async def _send_envelope_stepwise(self, reset: bool) -> None:
        dialogue = self._dialogue
        if reset:
            dialogue.check_reset((await dialogue.ask(b"RSET\r\n", ["RSET"]))[0])
        first, *others = self._commands
        replies = await dialogue.ask(first, ["MAIL FROM"])
        if replies[0].positive:
            for command in others:
                replies += await dialogue.ask(command, ["RCPT TO"])
        dialogue.interpret_envelope(replies)

    async def _send_envelope_and_data(self) -> None:
        dialogue = self._dialogue
        replies = await dialogue.ask(b"".join((*self._commands, b"DATA\r\n")), [*self._steps, "DATA"])
        try:
            dialogue.interpret_envelope(replies)
        except (MessageRefused, RecipientsRefused):
            if replies[-1].intermediate:
                await self._send_empty_content()
            raise
        dialogue.check_data_reply(replies[-1])

    async def _send_empty_content(self) -> None:
        """End the content at once, because the server asks for it although no recipient was accepted."""
        self._connection.needs_reset = False  # the end of the content also ends the transaction
        try:
            await self._connection.ask(b".\r\n", final_limit=self._data_timeout)
        except WireFailure:
            self._connection.abort()

    async def _send_chunks(self) -> DeliveryReport:
        """Send the content by BDAT, each chunk written while the server answers the one before.

        The reply to a chunk may take ``data_timeout`` seconds, the time to write the chunk included.
        """
        connection, dialogue, size = self._connection, self._dialogue, self._size
        previous: Exchange | None = None
        exchange: Exchange | None = None
        try:
            for begin in range(0, size or 1, _CHUNK):
                end = min(begin + _CHUNK, size)
                last = end == size
                command = b"BDAT %d LAST\r\n" if last else b"BDAT %d\r\n"
                exchange = connection.request(command % (end - begin), 1, final_limit=self._data_timeout)
                if last:
                    mark_started()
                await self._write_chunk(begin, end)
                dialogue.body_written = last
                if previous is not None and not (await previous.only_reply()).positive:
                    with contextlib.suppress(WireFailure):
                        await exchange.only_reply()  # to a chunk behind a refused one, so it adds nothing
                    break
                previous = exchange
                if not connection.capabilities.pipelining and not (await exchange.only_reply()).positive:
                    break
            assert previous is not None
            reply = await previous.only_reply()
        except WireFailure as failure:
            self._check_early_refusal("BDAT", previous, exchange)
            raise dialogue.interruption_error(["BDAT"], failure) from failure
        connection.needs_reset = True
        report = dialogue.interpret_content("BDAT", reply)
        connection.needs_reset = False
        return report

    async def _write_chunk(self, begin: int, end: int) -> None:
        connection = self._connection
        written = 0
        for piece in await self._pieces(begin, end):
            connection.write(piece)
            written += len(piece)
            if not connection.flushed:
                await connection.drain()
            elif written >= YIELD_EVERY:
                written = 0
                await asyncio.sleep(0)

    async def _send_mail_data(self) -> DeliveryReport:
        """Send the content after reply 354, dot-stuffed.

        The reply may take ``data_timeout`` seconds from when the system has taken all of it.
        """
        connection, dialogue = self._connection, self._dialogue
        exchange = connection.expect_reply()
        stuffer = DotStuffer()
        try:
            for begin in range(0, self._size, _CHUNK):
                if not await self._write_stuffed(begin, min(begin + _CHUNK, self._size), stuffer, exchange):
                    break
            else:
                mark_started()
                connection.write(stuffer.end())
                dialogue.body_written = True
                await connection.drain(exchange)
                connection.set_deadline(exchange, self._data_timeout)
            reply = await exchange.only_reply()
        except WireFailure as failure:
            self._check_early_refusal("DATA", exchange)
            raise dialogue.interruption_error(["DATA"], failure) from failure
        if not dialogue.body_written:
            connection.abort()  # the server answered half a message, and would read what follows as commands
        return dialogue.interpret_content("DATA", reply)

    async def _write_stuffed(self, begin: int, end: int, stuffer: DotStuffer, exchange: Exchange) -> bool:
        """Write a part of the content, dot-stuffed; False if the server replied meanwhile."""
        connection = self._connection
        written = 0
        for piece in await self._pieces(begin, end):
            connection.write(stuffer.stuff(bytes(piece)))
            written += len(piece)
            if not connection.flushed:
                await connection.drain(exchange)
            elif written >= YIELD_EVERY:
                written = 0
                await asyncio.sleep(0)
            if exchange.waiter.done():
                return False
        return True

    async def _pieces(self, begin: int, end: int) -> Iterable[bytes | memoryview]:
        """Return a part of the content in pieces; what is in a file is read in a thread."""
        content, offset = self._content, 0
        if isinstance(content, Content) and content.in_file:
            content, offset = await asyncio.to_thread(content.load, begin, end)
        return pieces(content, begin - offset, end - offset)

    def _check_early_refusal(self, step: str, *exchanges: Exchange | None) -> None:
        """Raise a refusal that arrived before the server closed the connection or stopped reading."""
        for exchange in exchanges:
            if exchange is not None and exchange.replies and not exchange.replies[0].positive:
                self._dialogue.interpret_content(step, exchange.replies[0])
