"""Email for async web applications: ``await send_email(...)``."""

from typing import TYPE_CHECKING

from openviper.core.email.addresses import Address, AddressLike, parse_address
from openviper.core.email.attachments import AttachmentData, resolve_attachments
from openviper.core.email.backends import EmailBackend, get_backend
from openviper.core.email.backends.base import DeliveryReport
from openviper.core.email.delivery import Health, HealthProblem, Verification, health, verify
from openviper.core.email.errors import (
    AttachmentRefused,
    AuthenticationFailed,
    ConnectionFailed,
    DeliveryError,
    DeliveryTimeout,
    DuplicateKey,
    EmailError,
    InvalidAddress,
    InvalidMessage,
    KeysUnavailable,
    MessageRefused,
    PoolTimeout,
    QueueUnavailable,
    RecipientsRefused,
    Refusal,
    SendingPaused,
    SuppressionUnavailable,
    TemplateFailed,
)
from openviper.core.email.events import DeliveryMode, MessageEvent, Receipt, subscribe
from openviper.core.email.message import Cancel, EmailMessageData, UnsubscribeRequest, build_message
from openviper.core.email.sending import (
    BulkProgress,
    RenderedEmail,
    preview,
    render_email,
    send_email,
    send_email_sync,
    send_many,
    submit_email,
    unsubscribe_url,
)
from openviper.core.email.settings import EmailSettings
from openviper.lazy import lazy_names

if TYPE_CHECKING:
    from openviper.core.email.asgi import Email, EmailMiddleware, HealthEndpoint, UnsubscribeEndpoint
else:
    # These need Starlette, which a script or a worker does not.
    __getattr__, __dir__ = lazy_names(
        __name__,
        dict.fromkeys(
            ("Email", "EmailMiddleware", "HealthEndpoint", "UnsubscribeEndpoint"), "openviper.core.email.asgi"
        ),
    )

__all__ = [
    "Address",
    "AddressLike",
    "AttachmentData",
    "AttachmentRefused",
    "AuthenticationFailed",
    "BulkProgress",
    "Cancel",
    "ConnectionFailed",
    "DeliveryError",
    "DeliveryMode",
    "DeliveryReport",
    "DeliveryTimeout",
    "DuplicateKey",
    "Email",
    "EmailBackend",
    "EmailError",
    "EmailMessageData",
    "EmailMiddleware",
    "EmailSettings",
    "Health",
    "HealthEndpoint",
    "HealthProblem",
    "InvalidAddress",
    "InvalidMessage",
    "KeysUnavailable",
    "MessageEvent",
    "MessageRefused",
    "PoolTimeout",
    "QueueUnavailable",
    "Receipt",
    "RecipientsRefused",
    "Refusal",
    "RenderedEmail",
    "SendingPaused",
    "SuppressionUnavailable",
    "TemplateFailed",
    "UnsubscribeEndpoint",
    "UnsubscribeRequest",
    "Verification",
    "build_message",
    "get_backend",
    "health",
    "parse_address",
    "preview",
    "render_email",
    "resolve_attachments",
    "send_email",
    "send_email_sync",
    "send_many",
    "submit_email",
    "subscribe",
    "unsubscribe_url",
    "verify",
]
