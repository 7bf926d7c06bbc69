"""Open connections: aiosmtplib connects, greets, starts TLS and logs in; then ``Connection`` takes the transport."""

import asyncio
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import aiosmtplib
from pydantic import SecretStr

from openviper.core.email.backends.smtp.authentication import authenticate
from openviper.core.email.backends.smtp.commands import Capabilities, check_host_name, is_host_name
from openviper.core.email.backends.smtp.connection import Connection
from openviper.core.email.backends.smtp.errors import HANDSHAKE_ERRORS, HandshakeStep, handshake_error, peer_name
from openviper.core.email.backends.smtp.oauth2 import Token, TokenSource
from openviper.core.email.errors import AuthenticationFailed, ConnectionFailed, DeliveryError
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured
from openviper.tcp import connect_host, is_address
from openviper.text import shown

if TYPE_CHECKING:
    from asyncio import Transport

__all__ = ["Handshake", "client_context", "connect"]

_tls_contexts: dict[Path | None, ssl.SSLContext] = {}


async def connect(settings: EmailSettings, tokens: TokenSource | None = None) -> Connection:
    """Open a connection that is ready for a transaction. Each step takes at most ``timeout`` seconds.

    ``tokens``: where the access token comes from; None: from the settings. If the server refuses a token, another one
    is tried once, on a new connection.

    Raises:
        ConnectionFailed: the server is unreachable, no SMTP server, or refuses; its TLS is untrusted or not offered.
        AuthenticationFailed: the credentials were refused, or could not be sent safely.
        DeliveryTimeout: the server did not answer in time.
        ImproperlyConfigured: ``tls_ca_file`` or ``local_hostname`` cannot be used.
    """
    handshake = await Handshake.create(settings, tokens=tokens)
    try:
        return await _run(handshake)
    except AuthenticationFailed as error:
        refusal = error
    again = await Handshake.create(settings, tokens=tokens)
    if not await again.renew_token(handshake, refusal):
        raise refusal
    return await _run(again)


async def _run(handshake: "Handshake") -> Connection:
    try:
        return await handshake.run()
    except BaseException:
        handshake.client.close()
        raise


class _Client(aiosmtplib.SMTP):
    def close(self) -> None:
        # An orderly end of TLS would wait for a server that may be silent.
        if self.transport is not None:
            cast("Transport", self.transport).abort()
        super().close()


