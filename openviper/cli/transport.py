"""Describe the transport of a project's mail."""

from typing import TYPE_CHECKING

from openviper.terminal import escape

if TYPE_CHECKING:
    from openviper.core.email.settings import EmailSettings

__all__ = ["describe_transport"]


def describe_transport(email: "EmailSettings") -> str:
    """Return one line that names the backend and, for SMTP, the server, TLS and the username."""
    if email.backend.rpartition(".")[2] != "SMTPBackend":
        return escape(email.backend)
    security = "TLS" if email.use_ssl else "STARTTLS" if email.use_tls else "no TLS"
    login = f"as {email.username}" if email.username else "without a login"
    return escape(f"{email.backend}: {email.host} port {email.port}, {security}, {login}")
