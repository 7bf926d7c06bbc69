"""Deliver messages by SMTP."""

from openviper.core.email.backends.smtp.backend import SMTPBackend

__all__ = ["SMTPBackend"]
