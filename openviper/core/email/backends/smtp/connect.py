"""Opening a connection: aiosmtplib connects, greets, STARTTLSes and authenticates; then ours takes the transport."""

import socket
import ssl
from typing import TYPE_CHECKING, Any, Self, cast

import aiosmtplib

from openviper.core.email.backends.smtp.authentication import authenticate
from openviper.core.email.backends.smtp.capabilities import Capabilities
from openviper.core.email.backends.smtp.commands import check_host_name, is_host_name
from openviper.core.email.backends.smtp.handshake_errors import HANDSHAKE_ERRORS, HandshakeStep, translated
from openviper.core.email.backends.smtp.tls import client_context
from openviper.core.email.backends.smtp.wire import Connection
from openviper.core.email.errors import ConnectionFailed
from openviper.core.email.settings import EmailSettings

if TYPE_CHECKING:
    from asyncio import Transport

__all__ = ["Handshake", "connect", "peer_name"]


def peer_name(settings: EmailSettings) -> str:
    """``host:port`` for error texts."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{settings.port}"


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
