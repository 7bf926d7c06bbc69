"""Simulate failures of a mail server: the errors that ``SMTPBackend`` raises, without a server."""

import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from openviper.core.email import (
    Address,
    AuthenticationFailed,
    ConnectionFailed,
    DeliveryError,
    EmailSettings,
    QueueUnavailable,
    Refusal,
)
from openviper.core.email.backends.smtp.errors import (
    WireFailure,
    message_refused_error,
    peer_name,
    recipients_refused_error,
    server_closing_error,
    wire_error,
)
from openviper.core.email.backends.smtp.replies import SERVER_CLOSING, Reply
from openviper.testing.criteria import Criterion, match_addresses
from openviper.text import shown

__all__ = ["Failure", "ReplyStep"]

ReplyStep = Literal["connect", "auth", "mail", "rcpt", "data", "drop", "silence", "broker"]

_REPLY = re.compile(r"([45][0-9][0-9])(?:[ -](.*))?", re.DOTALL)
_WITHOUT_REPLY = ("connect", "drop", "silence", "broker")


@dataclass(slots=True)
class Failure:
    """A failure at ``step``; ``reply`` is the server's, such as ``451 try later``.

    ``to``: the recipients refused at ``rcpt``, None for all. ``left``: how many attempts still fail, None for all.
    """

    step: ReplyStep
    reply: Reply | None
    to: Criterion | Address | None
    left: int | None

    @classmethod
    def make(cls, reply: str, *, at: str, to: Criterion | Address | None, times: int | None) -> "Failure":
        """Make a failure from a test's arguments.

        Raises:
            ValueError: the step does not exist or needs a reply of 4xx or 5xx, or ``to`` is given for another step.
        """
        step = next((known for known in get_args(ReplyStep) if known == at), None)
        if step is None:
            raise ValueError(f"at: there is no step {shown(at)}; give one of {', '.join(get_args(ReplyStep))}")
        if to is not None and at != "rcpt":
            raise ValueError('to: only at="rcpt" can fail for single recipients')
        if times is not None and times < 1:
            raise ValueError("times: must be 1 or more, or None for all attempts")
        match = _REPLY.fullmatch(reply)
        if match is None and (step not in _WITHOUT_REPLY or reply[:3].isdigit()):
            raise ValueError(f"reply: {shown(reply)} is not a refusal; give a code and a text, such as '451 try later'")
        return cls(step, Reply(int(match[1]), match[2] or "") if match else None, to, times)

    def consume(self) -> bool:
        """Count one failed attempt; False if no more attempts have to fail."""
        if self.left is None:
            return True
        self.left -= 1
        return self.left >= 0

    def find_refusals(self, recipients: Sequence[str]) -> dict[str, Refusal]:
        """Return the refused ones of ``recipients`` with their refusals; only for ``rcpt``."""
        assert self.reply is not None
        refusal = self.reply.refusal()
        return {
            address: refusal
            for address in recipients
            if self.to is None or match_addresses(self.to, (address,), field="to")
        }

    def make_error(self, recipients: Sequence[str], settings: EmailSettings) -> DeliveryError | None:
        """Return the error that the backend raises for ``recipients``; None if it accepts some of them."""
        peer = peer_name(settings)
        if self.step != "rcpt":
            return _ERRORS[self.step](peer, self.reply)
        assert self.reply is not None
        refused = self.find_refusals(recipients)
        if not refused or (
            self.reply.code != SERVER_CLOSING and len(refused) < len(recipients) and settings.allow_partial
        ):
            return None
        if self.reply.code == SERVER_CLOSING:
            return server_closing_error(peer, "RCPT TO", self.reply)
        return recipients_refused_error(peer, [address for address in recipients if address not in refused], refused)

    def make_queue_error(self) -> QueueUnavailable:
        """Return the error that the queue raises; only for ``broker``."""
        return QueueUnavailable(f"the broker does not answer ({self.reply or 'the test makes it fail'})")


def _connect(peer: str, reply: Reply | None) -> DeliveryError:
    if reply is None:
        return ConnectionFailed(f"{peer}: connecting: {os.strerror(errno.ECONNREFUSED)}", temporary=True)
    return ConnectionFailed(f"{peer}: greeting: {reply}", temporary=reply.refusal().temporary, code=reply.code)


def _auth(peer: str, reply: Reply | None) -> DeliveryError:
    assert reply is not None
    return AuthenticationFailed(f"{peer}: AUTH: {reply}", temporary=reply.refusal().temporary, code=reply.code)


def _mail(peer: str, reply: Reply | None) -> DeliveryError:
    assert reply is not None
    return (server_closing_error if reply.code == SERVER_CLOSING else message_refused_error)(peer, "MAIL FROM", reply)


def _data(peer: str, reply: Reply | None) -> DeliveryError:
    assert reply is not None
    return (server_closing_error if reply.code == SERVER_CLOSING else message_refused_error)(peer, "DATA", reply)


def _drop(peer: str, _reply: Reply | None) -> DeliveryError:
    lost = WireFailure("lost", "the server closed the connection")
    return wire_error(peer, "DATA", lost, body_sent=True)


def _silence(peer: str, _reply: Reply | None) -> DeliveryError:
    silent = WireFailure("silent", "the server did not answer in time")
    return wire_error(peer, "DATA", silent, body_sent=True)


_ERRORS: dict[str, Callable[[str, Reply | None], DeliveryError]] = {
    "connect": _connect,
    "auth": _auth,
    "mail": _mail,
    "data": _data,
    "drop": _drop,
    "silence": _silence,
}
