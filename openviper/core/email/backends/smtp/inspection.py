"""Open a connection to the mail server step by step, to show people which steps succeed."""

import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from openviper.core.email.backends.smtp.commands import mail_from, needs_smtputf8
from openviper.core.email.backends.smtp.connection import Connection
from openviper.core.email.backends.smtp.errors import WireFailure, message_refused_error, peer_name, wire_error
from openviper.core.email.backends.smtp.handshake import Handshake
from openviper.core.email.backends.smtp.replies import Reply
from openviper.core.email.errors import DeliveryError, MessageRefused
from openviper.core.email.message import Envelope
from openviper.core.email.settings import EmailSettings
from openviper.text import shown

__all__ = ["Inspection", "TlsSession"]

_SIZE = 2048  # bytes that MAIL FROM announces
_QUIT_LIMIT = 0.5  # seconds


@dataclass(frozen=True, slots=True)
class TlsSession:
    """A verified TLS session; ``subject``, ``issuer`` and ``expires`` are those of the server's certificate."""

    version: str
    cipher: str
    subject: str
    issuer: str
    expires: datetime


class Inspection:
    """The steps of :func:`connect` as separate calls, to be made in order; each raises the errors of that step.

    ``sock`` is connected to the server, and closed at the end of the ``async with`` block.
    """

    def __init__(self, settings: EmailSettings, handshake: Handshake, sock: socket.socket) -> None:
        self._settings = settings
        self._handshake = handshake
        self._sock = sock
        self._connection: Connection | None = None

    @classmethod
    async def create(cls, settings: EmailSettings, sock: socket.socket) -> Self:
        """Create an inspection; nothing is sent before ``connect``.

        Raises:
            ImproperlyConfigured: ``tls_ca_file`` cannot be used.
        """
        return cls(settings, await Handshake.create(settings, sock), sock)

    async def connect(self) -> None:
        """Start TLS if ``use_ssl`` is set, and read the greeting."""
        await self._handshake.connect()

    async def greet(self) -> None:
        """Send EHLO."""
        await self._handshake.greet()

    async def start_tls(self) -> None:
        """Send STARTTLS, and EHLO again."""
        await self._handshake.start_tls()
        await self._handshake.greet()

    async def log_in(self) -> None:
        """Authenticate, if the settings have a user name."""
        await self._handshake.log_in()

    async def try_sender(self, sender: str) -> None:
        """Send MAIL FROM, and cancel it by RSET.

        Raises:
            MessageRefused: the server refuses this sender.
            DeliveryError: the connection failed.
        """
        connection = self._connection = self._handshake.detach()
        envelope = Envelope(sender, ())
        if needs_smtputf8(envelope) and not connection.capabilities.smtputf8:
            raise MessageRefused(
                f"{peer_name(self._settings)}: {shown(sender)} is not ASCII, and the server does not offer SMTPUTF8"
            )
        reply = await self._ask(connection, "MAIL FROM", mail_from(envelope, _SIZE, connection.capabilities))
        if not reply.positive:
            raise message_refused_error(connection.peer, "MAIL FROM", reply, hint=False)
        await self._ask(connection, "RSET", b"RSET\r\n")

    @property
    def extensions(self) -> Mapping[str, str]:
        """Return the extensions that the last EHLO offers: keywords in lower case, with their parameters."""
        return self._handshake.client.esmtp_extensions

    @property
    def auth_methods(self) -> tuple[str, ...]:
        """Return the AUTH methods that the last EHLO offers, in lower case."""
        return tuple(self._handshake.client.server_auth_methods)

    @property
    def auth_refusals(self) -> Sequence[DeliveryError]:
        """Return the errors of the AUTH methods that were refused so far, also while the login goes on."""
        return tuple(self._handshake.auth_refusals)

    @property
    def tls(self) -> TlsSession | None:
        """Return the TLS session; None without TLS."""
        transport = self._handshake.client.transport
        tls = None if transport is None else transport.get_extra_info("ssl_object")
        if transport is None or tls is None:
            return None
        certificate: dict[str, Any] = transport.get_extra_info("peercert")
        expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
        return TlsSession(
            version=tls.version() or "TLS",
            cipher=transport.get_extra_info("cipher")[0],
            subject=_name(certificate.get("subject", ())) or _alternative_name(certificate),
            issuer=_name(certificate.get("issuer", ())),
            expires=expires,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._connection is not None:
            await self._connection.quit(_QUIT_LIMIT)
        else:
            self._handshake.client.close()
        self._sock.close()

    async def _ask(self, connection: Connection, step: str, command: bytes) -> Reply:
        try:
            (reply,) = await connection.ask(command)
        except WireFailure as failure:
            raise wire_error(connection.peer, step, failure, body_sent=False) from failure
        return reply


def _name(fields: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    """Return the common name, else the organisation, of a certificate's subject or issuer."""
    named = {key: value for group in fields for key, value in group}
    return named.get("commonName") or named.get("organizationName", "")


def _alternative_name(certificate: dict[str, Any]) -> str:
    return next((value for _, value in certificate.get("subjectAltName", ())), "")
