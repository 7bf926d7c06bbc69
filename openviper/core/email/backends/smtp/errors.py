"""Map failures of a connection, replies and aiosmtplib's errors to delivery errors.

Each says what failed, at which step, and whether to retry; a lost connection also whether the message may have been
accepted.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Literal

import aiosmtplib

from openviper.core.email.backends.smtp.replies import (
    SERVER_CLOSING,
    Reply,
    concerns_size,
    names_too_many_recipients,
    reply_text,
    requires_login,
)
from openviper.core.email.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    DeliveryError,
    DeliveryTimeout,
    MessageRefused,
    RecipientsRefused,
    Refusal,
)
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import PicklableError
from openviper.tcp import ConnectFailed, ConnectTimeout
from openviper.text import shown

__all__ = [
    "HANDSHAKE_ERRORS",
    "ChunkingRefused",
    "FailureKind",
    "HandshakeStep",
    "StaleConnection",
    "TooManyRecipients",
    "WireFailure",
    "causes",
    "certificate_error",
    "handshake_error",
    "is_connection_refusal",
    "is_greeting_error",
    "is_tls_error",
    "message_refused_error",
    "peer_name",
    "recipients_refused_error",
    "server_closing_error",
    "too_large_error",
    "wire_error",
]

_LOGIN_HINT = """; the server requires a login (EMAIL["username"]) or encryption (EMAIL["use_tls"]) first"""
_RECIPIENTS_HINT = """; lower EMAIL["max_recipients_per_message"]: more recipients then get envelopes of their own"""
_SIZE_HINT = (
    "; the message is too large for this server: send a link instead of a large attachment "
    "(docs: troubleshooting#refused)"
)

_UNCERTAIN = "; the message may or may not have been accepted (docs: troubleshooting#arrives-twice)"

# All that aiosmtplib raises during a handshake; anything else is a bug here and must surface as it is.
HANDSHAKE_ERRORS = (aiosmtplib.SMTPException, OSError, ValueError)

FailureKind = Literal["lost", "silent", "broken"]

# For logs: a failure's own detail may quote the server.
_SUMMARIES: Mapping[FailureKind, str] = {
    "lost": "the connection was lost",
    "silent": "no answer in time",
    "broken": "an invalid reply",
}


class WireFailure(PicklableError):
    """The connection ended: lost, silent for too long, or broken by an invalid reply.

    ``replies`` are those of the exchange that arrived before.
    """

    def __init__(self, kind: FailureKind, detail: str, replies: tuple[Reply, ...] = ()) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.replies = replies


class StaleConnection(PicklableError):
    """The connection was lost before the server can have accepted the message, so a new connection may send it again.

    ``error`` is the error to raise if it is not sent again.
    """

    def __init__(self, error: DeliveryError) -> None:
        super().__init__(str(error))
        self.error = error


class ChunkingRefused(StaleConnection):
    """The server offers CHUNKING but refused BDAT as an unknown command, so DATA on a new connection may succeed."""


class TooManyRecipients(PicklableError):
    """The envelope has more recipients than the server announces as its ``limit`` (RFC 9422); nothing was sent."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit} recipients")
        self.limit = limit


class HandshakeStep:
    """Names of the steps of a handshake, as error texts show them."""

    CONNECT = "connecting"
    GREETING = "greeting"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"


