"""One message over one open connection: the transaction of RFC 5321, pipelined (RFC 2920) and chunked (RFC 3030)."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from openviper.core.email.errors import (
    ConnectionFailed,
    DeliveryError,
    InvalidMessage,
    MessageRefused,
    RecipientsRefused,
    Refusal,
)
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.smtp.commands import mail_from, needs_smtputf8, rcpt_to
from openviper.core.email.smtp.content import BREATH, check_content, pieces
from openviper.core.email.smtp.dotstuffing import DotStuffer
from openviper.core.email.smtp.outcome import (
    Outcome,
    StaleConnection,
    going_away,
    message_refused,
    recipients_refused,
    too_large,
    wire_error,
)
from openviper.core.email.smtp.replies import Reply
from openviper.core.email.smtp.wire import Connection, Exchange, WireFailure

__all__ = ["ONE_FLIGHT_MAX", "TransferOptions", "transfer"]

ONE_FLIGHT_MAX = 256 * 1024  # bytes of content
_CHUNK = 1024 * 1024  # bytes of one BDAT of a larger message

# A connection that has been quiet for longer may have been given up by the server. The envelope then goes ahead of
# the content, so that a message that meets a dead connection can be sent again without a doubt.
_TRUSTED_FOR = 1.0  # seconds

_SLOWEST = 10_000  # bytes a second, for the deadline of a whole transaction

_READY = 354


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """``one_flight``, ``allow_partial``, ``timeout`` and ``data_timeout`` as in the settings."""

    one_flight: bool = True
    allow_partial: bool = True
    timeout: float = 10.0
    data_timeout: float = 300.0


async def transfer(connection: Connection, message: OutgoingMessage, options: TransferOptions) -> Outcome:
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
    size = await check_content(message.content)
    transaction = _Transaction(connection, message, options, size)
    try:
        return await transaction.run()
    except (MessageRefused, RecipientsRefused):
        raise  # said between two commands: the connection is at rest
    except BaseException:
        connection.abort()
        raise
    finally:
        connection.expire_at(float("inf"))


class _Transaction:
    def __init__(self, connection: Connection, message: OutgoingMessage, options: TransferOptions, size: int) -> None:
        self._connection = connection
        self._content = message.content
        self._recipients = message.envelope.recipients
        self._options = options
        self._size = size
        self._accepted: list[str] = []
        self._refused: dict[str, Refusal] = {}
        self._body_written = False
        _check_limits(connection, message, size)
        self._commands = [
            mail_from(message.envelope, size, connection.capabilities),
            *map(rcpt_to, self._recipients),
        ]
        self._steps = ["MAIL FROM", *["RCPT TO"] * len(self._recipients)]

    async def run(self) -> Outcome:
        connection, options = self._connection, self._options
        now = asyncio.get_running_loop().time()
        steps = 4 * (1 + len(self._recipients) // 100) * options.timeout
        connection.expire_at(now + steps + options.data_timeout + self._size / _SLOWEST)
        chunking = connection.capabilities.chunking
        # A server that does not understand RSET would add these recipients to the transaction before, so nothing
        # that leads to a delivery may be on its way until the answer to RSET is known.
        resets, connection.needs_reset = connection.needs_reset, False
        if not connection.capabilities.pipelining:
            await self._envelope_step_by_step(resets)
        elif chunking and not resets and self._fits_one_flight(now):
            return await self._in_one_flight()
        elif chunking or resets or not self._partial_is_fine:
            await self._envelope_in_one(resets)
        else:
            await self._envelope_with_data()
            return await self._content_as_data()
        if chunking:
            return await self._content_in_chunks()
        await self._announce_data()
        return await self._content_as_data()

    @property
    def _partial_is_fine(self) -> bool:
        return self._options.allow_partial or len(self._recipients) == 1

    def _fits_one_flight(self, now: float) -> bool:
        return (
            self._options.one_flight
            and self._size <= ONE_FLIGHT_MAX
            and self._partial_is_fine
            and now - self._connection.heard_at < _TRUSTED_FOR
        )

    # The envelope, and the small message that goes with it

    async def _in_one_flight(self) -> Outcome:
        flight = b"".join((*self._commands, b"BDAT %d LAST\r\n" % self._size, *self._content))
        self._body_written = True
        try:
            replies = await self._connection.ask(
                flight, len(self._commands) + 1, final_limit=self._options.data_timeout
            )
        except WireFailure as failure:
            self._judge_part(failure.replies)
            raise self._failed([*self._steps, "BDAT"], failure) from failure
        self._connection.needs_reset = True
        self._judge_departure([*self._steps, "BDAT"], replies)
        self._judge_envelope(replies)
        outcome = self._judge_content("BDAT", replies[-1])
        self._connection.needs_reset = False
        return outcome

    async def _envelope_in_one(self, resets: bool) -> None:
        commands, steps = self._commands, self._steps
        if resets:
            commands, steps = [b"RSET\r\n", *commands], ["RSET", *steps]
        replies = await self._ask(b"".join(commands), steps)
        if resets:
            self._judge_reset(replies.pop(0))
        self._judge_envelope(replies)

    async def _envelope_step_by_step(self, resets: bool) -> None:
        if resets:
            self._judge_reset((await self._ask(b"RSET\r\n", ["RSET"]))[0])
        replies: list[Reply] = []
        for command, step in zip(self._commands, self._steps, strict=True):
            replies += await self._ask(command, [step])
            if not replies[0].positive:
                break
        self._judge_envelope(replies)

    async def _envelope_with_data(self) -> None:
        replies = await self._ask(b"".join((*self._commands, b"DATA\r\n")), [*self._steps, "DATA"])
        try:
            self._judge_envelope(replies)
        except (MessageRefused, RecipientsRefused):
            if replies[-1].code == _READY:
                await self._end_at_once()
            raise
        self._judge_ready(replies[-1])

    async def _announce_data(self) -> None:
        self._judge_ready((await self._ask(b"DATA\r\n", ["DATA"]))[0])

    async def _end_at_once(self) -> None:
        """The server waits for content although nobody is to get any: end it; the answer does not matter."""
        self._connection.needs_reset = False  # the end of data also ends the transaction
        try:
            await self._connection.ask(b".\r\n", final_limit=self._options.data_timeout)
        except WireFailure:
            self._connection.abort()

    # The content

    async def _content_in_chunks(self) -> Outcome:
        """BDAT after BDAT, each written while the server answers the one before."""
        connection = self._connection
        before: Exchange | None = None
        try:
            for begin in range(0, self._size or 1, _CHUNK):
                end = min(begin + _CHUNK, self._size)
                last = end == self._size
                command = b"BDAT %d LAST\r\n" if last else b"BDAT %d\r\n"
                answer = connection.request(command % (end - begin), 1, final_limit=self._options.data_timeout)
                await self._write_chunk(begin, end)
                self._body_written = last
                if before is not None and not (await self._answer(before)).positive:
                    with contextlib.suppress(WireFailure):
                        await self._answer(answer)  # it follows a refused chunk, so it says nothing new
                    break
                before = answer
                if not connection.capabilities.pipelining and not (await self._answer(answer)).positive:
                    break
            assert before is not None
            reply = await self._answer(before)
        except WireFailure as failure:
            raise self._failed(["BDAT"], failure) from failure
        connection.needs_reset = True
        self._judge_departure(["BDAT"], [reply])
        outcome = self._judge_content("BDAT", reply)
        connection.needs_reset = False
        return outcome

    async def _write_chunk(self, begin: int, end: int) -> None:
        connection = self._connection
        written = 0
        for piece in pieces(self._content, begin, end):
            connection.write(piece)
            written += len(piece)
            if not connection.flushed:
                await connection.drain()
            elif written >= BREATH:
                written = 0
                await asyncio.sleep(0)

    async def _answer(self, exchange: Exchange) -> Reply:
        await exchange.waiter
        return exchange.replies[0]

    async def _content_as_data(self) -> Outcome:
        connection = self._connection
        answer = connection.expect()
        stuffer = DotStuffer()
        written = 0
        try:
            for piece in pieces(self._content, 0, self._size):
                connection.write(stuffer.stuff(bytes(piece)))
                written += len(piece)
                if not connection.flushed:
                    await connection.drain(answer)
                elif written >= BREATH:
                    written = 0
                    await asyncio.sleep(0)
                if answer.waiter.done():
                    break
            else:
                connection.write(stuffer.end())
                self._body_written = True
                await connection.drain(answer)
                connection.hurry(answer, self._options.data_timeout)
            reply = await self._answer(answer)
        except WireFailure as failure:
            raise self._failed(["DATA"], failure) from failure
        if not self._body_written:
            connection.abort()  # an answer to half a message; what follows would be read as commands
        self._judge_departure(["DATA"], [reply])
        return self._judge_content("DATA", reply)

    # Asking and judging

    async def _ask(self, data: bytes, steps: Sequence[str]) -> list[Reply]:
        try:
            replies = await self._connection.ask(data, len(steps))
        except WireFailure as failure:
            raise self._failed(steps, failure) from failure
        self._judge_departure(steps, replies)
        return replies

    def _failed(self, steps: Sequence[str], failure: WireFailure) -> DeliveryError | StaleConnection:
        step = steps[min(len(failure.replies), len(steps) - 1)]
        body_sent = self._body_written and self._connection.flushed
        error = wire_error(self._connection.peer, step, failure, body_sent=body_sent)
        return StaleConnection(error) if failure.kind == "lost" and not body_sent else error

    def _judge_departure(self, steps: Sequence[str], replies: Sequence[Reply]) -> None:
        if replies[-1].code != 421:
            return
        step = steps[len(replies) - 1]
        error = going_away(self._connection.peer, step, replies[-1])
        raise StaleConnection(error) if step in ("RSET", "MAIL FROM") else error

    def _judge_part(self, replies: Sequence[Reply]) -> None:
        """The replies that came before the connection ended: a refusal among them leaves no doubt."""
        if len(replies) >= len(self._steps) or (replies and replies[0].negative):
            self._judge_envelope(replies)

    def _judge_reset(self, reply: Reply) -> None:
        if not reply.positive:
            raise StaleConnection(ConnectionFailed(f"{self._connection.peer}: RSET: {reply}", temporary=True))

    def _judge_envelope(self, replies: Sequence[Reply]) -> None:
        if not replies[0].positive:
            self._require_negative("MAIL FROM", replies[0])
            raise message_refused(self._connection.peer, "MAIL FROM", replies[0])
        for recipient, reply in zip(self._recipients, replies[1:], strict=False):
            if reply.positive:
                self._accepted.append(recipient)
            else:
                self._require_negative("RCPT TO", reply)
                self._refused[recipient] = reply.refusal()
        if not self._accepted or (self._refused and not self._options.allow_partial):
            self._connection.needs_reset = True
            raise recipients_refused(self._connection.peer, self._accepted, self._refused)

    def _judge_ready(self, reply: Reply) -> None:
        if reply.code != _READY:
            self._require_negative("DATA", reply)
            self._connection.needs_reset = True
            raise message_refused(self._connection.peer, "DATA", reply)

    def _judge_content(self, step: str, reply: Reply) -> Outcome:
        if not reply.positive:
            self._require_negative(step, reply)
            raise message_refused(self._connection.peer, step, reply)
        return Outcome(tuple(self._accepted), self._refused, str(reply))

    def _require_negative(self, step: str, reply: Reply) -> None:
        if not reply.negative:
            failure = WireFailure("broken", f"an answer that does not fit: {reply}")
            raise wire_error(
                self._connection.peer, step, failure, body_sent=self._body_written and self._connection.flushed
            )


def _check_limits(connection: Connection, message: OutgoingMessage, size: int) -> None:
    """What the server has said beforehand that it does not take."""
    capabilities, peer = connection.capabilities, connection.peer
    if not message.envelope.recipients:
        raise InvalidMessage("the envelope has no recipient")
    if capabilities.max_size is not None and size > capabilities.max_size:
        raise too_large(peer, message, size, capabilities.max_size)
    if not capabilities.smtputf8 and needs_smtputf8(message.envelope):
        raise MessageRefused(
            f"{peer}: an address of this message is not ASCII, and the server does not offer SMTPUTF8 (RFC 6531)"
        )