class Handshake:
    """The steps to a connection that is ready for a transaction; ``run`` takes them all, in order.

    ``sock`` is a socket connected to the server; None opens one. ``tokens`` None: those of the settings, if any.
    """

    def __init__(
        self,
        settings: EmailSettings,
        context: ssl.SSLContext | None,
        sock: socket.socket | None = None,
        tokens: TokenSource | None = None,
    ) -> None:
        self._settings = settings
        self._tokens = tokens or TokenSource.from_settings(settings)
        self._token: Token | None = None
        self._peer = peer_name(settings)
        self.auth_refusals: list[DeliveryError] = []
        self.client = _Client(
            hostname=settings.host,
            port=settings.port if sock is None else None,
            sock=sock,
            timeout=settings.timeout,
            use_tls=settings.use_ssl,
            start_tls=False,
            tls_context=context,
            # Without a name aiosmtplib queries the DNS, which may hang; ``greet`` passes the real name.
            local_hostname="localhost",
        )

    @classmethod
    async def create(
        cls, settings: EmailSettings, sock: socket.socket | None = None, tokens: TokenSource | None = None
    ) -> Self:
        """Create a handshake with the TLS context that ``settings`` ask for; nothing is sent yet.

        Raises:
            ImproperlyConfigured: ``tls_ca_file`` cannot be used.
        """
        context = await client_context(settings.tls_ca_file) if settings.use_tls or settings.use_ssl else None
        return cls(settings, context, sock, tokens)

    async def run(self) -> Connection:
        """Take every step that the settings ask for."""
        await self.connect()
        await self.greet()
        if self._settings.use_tls:
            await self.start_tls()
            await self.greet()
        await self.log_in()
        return self.detach()

    async def connect(self) -> None:
        """Open the connection, with ``use_ssl`` its TLS, and read the greeting."""
        settings, client = self._settings, self.client
        own: socket.socket | None = None
        try:
            # An address needs no look-up and has no rival, so the event loop connects to it directly.
            if client.sock is None and not is_address(settings.host):
                own = await connect_host(settings.host, settings.port, settings.timeout)
                client.sock, client.port = own, None
            await client.connect()
        except HANDSHAKE_ERRORS as error:
            raise handshake_error(self._peer, HandshakeStep.CONNECT, error) from error
        finally:
            if own is not None and client.transport is None:
                own.close()

    async def greet(self) -> None:
        """Send EHLO, or HELO to a server without EHLO."""
        try:
            name = self._settings.local_hostname or _default_host_name(self.client.get_transport_info("sockname"))
            check_host_name(name)
            await self.client.ehlo(hostname=name)
        except aiosmtplib.SMTPHeloError as error:
            if error.code < 500:
                raise handshake_error(self._peer, HandshakeStep.EHLO, error) from error
            await self._send_helo(name)
        except HANDSHAKE_ERRORS as error:
            raise handshake_error(self._peer, HandshakeStep.EHLO, error) from error

    async def _send_helo(self, name: str) -> None:
        try:
            await self.client.helo(hostname=name)
        except HANDSHAKE_ERRORS as error:
            raise handshake_error(self._peer, HandshakeStep.EHLO, error) from error

    async def start_tls(self) -> None:
        """Send STARTTLS; EHLO must follow, because earlier extensions are void (RFC 3207 section 4.2)."""
        if not self.client.supports_extension("starttls"):
            text = (
                f'{self._peer}: STARTTLS is required (EMAIL["use_tls"]), but the server does not offer it here; '
                'use the port that offers it (587), or EMAIL["use_ssl"] with port 465'
            )
            raise ConnectionFailed(text, summary=text)
        try:
            await self.client.starttls()
        except HANDSHAKE_ERRORS as error:
            raise handshake_error(self._peer, HandshakeStep.STARTTLS, error) from error

    async def log_in(self) -> None:
        """Authenticate, if the settings have a user name."""
        if self._settings.username is None:
            return
        token = self._settings.xoauth2_token
        if self._tokens is not None:
            self._token = self._token or await self._tokens.get()
            token = self._token.value
        assert token is None or isinstance(token, SecretStr)
        await authenticate(self.client, self._settings, self._peer, self.auth_refusals, token=token)

    async def renew_token(self, refused: "Handshake", refusal: AuthenticationFailed) -> bool:
        """Get another token than the one that the server refused in ``refused``; False if there is none."""
        token = refused._token
        if self._tokens is None or token is None or refusal.code is None or refusal.temporary:
            return False
        self._tokens.forget(token)
        self._token = await self._tokens.get()
        return self._token.value != token.value

    def detach(self) -> Connection:
        """Return the connection for transactions, which owns the transport from then on."""
        client = self.client
        transport, protocol = cast("Transport | None", client.transport), client.protocol
        if protocol is None or transport is None or transport.is_closing():
            text = f"{self._peer}: the server closed the connection after it was opened"
            raise ConnectionFailed(text, temporary=True, summary=text)
        # aiosmtplib keeps the bytes behind the last reply here.
        if getattr(protocol, "_buffer", b""):
            text = f"{self._peer}: unsolicited reply"
            raise ConnectionFailed(text, temporary=True, summary=text)
        return Connection(
            transport,
            peer=self._peer,
            capabilities=Capabilities.from_extensions(client.esmtp_extensions),
            limit=self._settings.timeout,
        )


async def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context for verified TLS 1.2 or later that trusts the system's certificates and those in ``ca_file``.

    It is made once for each file, in a thread, because that takes 20 ms.

    Raises:
        ImproperlyConfigured: ``ca_file`` cannot be read or holds no certificate.
    """
    if ca_file in _tls_contexts:
        return _tls_contexts[ca_file]
    context = await asyncio.to_thread(_make_context, ca_file)
    return _tls_contexts.setdefault(ca_file, context)


def _default_host_name(address: Any) -> str:
    """Return this machine's full name, else its address on this connection (RFC 5321 section 4.1.4); no DNS query."""
    name = socket.gethostname()
    if "." in name.strip(".") and is_host_name(name):
        return name
    literal = address[0].partition("%")[0]
    return f"[IPv6:{literal}]" if ":" in literal else f"[{literal}]"


def _make_context(ca_file: Path | None) -> ssl.SSLContext:
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
