"""The backend through which a project's mail leaves, in a line."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openviper.core.email.settings import EmailSettings

__all__ = ["describe_transport"]


def describe_transport(email: "EmailSettings") -> str:
    """The backend; for SMTP also the server, how the connection is secured, and the login without its password."""
    if email.backend.rpartition(".")[2] != "SMTPBackend":
        return email.backend
    security = "TLS" if email.use_ssl else "STARTTLS" if email.use_tls else "no TLS"
    login = f"as {email.username}" if email.username else "without a login"
    return f"{email.backend}: {email.host} port {email.port}, {security}, {login}"
