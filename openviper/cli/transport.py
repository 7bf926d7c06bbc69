"""Describe the transport of a project's mail."""

from typing import TYPE_CHECKING

from openviper.terminal import escape

if TYPE_CHECKING:
    from openviper.core.email.settings import EmailSettings

__all__ = ["describe_transport"]


def describe_transport(email: "EmailSettings") -> str:
    """Return one line that names the backend and, for SMTP, the server, TLS and the username; and ``redirect_to``."""
    from openviper.core.email.delivery.redirect import describe_redirect

    redirect = describe_redirect(email)
    return escape("; ".join([_describe_backend(email), *([redirect] if redirect else [])]))


def _describe_backend(email: "EmailSettings") -> str:
    if email.backend.rpartition(".")[2] != "SMTPBackend":
        return email.backend
    security = "TLS" if email.use_ssl else "STARTTLS" if email.use_tls else "no TLS"
    login = f"as {email.username}" if email.username else "without a login"
    return f"{email.backend}: {email.host} port {email.port}, {security}, {login}"
