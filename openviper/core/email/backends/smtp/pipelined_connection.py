"""One connection that carries many messages at a time: each flight follows the one before without waiting for replies.

Each flight is RSET, MAIL, RCPT for each recipient, and BDAT LAST. After a refusal nobody here knows whether the server
still has a transaction open, in which a further MAIL is refused (503) and a further RCPT adds to the recipients of the
old one: only RSET in front of each message keeps one's recipients out of the other. It is used on connections only
that have shown that they know RSET.
"""

import asyncio
from collections.abc import Sequence

from openviper.core.email.backends.smtp.commands import mail_from, rcpt_to
from openviper.core.email.backends.smtp.content import check_content
from openviper.core.email.backends.smtp.dialogue import SERVER_CLOSING, Dialogue
from openviper.core.email.backends.smtp.exchange import Exchange, WireFailure
from openviper.core.email.backends.smtp.outcome import StaleConnection, wire_error
from openviper.core.email.backends.smtp.replies import Reply
from openviper.core.email.backends.smtp.transfer import TransferOptions, check_limits
from openviper.core.email.backends.smtp.wire import Connection
from openviper.core.email.errors import MessageRefused, RecipientsRefused
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import OutgoingMessage

__all__ = ["NotAccepted", "PipelinedConnection"]

_MESSAGES = 20  # without a reply
_BYTES = 256 * 1024

_BAD_SEQUENCE = 503


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
