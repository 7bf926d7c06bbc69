"""aiosmtplib's and the system's errors of the handshake as ours: what failed, at which step, and whether to retry."""

import asyncio
import os
import socket
import ssl
from collections.abc import Iterator

import aiosmtplib

from openviper.core.email.backends.smtp.replies import one_line
from openviper.core.email.errors import AuthenticationFailed, ConnectionFailed, DeliveryError, DeliveryTimeout

__all__ = [
    "HANDSHAKE_ERRORS",
    "HandshakeStep",
    "is_about_greeting",
    "is_about_tls",
    "translated",
    "untrusted_certificate",
]

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
    text = f"{peer}: {step}: {error.code} {one_line(error.message)}".rstrip()
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
    return one_line(message if isinstance(message, str) else str(chain[0]))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    current = error
    for _ in range(8):
        if current is None:
            return
        yield current
        current = current.__cause__
