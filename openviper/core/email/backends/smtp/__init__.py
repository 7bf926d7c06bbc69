"""Deliver messages by SMTP."""

from openviper.core.email.backends.smtp.backend import SMTPBackend
from openviper.core.email.backends.smtp.oauth2 import OAuth2Client, google_oauth2, microsoft_oauth2

__all__ = ["OAuth2Client", "SMTPBackend", "google_oauth2", "microsoft_oauth2"]
