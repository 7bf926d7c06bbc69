"""aiosmtpd with STARTTLS and AUTH, as a second opinion beside our own SMTP test server."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from support.certificates import ca_file, server_context
from support.patience import PATIENCE

__all__ = ["Mail", "RunningServer", "aiosmtpd_server"]


@dataclass
class Mail:
    """A message that it took."""

    sender: str
    recipients: list[str]
    content: bytes


@dataclass
class RunningServer:
    """Where it listens, and what it has taken."""

    host: str = "127.0.0.1"
    port: int = 0
    users: Mapping[str, str] = field(default_factory=dict)
    messages: list[Mail] = field(default_factory=list)

    def settings(self, **more: Any) -> dict[str, Any]:
        """EMAIL settings for this server, with ``more`` of them."""
        user, password = next(iter(self.users.items()))
        return {
            "host": self.host,
            "port": self.port,
            "timeout": 3 * PATIENCE,
            "use_tls": True,
            "tls_ca_file": str(ca_file()),
            "username": user,
            "password": password,
        } | more

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - its name
        assert isinstance(envelope.original_content, bytes)
        self.messages.append(Mail(envelope.mail_from or "", list(envelope.rcpt_tos), envelope.original_content))
        return "250 2.0.0 taken"


class _AnyPort(Controller):
    def _trigger_server(self) -> None:
        # The port is chosen by the system, and known once the server listens.
        assert isinstance(self.server, asyncio.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextlib.contextmanager
def aiosmtpd_server(users: Mapping[str, str]) -> Iterator[RunningServer]:
    """Run it in a thread; STARTTLS and AUTH are required."""
    running = RunningServer(users=dict(users))

    def authenticate(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        right = isinstance(data, LoginPassword) and users.get(data.login.decode()) == data.password.decode()
        return AuthResult(success=right)

    controller = _AnyPort(
        running,
        hostname=running.host,
        port=0,
        ready_timeout=PATIENCE,
        tls_context=server_context(),
        require_starttls=True,
        authenticator=authenticate,
        auth_required=True,
        enable_SMTPUTF8=True,
    )
    controller.start()
    try:
        running.port = controller.port
        yield running
    finally:
        controller.stop()
