"""``Email`` for OpenViper applications and ``EmailMiddleware`` for every other ASGI application."""

from openviper.core.email.asgi.middleware import Email, EmailMiddleware

__all__ = ["Email", "EmailMiddleware"]
