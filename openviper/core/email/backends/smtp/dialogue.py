"""The judging side of a transaction: what was asked, what the answers mean, and which error that is."""

from collections.abc import Sequence

from openviper.core.email.backends.smtp.connection import Connection
from openviper.core.email.backends.smtp.errors import (
    StaleConnection,
    WireFailure,
    message_refused,
    recipients_refused,
    server_closing,
    wire_error,
)
from openviper.core.email.backends.smtp.replies import Reply
from openviper.core.email.errors import ConnectionFailed, DeliveryError, Refusal
from openviper.core.email.events import DeliveryReport

__all__ = ["READY", "SERVER_CLOSING", "Dialogue"]

READY = 354  # to DATA: the content may come
SERVER_CLOSING = 421  # to anything: the server closes the connection
_BEFORE_ANYTHING = ("RSET", "MAIL FROM")


class Dialogue:
    """Asks over ``connection`` and keeps who was accepted and refused.

    ``body_written`` is to be True once the last byte of the message has been written: from then on a lost connection
    leaves the outcome uncertain, unless it has not left this process; ``body_left``: it is known to have. The methods
    raise what a refusal, a departure or a loss means for the caller.
    """

    def __init__(self, connection: Connection, recipients: Sequence[str], *, allow_partial: bool) -> None:
        self.connection = connection
        self.body_written = False
        self.body_left = False
        self._peer = connection.peer
        self._recipients = recipients
        self._allow_partial = allow_partial
        self._accepted: list[str] = []
        self._refused: dict[str, Refusal] = {}

    async def ask(self, data: bytes, steps: Sequence[str], *, final_limit: float | None = None) -> list[Reply]:
        """Write commands; ``steps`` names each of them. Returns a reply for each."""
        try:
            replies = await self.connection.ask(data, len(steps), final_limit=final_limit)
        except WireFailure as failure:
            self.check_cut_flight(steps, failure.replies)
            raise self.failed(steps, failure) from failure
        self.check_departure(steps, replies)
        return replies

    def failed(self, steps: Sequence[str], failure: WireFailure) -> DeliveryError | StaleConnection:
        """The error for a connection that ended before all the replies to ``steps`` were there."""
        step = steps[min(len(failure.replies), len(steps) - 1)]
        error = self._wire_error(step, failure)
        return StaleConnection(error) if failure.kind == "lost" and not error.uncertain else error

    def check_departure(self, steps: Sequence[str], replies: Sequence[Reply]) -> None:
        """Raise when the server has said that it closes the connection; a refusal before that counts."""
        if replies[-1].code != SERVER_CLOSING:
            return
        self.check_cut_flight(steps, replies[:-1])
        step = steps[len(replies) - 1]
        error = server_closing(self._peer, step, replies[-1])
        raise StaleConnection(error) if step in _BEFORE_ANYTHING else error

    def check_reset(self, reply: Reply) -> None:
        """Raise when the transaction before may still be open, so that this connection is of no use."""
        if not reply.positive:
            raise StaleConnection(ConnectionFailed(f"{self._peer}: RSET: {reply}", temporary=True))

    def interpret_envelope(self, replies: Sequence[Reply]) -> None:
        """Note who is accepted and refused; raise when the message may go to nobody. Further replies are ignored."""
        if not replies[0].positive:
            self._require_negative("MAIL FROM", replies[0])
            raise message_refused(self._peer, "MAIL FROM", replies[0])
        for recipient, reply in zip(self._recipients, replies[1:], strict=False):
            if reply.positive:
                self._accepted.append(recipient)
            else:
                self._require_negative("RCPT TO", reply)
                self._refused[recipient] = reply.refusal()
        if not self._accepted or (self._refused and not self._allow_partial):
            self.connection.needs_reset = True
            raise recipients_refused(self._peer, self._accepted, self._refused)

    def check_cut_flight(self, steps: Sequence[str], replies: Sequence[Reply]) -> None:
        """Raise the refusal that came before the connection ended, if it leaves no doubt.

        Some servers hang up behind a refusal, which would be the same at the next attempt.
        """
        if "MAIL FROM" not in steps:
            return
        begin = steps.index("MAIL FROM")
        if not all(reply.positive for reply in replies[:begin]):
            return  # to RSET: what is said behind it may be about another message
        replies = replies[begin:]
        if len(replies) > len(self._recipients) or (replies and replies[0].negative):
            self.interpret_envelope(replies)

    def check_ready(self, reply: Reply) -> None:
        """Raise when the server does not want the content after DATA."""
        if reply.code != READY:
            self._require_negative("DATA", reply)
            self.connection.needs_reset = True
            raise message_refused(self._peer, "DATA", reply)

    def interpret_content(self, step: str, reply: Reply) -> DeliveryReport:
        """The outcome when the server has taken the content; else raise."""
        if reply.positive:
            return DeliveryReport(tuple(self._accepted), self._refused, str(reply))
        self.check_departure([step], [reply])
        self._require_negative(step, reply)
        raise message_refused(self._peer, step, reply)

    @property
    def _body_sent(self) -> bool:
        return self.body_left or (self.body_written and self.connection.flushed)

    def _require_negative(self, step: str, reply: Reply) -> None:
        if not reply.negative:
            failure = WireFailure("broken", f"an answer that does not fit: {reply}")
            raise self._wire_error(step, failure)

    def _wire_error(self, step: str, failure: WireFailure) -> DeliveryError:
        """Return the error for ``failure``; recipients who were refused before it certainly lack the message."""
        error = wire_error(self._peer, step, failure, body_sent=self._body_sent)
        if error.uncertain and self._refused:
            error.refused = dict.fromkeys(self._accepted, Refusal(451, str(error), uncertain=True)) | self._refused
        return error
