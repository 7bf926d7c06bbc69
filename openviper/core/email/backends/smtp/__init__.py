"""Delivery by SMTP: the backend, its connections, and messages over them."""

from openviper.core.email.backends.smtp.backend import SMTPBackend

__all__ = ["SMTPBackend"]