def peer_name(settings: EmailSettings) -> str:
    """Return the server as ``host:port`` for error texts."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.port}"


def wire_error(peer: str, step: str, failure: WireFailure, *, body_sent: bool) -> DeliveryError:
    """Return the error for a connection that ended before the reply to ``step``.

    ``body_sent`` means that the whole message, its end included, has left this process, so that the outcome is
    uncertain (RFC 1047).
    """
    end = _UNCERTAIN if body_sent else ""
    kind = DeliveryTimeout if failure.kind == "silent" else ConnectionFailed
    summary = f"{peer}: {step}: {_SUMMARIES[failure.kind]}{end}"
    return kind(f"{peer}: {step}: {failure.detail}{end}", temporary=True, uncertain=body_sent, summary=summary)


def server_closing_error(peer: str, step: str, reply: Reply) -> DeliveryError:
    """Return the error for 421, with which the server may answer any command before it closes the connection."""
    enhanced = reply.refusal().enhanced
    summary = f"{peer}: {step}"
    text = f"{summary}: {reply}"
    return ConnectionFailed(text, temporary=True, code=reply.code, enhanced=enhanced, summary=summary)


def message_refused_error(peer: str, step: str, reply: Reply, *, hint: bool = True) -> DeliveryError:
    """Return the error for a sender or content refused at ``step``: ``MessageRefused``.

    ``AuthenticationFailed`` if the server requires a login first, which says nothing about the message. ``hint``: add
    the remedy for replies that have one.
    """
    refusal = reply.refusal()
    kind = AuthenticationFailed if requires_login(refusal) else MessageRefused
    remedy = _hint(refusal) if hint else ""
    return kind(
        f"{peer}: {step}: {reply}{remedy}",
        temporary=refusal.temporary,
        code=reply.code,
        enhanced=refusal.enhanced,
        summary=f"{peer}: {step}{remedy}",
    )


def recipients_refused_error(peer: str, accepted: Sequence[str], refused: Mapping[str, Refusal]) -> DeliveryError:
    """Return the error for an envelope that was not sent because of its refused recipients: ``RecipientsRefused``.

    ``AuthenticationFailed`` if the server requires a login for all of them.
    """
    refusals = tuple(refused.values())
    if not accepted and all(map(requires_login, refusals)):
        first_reply = refusals[0]
        hint = _hint(first_reply)
        return AuthenticationFailed(
            f"{peer}: RCPT TO: {first_reply}{hint}",
            code=first_reply.code,
            enhanced=first_reply.enhanced,
            summary=f"{peer}: RCPT TO{hint}",
        )
    replies = sorted({str(refusal) for refusal in refused.values()})
    first = "; ".join(replies[:3]) + ("; ..." if len(replies) > 3 else "")
    count = f"{len(refused)} of {len(accepted) + len(refused)} recipients refused, nothing was sent"
    hint = next(filter(None, map(_hint, refusals)), "")
    text, summary = f"{peer}: RCPT TO: {count}: {first}{hint}", f"{peer}: RCPT TO: {count}{hint}"
    return RecipientsRefused(text, accepted=accepted, refused=refused, summary=summary)


def _hint(refusal: Refusal) -> str:
    """Return the remedy for a reply of a transaction, to be put behind it; empty if the reply has none."""
    if requires_login(refusal):
        return _LOGIN_HINT
    if names_too_many_recipients(refusal):
        return _RECIPIENTS_HINT
    return _SIZE_HINT if concerns_size(refusal) else ""


def too_large_error(peer: str, message: OutgoingMessage, size: int, limit: int) -> MessageRefused:
    """Return the error for a message of ``size`` bytes, above the ``limit`` that the server announces."""
    prepared = message.prepared
    parts = [(each.size, f"attachment {shown(each.filename)}") for each in prepared.attachments]
    parts += [(len(body), name) for name, body in (("text", prepared.text), ("html", prepared.html)) if body]
    # Exact numbers, because messages often exceed the limit by little.
    text = summary = f"{peer}: the message has {size:,} bytes and the server accepts at most {limit:,} bytes"
    if parts:
        largest, name = max(parts)
        text += f"; the largest part is {name} with {largest:,} bytes"
    return MessageRefused(text, summary=summary)


def handshake_error(peer: str, step: str, error: BaseException) -> DeliveryError:
    """Return the delivery error for ``error`` at ``step``, to be raised from it.

    A reply 5yz, an untrusted certificate and a missing TLS version are permanent; failures that may not recur are
    temporary.
    """
    chain = causes(error)
    _drop_frames(chain)
    tls = next((cause for cause in chain if isinstance(cause, ssl.SSLError)), None)
    if tls is not None:
        return _tls_error(peer, tls)
    if isinstance(error, aiosmtplib.SMTPResponseException) and error.code > 0:
        return _reply_error(peer, step, error)
    if step == HandshakeStep.CONNECT and _was_connected(chain):
        step = HandshakeStep.GREETING
    if isinstance(error, ConnectTimeout):
        text = f"{peer}: {step}: {error}"
        return DeliveryTimeout(text, temporary=True, summary=text)
    if isinstance(error, TimeoutError) or _is_tls_timeout(chain):
        text = f"{peer}: {step}: the server did not answer in time"
        return DeliveryTimeout(text, temporary=True, summary=text)
    reason = _known_reason(chain)
    text = f"{peer}: {step}: {reason or _quoted_reason(chain[0])}"
    return ConnectionFailed(text, temporary=True, summary=text if reason else f"{peer}: {step}")


def is_greeting_error(error: DeliveryError) -> bool:
    """True if an error of connecting arose after the connection, with ``use_ssl`` also its TLS, was established."""
    chain = causes(error.__cause__)
    return bool(chain) and _was_connected(chain)


def is_connection_refusal(error: ConnectionFailed) -> bool:
    """True if the server may have refused a connection because of others: by 421, or by closing it for a greeting."""
    return error.temporary and (error.code == SERVER_CLOSING or is_greeting_error(error))


def is_tls_error(error: DeliveryError) -> bool:
    """True if the TLS handshake itself failed."""
    return any(isinstance(cause, ssl.SSLError) for cause in causes(error))


def certificate_error(error: DeliveryError) -> ssl.SSLCertVerificationError | None:
    """Return OpenSSL's error about the server's certificate; None if ``error`` has another cause."""
    return next((cause for cause in causes(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)


def _drop_frames(chain: tuple[BaseException, ...]) -> None:
    """Leave of a failed connection's causes their texts: the frames of asyncio and the client say nothing more."""
    for cause in chain:
        if isinstance(cause, OSError | aiosmtplib.SMTPException):
            cause.__traceback__ = None


