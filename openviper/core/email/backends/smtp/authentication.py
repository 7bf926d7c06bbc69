"""AUTH over aiosmtplib: never in the clear, and no secret in an error, its text, its cause or its traceback."""

import base64
import ipaddress

import aiosmtplib

from openviper.core.email.backends.smtp.handshake_errors import HANDSHAKE_ERRORS, HandshakeStep, translated
from openviper.core.email.errors import AuthenticationFailed
from openviper.core.email.settings import EmailSettings

__all__ = ["authenticate"]


async def authenticate(client: aiosmtplib.SMTP, settings: EmailSettings, peer: str) -> None:
    """Log in with ``xoauth2_token``, else with ``password`` by the methods that both sides know, best first.

    After a permanent refusal the next method is tried, because some servers offer what they do not support.

    Raises:
        AuthenticationFailed: refused, not offered, or the channel is open to others.
        DeliveryError: the connection failed.
    """
    _require_private_channel(client, peer)
    methods = _methods(client, settings, peer)
    failure: Exception | None = None
    for method in methods:
        failure = await _attempt(client, settings, method)
        if failure is None:
            return
        if not (
            isinstance(failure, aiosmtplib.SMTPAuthenticationError) and failure.code >= 500 and client.is_connected
        ):
            break
    assert failure is not None
    # Outside of any except block, so that the original error, whose frames hold the password, is not its context.
    raise translated(peer, HandshakeStep.AUTH, failure) from failure


def _require_private_channel(client: aiosmtplib.SMTP, peer: str) -> None:
    transport = client.transport
    if transport is None or transport.get_extra_info("sslcontext") is not None:
        return
    address = transport.get_extra_info("peername")
    if not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
        raise AuthenticationFailed(
            f"{peer}: AUTH: the password would be sent in clear text; "
            'set EMAIL["use_tls"] (STARTTLS) or EMAIL["use_ssl"]'
        )


def _methods(client: aiosmtplib.SMTP, settings: EmailSettings, peer: str) -> list[str]:
    offered = client.server_auth_methods
    if settings.xoauth2_token is None:
        methods = client.supported_auth_methods
    else:
        methods = ["xoauth2"] if "xoauth2" in offered else []
    if not methods:
        has = f"offers only {', '.join(offered).upper()}" if offered else "offers no AUTH"
        wanted = "XOAUTH2" if settings.xoauth2_token is not None else "CRAM-MD5, PLAIN or LOGIN"
        raise AuthenticationFailed(f'{peer}: AUTH: EMAIL["username"] is set, but the server {has}, not {wanted}')
    return methods


async def _attempt(client: aiosmtplib.SMTP, settings: EmailSettings, method: str) -> Exception | None:
    username = settings.username or ""
    secret = settings.xoauth2_token or settings.password
    assert secret is not None
    login = {
        "cram-md5": client.auth_crammd5,
        "plain": client.auth_plain,
        "login": client.auth_login,
        "xoauth2": client.auth_xoauth2,
    }[method]
    try:
        await login(username, secret.get_secret_value())
    except HANDSHAKE_ERRORS as error:
        return _without_secrets(error, username, secret.get_secret_value())
    return None


def _without_secrets(error: Exception, username: str, secret: str) -> Exception:
    """An error of the same meaning without the traceback of ``error`` and without what the server may have echoed."""
    if isinstance(error, aiosmtplib.SMTPResponseException):
        if error.code < 0:
            return aiosmtplib.SMTPServerDisconnected("the answer is no SMTP reply")
        return aiosmtplib.SMTPAuthenticationError(error.code, _redacted(error.message, username, secret))
    if isinstance(error, TimeoutError):
        return aiosmtplib.SMTPReadTimeoutError("no answer")
    return aiosmtplib.SMTPServerDisconnected("the server closed the connection")


def _redacted(text: str, username: str, secret: str) -> str:
    plain = f"\0{username}\0{secret}"
    bearer = f"user={username}\1auth=Bearer {secret}\1\1"
    shapes = [secret, *(base64.b64encode(shape.encode()).decode() for shape in (secret, plain, bearer))]
    for shape in shapes:
        text = text.replace(shape, "***")
    return " ".join("***" if len(word) > 5 and _lies_in(word, shapes) else word for word in text.split())


def _lies_in(word: str, shapes: list[str]) -> bool:
    return any(word.strip("'\"<>().,;:") in shape for shape in shapes)
