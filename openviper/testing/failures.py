"""Failing as a mail server does: the errors that a backend of SMTP raises, without a server."""

import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from openviper.core.email import (
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
from openviper.testing.criteria import Criterion, addresses_fit
from openviper.text import shown

__all__ = ["Failure", "ReplyStep"]

ReplyStep = Literal["connect", "auth", "mail", "rcpt", "data", "drop", "silence", "broker"]

_REPLY = re.compile(r"([45][0-9][0-9])(?:[ -](.*))?", re.DOTALL)
_WITHOUT_REPLY = ("connect", "drop", "silence", "broker")


@dataclass(slots=True)
class Failure:
    """``reply``: the server's, such as ``451 try later``; ``left``: how often yet, None without end.

    ``to``: which recipients are refused at ``rcpt``; None is all of them.
    """

    step: ReplyStep
    reply: Reply | None
    to: Criterion | None
    left: int | None

    @classmethod
    def make(cls, reply: str, *, at: str, to: Criterion | None, times: int | None) -> "Failure":
        """Check what a test has asked for.

        Raises:
            ValueError: there is no such step, it needs a reply of 4xx or 5xx, or ``to`` is given for another one.
        """
        step = next((known for known in get_args(ReplyStep) if known == at), None)
        if step is None:
            raise ValueError(f"at: there is no step {shown(at)}; give one of {', '.join(get_args(ReplyStep))}")
        if to is not None and at != "rcpt":
            raise ValueError('to: only at="rcpt" fails for single recipients')
        if times is not None and times < 1:
            raise ValueError("times: must be 1 or more, or None to fail until told otherwise")
        match = _REPLY.fullmatch(reply)
        if match is None and (step not in _WITHOUT_REPLY or reply[:3].isdigit()):
            raise ValueError(f"reply: {shown(reply)} is no refusal; give a code and a text, such as '451 try later'")
        return cls(step, Reply(int(match[1]), match[2] or "") if match else None, to, times)

    def use_up(self) -> bool:
        """Count one failing; False when none is left."""
        if self.left is None:
            return True
        self.left -= 1
        return self.left >= 0

    def refuses(self, recipients: Sequence[str]) -> dict[str, Refusal]:
        """Who of ``recipients`` is refused, at ``rcpt``."""
        assert self.reply is not None
        refusal = self.reply.refusal()
        return {one: refusal for one in recipients if self.to is None or addresses_fit(self.to, (one,))}

    def error(self, recipients: Sequence[str], settings: EmailSettings) -> DeliveryError | None:
        """What a backend raises for a message to ``recipients``; None when some of them get it."""
        peer = peer_name(settings)
        if self.step != "rcpt":
            return _ERRORS[self.step](peer, self.reply)
        assert self.reply is not None
        refused = self.refuses(recipients)
        if not refused or (
            self.reply.code != SERVER_CLOSING and len(refused) < len(recipients) and settings.allow_partial
        ):
            return None
        if self.reply.code == SERVER_CLOSING:
            return server_closing_error(peer, "RCPT TO", self.reply)
        return recipients_refused_error(peer, [one for one in recipients if one not in refused], refused)

    def queue_error(self) -> QueueUnavailable:
        """What the queue raises at ``broker``."""
        return QueueUnavailable(f"the broker does not answer ({self.reply or 'a test lets it fail'})")


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