def _was_connected(chain: tuple[BaseException, ...]) -> bool:
    return isinstance(chain[0], aiosmtplib.SMTPResponseException) or any(
        isinstance(cause, aiosmtplib.SMTPServerDisconnected | aiosmtplib.SMTPReadTimeoutError) for cause in chain[1:]
    )


def _reply_error(peer: str, step: str, error: aiosmtplib.SMTPResponseException) -> DeliveryError:
    if isinstance(error, aiosmtplib.SMTPConnectResponseError):
        step = HandshakeStep.GREETING
    refusal = Refusal(error.code, reply_text(error.message))
    text = f"{peer}: {step}: {refusal}"
    # 421 answers any command, and says nothing about the credentials (RFC 5321 section 3.8).
    about_login = isinstance(error, aiosmtplib.SMTPAuthenticationError) and error.code != 421
    kind = AuthenticationFailed if about_login else ConnectionFailed
    code = error.code if error.code >= 400 else None
    summary = f"{peer}: {step}"
    return kind(text, temporary=error.code < 500, code=code, enhanced=refusal.enhanced, summary=summary)


def _tls_error(peer: str, error: ssl.SSLError) -> DeliveryError:
    if isinstance(error, ssl.SSLCertVerificationError):
        text = (
            f"{peer}: TLS: the server's certificate is not trusted: {error.verify_message or error.reason}"
            ' (EMAIL["host"] must be the name in it; EMAIL["tls_ca_file"] adds an authority)'
        )
        return ConnectionFailed(text, summary=text)
    cut_off = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
    hint = ""
    if error.reason == "WRONG_VERSION_NUMBER":
        hint = '; this port does not begin with TLS: EMAIL["use_ssl"] is for port 465, EMAIL["use_tls"] for 587'
    text = f"{peer}: TLS: {error.reason or 'the handshake failed'}{hint}"
    return ConnectionFailed(text, temporary=cut_off, summary=text)


def _is_tls_timeout(chain: tuple[BaseException, ...]) -> bool:
    # asyncio reports a TLS handshake that takes too long as an aborted connection.
    return any(isinstance(cause, ConnectionAbortedError | asyncio.TimeoutError) for cause in chain)


def _known_reason(chain: tuple[BaseException, ...]) -> str | None:
    """Return why the connection failed, without the server's words; None if only these say it."""
    if isinstance(chain[0], ConnectFailed):
        return str(chain[0])
    for cause in chain:
        if isinstance(cause, socket.gaierror):
            return f"the host name has no address: {cause.strerror}"
        if isinstance(cause, OSError) and cause.errno is not None:
            return os.strerror(cause.errno)
    if any(isinstance(cause, aiosmtplib.SMTPServerDisconnected) for cause in chain):
        return "the server closed the connection"
    return None


def _quoted_reason(error: BaseException) -> str:
    message = getattr(error, "message", None)
    return reply_text(message if isinstance(message, str) else str(error))


def causes(error: BaseException | None) -> tuple[BaseException, ...]:
    """Return ``error`` and the errors that caused it, at most eight; none for None."""
    chain: list[BaseException] = []
    while error is not None and len(chain) < 8:
        chain.append(error)
        error = error.__cause__
    return tuple(chain)
