"""Opening a connection: aiosmtplib connects, greets, STARTTLSes and authenticates; then ours takes the transport."""

import asyncio
import base64
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import aiosmtplib

from openviper.core.email.backends.smtp.commands import Capabilities, check_host_name, is_host_name
from openviper.core.email.backends.smtp.connection import Connection
from openviper.core.email.backends.smtp.errors import HANDSHAKE_ERRORS, HandshakeStep, peer_name, translated
from openviper.core.email.errors import AuthenticationFailed, ConnectionFailed
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured
from openviper.network import is_loopback
from openviper.text import shown

if TYPE_CHECKING:
    from asyncio import Transport

__all__ = ["Handshake", "authenticate", "client_context", "connect"]


async def connect(settings: EmailSettings) -> Connection:
    """A connection that is ready for a transaction. Each step takes at most ``timeout`` seconds.

    Raises:
        ConnectionFailed: not reached, no SMTP, refused, or its TLS cannot be trusted or is not offered.
        AuthenticationFailed: user name and password were refused, or could not be given safely.
        DeliveryTimeout: no answer in time.
        ImproperlyConfigured: ``tls_ca_file`` or ``local_hostname`` cannot be used.
    """
    handshake = await Handshake.of(settings)
    try:
        return await handshake.run()
    except BaseException:
        handshake.client.close()
        raise


class _Client(aiosmtplib.SMTP):
    def close(self) -> None:
        # A polite end of TLS would wait for a server that may have fallen silent.
        if self.transport is not None:
            cast("Transport", self.transport).abort()
        super().close()


class Handshake:
    """The steps from nothing to a connection that is ready; ``run`` does all of them in their order.

    ``sock``: a connection to the server that is open already; None opens one.
    """

    def __init__(
        self, settings: EmailSettings, context: ssl.SSLContext | None, sock: socket.socket | None = None
    ) -> None:
        self._settings = settings
        self._peer = peer_name(settings)
        self.client = _Client(
            hostname=settings.host,
            port=settings.port if sock is None else None,
            sock=sock,
            timeout=settings.timeout,
            use_tls=settings.use_ssl,
            start_tls=False,
            tls_context=context,
            # Without a name aiosmtplib asks the DNS, which may hang; EHLO gives the real one.
            local_hostname="localhost",
        )

    @classmethod
    async def of(cls, settings: EmailSettings, sock: socket.socket | None = None) -> Self:
        """With the TLS context that ``settings`` ask for.

        Raises:
            ImproperlyConfigured: ``tls_ca_file`` cannot be used.
        """
        context = await client_context(settings.tls_ca_file) if settings.use_tls or settings.use_ssl else None
        return cls(settings, context, sock)

    async def run(self) -> Connection:
        """Every step that the settings ask for."""
        await self.connect()
        await self.greet()
        if self._settings.use_tls:
            await self.secure()
            await self.greet()
        await self.log_in()
        return self.detach()

    async def connect(self) -> None:
        """Open the connection, with ``use_ssl`` its TLS, and hear the greeting."""
        try:
            await self.client.connect()
        except HANDSHAKE_ERRORS as error:
            raise translated(self._peer, HandshakeStep.CONNECT, error) from error

    async def log_in(self) -> None:
        """AUTH, where the settings have a user name."""
        if self._settings.username is not None:
            await authenticate(self.client, self._settings, self._peer)

    async def greet(self) -> None:
        """EHLO, or HELO for a server that knows no other."""
        try:
            name = self._settings.local_hostname or _own_name(self.client.get_transport_info("sockname"))
            check_host_name(name)
            await self.client.ehlo(hostname=name)
        except aiosmtplib.SMTPHeloError as error:
            if error.code < 500:
                raise translated(self._peer, HandshakeStep.EHLO, error) from error
            await self._greet_simply(name)
        except HANDSHAKE_ERRORS as error:
            raise translated(self._peer, HandshakeStep.EHLO, error) from error

    async def _greet_simply(self, name: str) -> None:
        try:
            await self.client.helo(hostname=name)
        except HANDSHAKE_ERRORS as error:
            raise translated(self._peer, HandshakeStep.EHLO, error) from error

    async def secure(self) -> None:
        """STARTTLS; EHLO must follow, since what was offered before it counts no more (RFC 3207 section 4.2)."""
        if not self.client.supports_extension("starttls"):
            raise ConnectionFailed(
                f'{self._peer}: STARTTLS was asked for (EMAIL["use_tls"]) but the server does not offer it'
            )
        try:
            await self.client.starttls()
        except HANDSHAKE_ERRORS as error:
            raise translated(self._peer, HandshakeStep.STARTTLS, error) from error

    def detach(self) -> Connection:
        """The connection for transactions; it owns the transport from then on."""
        client = self.client
        transport, protocol = cast("Transport | None", client.transport), client.protocol
        if protocol is None or transport is None or transport.is_closing():
            raise ConnectionFailed(
                f"{self._peer}: the server closed the connection after it was opened", temporary=True
            )
        # aiosmtplib keeps here what came behind the last reply, which nobody asked for.
        if getattr(protocol, "_buffer", b""):
            raise ConnectionFailed(f"{self._peer}: a reply that was not asked for", temporary=True)
        return Connection(
            transport,
            peer=self._peer,
            capabilities=Capabilities.from_extensions(client.esmtp_extensions),
            limit=self._settings.timeout,
        )


def _own_name(address: Any) -> str:
    """This machine's full name, else its address on this connection (RFC 5321 section 4.1.4); no DNS query."""
    name = socket.gethostname()
    if "." in name.strip(".") and is_host_name(name):
        return name
    literal = address[0].partition("%")[0]
    return f"[IPv6:{literal}]" if ":" in literal else f"[{literal}]"


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
    if not is_loopback(address[0]):
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


_kept: dict[Path | None, ssl.SSLContext] = {}


async def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """A context that trusts the system's certificates and those in ``ca_file``; made in a thread, read once.

    Raises:
        ImproperlyConfigured: ``ca_file`` cannot be read or holds no certificate.
    """
    if ca_file in _kept:
        return _kept[ca_file]
    made = await asyncio.to_thread(_make, ca_file)
    return _kept.setdefault(ca_file, made)


def _make(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ImproperlyConfigured(
                f'EMAIL["tls_ca_file"]: {shown(str(ca_file), whole=200)} cannot be used: '
                f"{error}; give a PEM file with certificates"
            ) from error
    return context
