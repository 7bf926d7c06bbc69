"""What became of a transaction, and the errors that tell it apart: refused, not sent, and uncertain."""

import asyncio
import os
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import aiosmtplib

from openviper.core.email.backends.smtp.replies import Reply, reply_text
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
from openviper.text import shown

__all__ = [
    "HANDSHAKE_ERRORS",
    "FailureKind",
    "HandshakeStep",
    "StaleConnection",
    "WireFailure",
    "is_about_greeting",
    "is_about_tls",
    "message_refused",
    "peer_name",
    "recipients_refused",
    "server_closing",
    "too_large",
    "translated",
    "untrusted_certificate",
    "wire_error",
]


def peer_name(settings: EmailSettings) -> str:
    """``host:port`` for error texts."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.port}"


FailureKind = Literal["lost", "silent", "broken"]


class WireFailure(PicklableError):
    """The connection ended, or had to be ended. ``replies`` are those of the exchange that had come before."""

    def __init__(self, kind: FailureKind, detail: str, replies: tuple[Reply, ...] = ()) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.replies = replies


class StaleConnection(PicklableError):
    """The connection was gone before the message could have been taken; on a fresh one it may be sent again.

    ``error`` is what to raise where it is not.
    """

    def __init__(self, error: DeliveryError) -> None:
        super().__init__(str(error))
        self.error = error


def wire_error(peer: str, step: str, failure: WireFailure, *, body_sent: bool) -> DeliveryError:
    """The error for a connection that ended while ``step`` was waited for.

    ``body_sent``: the whole message, its end included, had left this process, so that nobody can know what became
    of it (RFC 1047).
    """
    end = "; the message may or may not have been taken" if body_sent else ""
    kind = DeliveryTimeout if failure.kind == "silent" else ConnectionFailed
    return kind(f"{peer}: {step}: {failure.detail}{end}", temporary=True, uncertain=body_sent)


def server_closing(peer: str, step: str, reply: Reply) -> DeliveryError:
    """The error for 421, which the server may give to anything: it is closing the connection."""
    return ConnectionFailed(f"{peer}: {step}: {reply}", temporary=True, code=reply.code)


def message_refused(peer: str, step: str, reply: Reply) -> MessageRefused:
    """The error for a sender or content that was refused."""
    return MessageRefused(f"{peer}: {step}: {reply}", temporary=reply.refusal().temporary, code=reply.code)


def recipients_refused(peer: str, accepted: Sequence[str], refused: Mapping[str, Refusal]) -> RecipientsRefused:
    """The error for an envelope nobody of which gets the message."""
    replies = sorted({str(refusal) for refusal in refused.values()})
    shown = "; ".join(replies[:3]) + ("; ..." if len(replies) > 3 else "")
    count = f"{len(refused)} of {len(accepted) + len(refused)} recipients refused, nothing was sent"
    return RecipientsRefused(f"{peer}: RCPT TO: {count}: {shown}", accepted=accepted, refused=refused)


def too_large(peer: str, message: OutgoingMessage, size: int, limit: int) -> MessageRefused:
    """The error for a message above the limit that the server announces; nothing was sent."""
    prepared = message.prepared
    parts = [(len(each.content), f"attachment {shown(each.filename)}") for each in prepared.attachments]
    parts += [(len(body), name) for name, body in (("text", prepared.text), ("html", prepared.html)) if body]
    # Exact, because a message is often too large by little.
    text = f"{peer}: the message has {size:,} bytes and the server takes at most {limit:,} bytes"
    if parts:
        largest, name = max(parts)
        text += f"; the largest part is {name} with {largest:,} bytes"
    return MessageRefused(text)


# What aiosmtplib lets out of a handshake; anything else is a mistake of ours and shows as what it is.
HANDSHAKE_ERRORS = (aiosmtplib.SMTPException, OSError, ValueError)


class HandshakeStep:
    """Names of the steps of a handshake, as error texts show them."""

    CONNECT = "connecting"
    GREETING = "greeting"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"


def translated(peer: str, step: str, error: BaseException) -> DeliveryError:
    """Our error for ``error`` at ``step``; the caller raises it from ``error``.

    A server's 5yz, a certificate that cannot be trusted and a TLS version it lacks are permanent; what a later attempt
    may not meet again is temporary.
    """
    chain = tuple(_causes(error))
    tls = next((cause for cause in chain if isinstance(cause, ssl.SSLError)), None)
    if tls is not None:
        return _tls_error(peer, tls)
    if isinstance(error, aiosmtplib.SMTPResponseException) and error.code > 0:
        return _reply_error(peer, step, error)
    if step == HandshakeStep.CONNECT and _connected(chain):
        step = HandshakeStep.GREETING
    if isinstance(error, TimeoutError) or _is_handshake_timeout(chain):
        return DeliveryTimeout(f"{peer}: {step}: the server did not answer in time", temporary=True)
    return ConnectionFailed(f"{peer}: {step}: {_reason(chain)}", temporary=True)


def is_about_greeting(error: DeliveryError) -> bool:
    """True when an error of connecting came after the connection, and with ``use_ssl`` its TLS, stood."""
    chain = tuple(_causes(error.__cause__))
    return bool(chain) and _connected(chain)


def is_about_tls(error: DeliveryError) -> bool:
    """True when the TLS handshake itself failed."""
    return any(isinstance(cause, ssl.SSLError) for cause in _causes(error))


def untrusted_certificate(error: DeliveryError) -> ssl.SSLCertVerificationError | None:
    """What OpenSSL finds wrong with the certificate; None when the failure is another."""
    return next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)


def _connected(chain: tuple[BaseException, ...]) -> bool:
    return isinstance(chain[0], aiosmtplib.SMTPResponseException) or any(
        isinstance(cause, aiosmtplib.SMTPServerDisconnected | aiosmtplib.SMTPReadTimeoutError) for cause in chain[1:]
    )


def _reply_error(peer: str, step: str, error: aiosmtplib.SMTPResponseException) -> DeliveryError:
    if isinstance(error, aiosmtplib.SMTPConnectResponseError):
        step = HandshakeStep.GREETING
    text = f"{peer}: {step}: {error.code} {reply_text(error.message)}".rstrip()
    kind = AuthenticationFailed if isinstance(error, aiosmtplib.SMTPAuthenticationError) else ConnectionFailed
    return kind(text, temporary=error.code < 500, code=error.code if error.code >= 400 else None)


def _tls_error(peer: str, error: ssl.SSLError) -> DeliveryError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectionFailed(
            f"{peer}: TLS: the server's certificate is not trusted: {error.verify_message or error.reason}"
            ' (EMAIL["host"] must be the name in it; EMAIL["tls_ca_file"] adds an authority)'
        )
    cut_off = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
    hint = ""
    if error.reason == "WRONG_VERSION_NUMBER":
        hint = '; the server does not speak TLS here: EMAIL["use_ssl"] is for port 465, EMAIL["use_tls"] for 587'
    return ConnectionFailed(f"{peer}: TLS: {error.reason or 'the handshake failed'}{hint}", temporary=cut_off)


def _is_handshake_timeout(chain: tuple[BaseException, ...]) -> bool:
    # asyncio reports a TLS handshake that takes too long as an aborted connection.
    return any(isinstance(cause, ConnectionAbortedError | asyncio.TimeoutError) for cause in chain)


def _reason(chain: tuple[BaseException, ...]) -> str:
    for cause in chain:
        if isinstance(cause, socket.gaierror):
            return f"the host name has no address: {cause.strerror}"
        if isinstance(cause, OSError) and cause.errno is not None:
            return os.strerror(cause.errno)
    if any(isinstance(cause, aiosmtplib.SMTPServerDisconnected) for cause in chain):
        return "the server closed the connection"
    message = getattr(chain[0], "message", None)
    return reply_text(message if isinstance(message, str) else str(chain[0]))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    current = error
    for _ in range(8):
        if current is None:
            return
        yield current
        current = current.__cause__
