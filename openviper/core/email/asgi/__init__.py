"""``Email`` for OpenViper applications, ``EmailMiddleware`` for every other ASGI application, and endpoints."""

from openviper.core.email.asgi.health import HealthEndpoint
from openviper.core.email.asgi.middleware import Email, EmailMiddleware
from openviper.core.email.asgi.unsubscribe import UnsubscribeEndpoint

__all__ = ["Email", "EmailMiddleware", "HealthEndpoint", "UnsubscribeEndpoint"]
