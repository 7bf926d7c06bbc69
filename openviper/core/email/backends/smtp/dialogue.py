"""Interpret SMTP replies and map them to delivery errors."""

import asyncio
from collections.abc import Sequence

from openviper.core.email.backends.smtp.connection import TRUSTED_FOR, Connection
from openviper.core.email.backends.smtp.errors import (
    ChunkingRefused,
    StaleConnection,
    WireFailure,
    message_refused_error,
    recipients_refused_error,
    server_closing_error,
    wire_error,
)
from openviper.core.email.backends.smtp.replies import SERVER_CLOSING, Reply, session_timed_out
from openviper.core.email.errors import AuthenticationFailed, ConnectionFailed, DeliveryError, Refusal
from openviper.core.email.events import DeliveryReport

__all__ = ["UNKNOWN_COMMAND", "Dialogue"]

_BEFORE_RECIPIENTS = ("RSET", "MAIL FROM")

# Replies to BDAT of a server, or of a proxy before it, that does not know the command it offers.
UNKNOWN_COMMAND = frozenset({500, 502, 503})


class Dialogue:
    """The commands and replies of one transaction on ``connection``, with the recipients accepted and refused.

    Set ``body_written`` once the last byte of the message has been written: from then on a lost connection makes the
    outcome uncertain, unless that byte has not left this process. Set ``body_flushed`` if it is known to have left.
    The methods raise the delivery error for a refusal or a lost connection.
    """

    def __init__(self, connection: Connection, recipients: Sequence[str], *, allow_partial: bool) -> None:
        self.connection = connection
        self.body_written = False
        self.body_flushed = False
        self._peer = connection.peer
        self._recipients = recipients
        self._allow_partial = allow_partial
        self._accepted: list[str] = []
        self._refused: dict[str, Refusal] = {}

    async def ask(self, data: bytes, steps: Sequence[str], *, final_limit: float | None = None) -> list[Reply]:
        """Write commands and return a reply to each; ``steps`` names them for error texts."""
        was_idle = asyncio.get_running_loop().time() - self.connection.last_read_at >= TRUSTED_FOR
        try:
            replies = await self.connection.ask(data, len(steps), final_limit=final_limit)
        except WireFailure as failure:
            self.check_interrupted_flight(steps, failure.replies)
            raise self.interruption_error(steps, failure, was_idle=was_idle) from failure
        self.check_server_closing(steps, replies)
        return replies

    def interruption_error(
        self, steps: Sequence[str], failure: WireFailure, *, was_idle: bool = False
    ) -> DeliveryError | StaleConnection:
        """Return the error for a connection that ended before all replies to ``steps`` arrived.

        ``was_idle``: nothing had come from the server for a while. If no reply came either, a router may have forgotten
        the connection, and drop its packets without telling.
        """
        step = steps[min(len(failure.replies), len(steps) - 1)]
        error = self._wire_error(step, failure)
        if error.uncertain or failure.kind == "broken":
            return error
        forgotten = was_idle and steps[0] in _BEFORE_RECIPIENTS and not failure.replies
        return StaleConnection(error) if failure.kind == "lost" or forgotten else error

    def check_server_closing(self, steps: Sequence[str], replies: Sequence[Reply]) -> None:
        """Raise if the last reply is 421; a refusal before it takes precedence."""
        if replies[-1].code != SERVER_CLOSING:
            return
        self.check_interrupted_flight(steps, replies[:-1])
        step = steps[len(replies) - 1]
        error = server_closing_error(self._peer, step, replies[-1])
        raise StaleConnection(error) if step in _BEFORE_RECIPIENTS else error

    def check_reset(self, reply: Reply) -> None:
        """Raise if RSET was refused: the last transaction may still be open, so the connection is unusable."""
        if not reply.positive:
            summary = f"{self._peer}: RSET"
            raise StaleConnection(ConnectionFailed(f"{summary}: {reply}", temporary=True, summary=summary))

    def interpret_envelope(self, replies: Sequence[Reply]) -> None:
        """Record the recipients accepted and refused; raise if the message may go to none of them.

        ``replies`` are those to MAIL and to each RCPT; further ones are ignored. A refusal that concerns the session,
        such as one that was idle for too long, makes the connection stale: a new one may send the message.
        """
        if not replies[0].positive:
            self._require_negative("MAIL FROM", replies[0])
            error = message_refused_error(self._peer, "MAIL FROM", replies[0])
            about_session = isinstance(error, AuthenticationFailed) or session_timed_out(replies[0].refusal())
            raise StaleConnection(error) if about_session else error
        for recipient, reply in zip(self._recipients, replies[1:], strict=False):
            if reply.positive:
                self._accepted.append(recipient)
            else:
                self._require_negative("RCPT TO", reply)
                self._refused[recipient] = reply.refusal()
        if not self._accepted or (self._refused and not self._allow_partial):
            self.connection.needs_reset = True
            raise recipients_refused_error(self._peer, self._accepted, self._refused)

    def check_interrupted_flight(self, steps: Sequence[str], replies: Sequence[Reply]) -> None:
        """Raise the refusal that arrived before the connection ended, if it is conclusive.

        Some servers close the connection after a refusal, which would recur at the next attempt.
        """
        if "MAIL FROM" not in steps:
            return
        begin = steps.index("MAIL FROM")
        if not all(reply.positive for reply in replies[:begin]):
            return  # RSET failed: the replies behind it may concern another message
        replies = replies[begin:]
        if len(replies) > len(self._recipients) or (replies and replies[0].negative):
            self.interpret_envelope(replies)

    def check_data_reply(self, reply: Reply) -> None:
        """Raise if the server does not ask for the content after DATA."""
        if not reply.intermediate:
            self._require_negative("DATA", reply)
            self.connection.needs_reset = True
            raise message_refused_error(self._peer, "DATA", reply)

    def interpret_content(self, step: str, reply: Reply) -> DeliveryReport:
        """Return the report if the server has accepted the content, else raise.

        A server that does not know BDAT may have read the content as commands, so its connection is unusable.
        """
        if reply.positive:
            return DeliveryReport(tuple(self._accepted), self._refused, str(reply))
        self.check_server_closing([step], [reply])
        self._require_negative(step, reply)
        error = message_refused_error(self._peer, step, reply)
        raise ChunkingRefused(error) if step == "BDAT" and reply.code in UNKNOWN_COMMAND else error

    @property
    def _body_sent(self) -> bool:
        return self.body_flushed or (self.body_written and self.connection.flushed)

    def _require_negative(self, step: str, reply: Reply) -> None:
        if not reply.negative:
            raise self._wire_error(step, WireFailure("broken", f"unexpected reply: {reply}"))

    def _wire_error(self, step: str, failure: WireFailure) -> DeliveryError:
        """Return the error for ``failure``; recipients refused before it certainly did not get the message."""
        error = wire_error(self._peer, step, failure, body_sent=self._body_sent)
        if error.uncertain and self._refused:
            error.refused = dict.fromkeys(self._accepted, Refusal(451, str(error), uncertain=True)) | self._refused
        return error
