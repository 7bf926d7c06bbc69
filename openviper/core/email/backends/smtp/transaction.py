"""One message over one open connection: the transaction of RFC 5321, pipelined (RFC 2920) and chunked (RFC 3030)."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from openviper.core.email.backends.smtp.commands import mail_from, needs_smtputf8, rcpt_to
from openviper.core.email.backends.smtp.connection import Connection, Exchange
from openviper.core.email.backends.smtp.content import YIELD_EVERY, DotStuffer, check_content, checked_size, pieces
from openviper.core.email.backends.smtp.dialogue import READY, Dialogue
from openviper.core.email.backends.smtp.errors import WireFailure, too_large
from openviper.core.email.backends.smtp.replies import Reply
from openviper.core.email.errors import InvalidMessage, MessageRefused, RecipientsRefused
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import Chunks, OutgoingMessage

__all__ = [
    "ONE_FLIGHT_MAX",
    "TRUSTED_FOR",
    "TransferOptions",
    "check_limits",
    "send_as_data",
    "send_in_chunks",
    "transfer",
]

ONE_FLIGHT_MAX = 256 * 1024  # bytes of content

# A connection that has been quiet for longer may have been given up by the server. The envelope then goes ahead of
# the content, so that a message that meets a dead connection can be sent again without a doubt.
TRUSTED_FOR = 1.0  # seconds

_NEVER = float("inf")
_SLOWEST = 10_000  # bytes a second, for the deadline of a whole transaction


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """``one_flight``, ``allow_partial``, ``timeout`` and ``data_timeout`` as in the settings."""

    one_flight: bool = True
    allow_partial: bool = True
    timeout: float = 10.0
    data_timeout: float = 300.0

    def fits_one_flight(self, recipients: int, size: int) -> bool:
        """True when a message may leave before the answers to its recipients are known."""
        return self.one_flight and size <= ONE_FLIGHT_MAX and (self.allow_partial or recipients == 1)

    def longest(self, recipients: int, size: int) -> float:
        """Seconds that a transaction may take, with ``size`` bytes of content for so many recipients."""
        return 4 * (1 + recipients // 100) * self.timeout + self.data_timeout + size / _SLOWEST


async def transfer(connection: Connection, message: OutgoingMessage, options: TransferOptions) -> DeliveryReport:
    """Send ``message`` to the recipients of its envelope.

    Afterwards the connection is ready for the next transaction, or closed. The whole takes at most four times
    ``timeout`` for each 100 recipients, plus ``data_timeout``, plus the time that the content needs at 10 kB/s.

    Raises:
        InvalidMessage: it cannot be put on the wire; nothing was sent.
        MessageRefused: the server refused the sender or the content, or does not take such a message.
        RecipientsRefused: all of them, or some with ``allow_partial`` off; nothing was sent.
        StaleConnection: the connection was gone before the message could have been taken.
        DeliveryError: the connection failed; ``uncertain`` when the server may have taken the message.
    """
    size = checked_size(message.content)
    if size is None:
        size = await check_content(message.content)
    check_limits(connection, message, size)
    recipients = message.envelope.recipients
    commands = [mail_from(message.envelope, size, connection.capabilities), *map(rcpt_to, recipients)]
    now = asyncio.get_running_loop().time()
    connection.expire_at(now + options.longest(len(recipients), size))
    written = False
    try:
        if not (_may_send_one_flight(connection, now) and options.fits_one_flight(len(recipients), size)):
            return await _Transaction(connection, message, commands, size, options).run()
        flight = b"".join((*commands, b"BDAT %d LAST\r\n" % size, *message.content))
        exchange = connection.request(flight, len(commands) + 1, final_limit=options.data_timeout)
        written = True
        await exchange.waiter
        for reply in exchange.replies:
            if not reply.positive:
                return _interpret_flight(connection, recipients, exchange.replies, options)
        return DeliveryReport(recipients, {}, str(exchange.replies[-1]))
    except (MessageRefused, RecipientsRefused):
        raise  # said between two commands: the connection is at rest
    except WireFailure as failure:  # of the flight; others have been judged
        dialogue, steps = _flight_dialogue(connection, recipients, options, written=written)
        dialogue.check_cut_flight(steps, failure.replies)
        raise dialogue.failed(steps, failure) from failure
    except BaseException:
        connection.abort()
        raise
    finally:
        connection.expire_at(_NEVER)


def _may_send_one_flight(connection: Connection, now: float) -> bool:
    capabilities = connection.capabilities
    return (
        capabilities.pipelining
        and capabilities.chunking
        and not connection.needs_reset
        and now - connection.heard_at < TRUSTED_FOR
    )


def _interpret_flight(
    connection: Connection, recipients: tuple[str, ...], replies: list[Reply], options: TransferOptions
) -> DeliveryReport:
    """The outcome of a flight to which not every answer was positive; raises where that means that nobody got it."""
    dialogue, steps = _flight_dialogue(connection, recipients, options, written=True)
    connection.needs_reset = True
    dialogue.check_departure(steps, replies)
    dialogue.interpret_envelope(replies)
    outcome = dialogue.interpret_content("BDAT", replies[-1])
    connection.needs_reset = False
    return outcome


def _flight_dialogue(
    connection: Connection, recipients: tuple[str, ...], options: TransferOptions, *, written: bool
) -> tuple[Dialogue, list[str]]:
    """Who judges the replies to a whole flight when they are not all as hoped for, and what each answers."""
    dialogue = Dialogue(connection, recipients, allow_partial=options.allow_partial)
    dialogue.body_written = written
    return dialogue, [*_steps(recipients), "BDAT"]


def _steps(recipients: Sequence[str]) -> list[str]:
    return ["MAIL FROM", *["RCPT TO"] * len(recipients)]


class _Transaction:
    """A transaction that waits for answers before its content leaves."""

    def __init__(
        self,
        connection: Connection,
        message: OutgoingMessage,
        commands: list[bytes],
        size: int,
        options: TransferOptions,
    ) -> None:
        recipients = message.envelope.recipients
        self._connection = connection
        self._content = message.content
        self._size = size
        self._options = options
        self._partial_is_fine = options.allow_partial or len(recipients) == 1
        self._dialogue = Dialogue(connection, recipients, allow_partial=options.allow_partial)
        self._commands = commands
        self._steps = _steps(recipients)

    async def run(self) -> DeliveryReport:
        connection = self._connection
        chunking = connection.capabilities.chunking
        # A server that does not understand RSET would add these recipients to the transaction before, so nothing
        # that leads to a delivery may be on its way until the answer to RSET is known.
        resets, connection.needs_reset = connection.needs_reset, False
        if not connection.capabilities.pipelining:
            await self._envelope_step_by_step(resets)
        elif chunking or resets or not self._partial_is_fine:
            await self._envelope_in_one(resets)
        else:
            await self._envelope_with_data()
            return await self._content_as_data()
        if chunking:
            return await send_in_chunks(self._dialogue, self._content, self._size, limit=self._options.data_timeout)
        self._dialogue.check_ready((await self._dialogue.ask(b"DATA\r\n", ["DATA"]))[0])
        return await self._content_as_data()

    async def _envelope_in_one(self, resets: bool) -> None:
        commands, steps = self._commands, self._steps
        if resets:
            commands, steps = [b"RSET\r\n", *commands], ["RSET", *steps]
        replies = await self._dialogue.ask(b"".join(commands), steps)
        if resets:
            self._dialogue.check_reset(replies.pop(0))
        self._dialogue.interpret_envelope(replies)

    async def _envelope_step_by_step(self, resets: bool) -> None:
        dialogue = self._dialogue
        if resets:
            dialogue.check_reset((await dialogue.ask(b"RSET\r\n", ["RSET"]))[0])
        first, *others = self._commands
        replies = await dialogue.ask(first, ["MAIL FROM"])
        if replies[0].positive:
            for command in others:
                replies += await dialogue.ask(command, ["RCPT TO"])
        dialogue.interpret_envelope(replies)

    async def _envelope_with_data(self) -> None:
        dialogue = self._dialogue
        replies = await dialogue.ask(b"".join((*self._commands, b"DATA\r\n")), [*self._steps, "DATA"])
        try:
            dialogue.interpret_envelope(replies)
        except (MessageRefused, RecipientsRefused):
            if replies[-1].code == READY:
                await self._end_at_once()
            raise
        dialogue.check_ready(replies[-1])

    async def _end_at_once(self) -> None:
        """The server waits for content although nobody is to get any: end it; the answer does not matter."""
        self._connection.needs_reset = False  # the end of data also ends the transaction
        try:
            await self._connection.ask(b".\r\n", final_limit=self._options.data_timeout)
        except WireFailure:
            self._connection.abort()

    async def _content_as_data(self) -> DeliveryReport:
        return await send_as_data(self._dialogue, self._content, self._size, limit=self._options.data_timeout)


def check_limits(connection: Connection, message: OutgoingMessage, size: int) -> None:
    """Raise for what the server has said beforehand that it does not take.

    Raises:
        InvalidMessage: there is no recipient.
        MessageRefused: it is too large, or needs SMTPUTF8, which is not offered.
    """
    capabilities, peer = connection.capabilities, connection.peer
    if not message.envelope.recipients:
        raise InvalidMessage("the envelope has no recipient")
    if capabilities.max_size is not None and size > capabilities.max_size:
        raise too_large(peer, message, size, capabilities.max_size)
    if not capabilities.smtputf8 and needs_smtputf8(message.envelope):
        raise MessageRefused(
            f"{peer}: an address of this message is not ASCII, and the server does not offer SMTPUTF8 (RFC 6531)"
        )


_CHUNK = 1024 * 1024  # bytes of one BDAT


async def send_in_chunks(dialogue: Dialogue, content: Chunks, size: int, *, limit: float) -> DeliveryReport:
    """BDAT after BDAT, each written while the server answers the one before.

    ``size``: bytes of ``content``; ``limit``: seconds for the answer to each chunk, its transport included.
    """
    connection = dialogue.connection
    before: Exchange | None = None
    answer: Exchange | None = None
    try:
        for begin in range(0, size or 1, _CHUNK):
            end = min(begin + _CHUNK, size)
            last = end == size
            command = b"BDAT %d LAST\r\n" if last else b"BDAT %d\r\n"
            answer = connection.request(command % (end - begin), 1, final_limit=limit)
            await _write(connection, content, begin, end)
            dialogue.body_written = last
            if before is not None and not (await before.only_reply()).positive:
                with contextlib.suppress(WireFailure):
                    await answer.only_reply()  # it follows a refused chunk, so it says nothing new
                break
            before = answer
            if not connection.capabilities.pipelining and not (await answer.only_reply()).positive:
                break
        assert before is not None
        reply = await before.only_reply()
    except WireFailure as failure:
        _check_early(dialogue, "BDAT", before, answer)
        raise dialogue.failed(["BDAT"], failure) from failure
    connection.needs_reset = True
    outcome = dialogue.interpret_content("BDAT", reply)
    connection.needs_reset = False
    return outcome


async def send_as_data(dialogue: Dialogue, content: Chunks, size: int, *, limit: float) -> DeliveryReport:
    """What follows 354, to its lone dot; ``limit``: seconds for the answer once everything has left."""
    connection = dialogue.connection
    answer = connection.expect()
    stuffer = DotStuffer()
    written = 0
    try:
        for piece in pieces(content, 0, size):
            connection.write(stuffer.stuff(bytes(piece)))
            written += len(piece)
            if not connection.flushed:
                await connection.drain(answer)
            elif written >= YIELD_EVERY:
                written = 0
                await asyncio.sleep(0)
            if answer.waiter.done():
                break
        else:
            connection.write(stuffer.end())
            dialogue.body_written = True
            await connection.drain(answer)
            connection.set_deadline(answer, limit)
        reply = await answer.only_reply()
    except WireFailure as failure:
        _check_early(dialogue, "DATA", answer)
        raise dialogue.failed(["DATA"], failure) from failure
    if not dialogue.body_written:
        connection.abort()  # an answer to half a message; what follows would be read as commands
    return dialogue.interpret_content("DATA", reply)


def _check_early(dialogue: Dialogue, step: str, *answers: Exchange | None) -> None:
    """Raise a refusal that had come before the server hung up, or before it read no further."""
    for answer in answers:
        if answer is not None and answer.replies and not answer.replies[0].positive:
            dialogue.interpret_content(step, answer.replies[0])


async def _write(connection: Connection, content: Chunks, begin: int, end: int) -> None:
    written = 0
    for piece in pieces(content, begin, end):
        connection.write(piece)
        written += len(piece)
        if not connection.flushed:
            await connection.drain()
        elif written >= YIELD_EVERY:
            written = 0
            await asyncio.sleep(0)
