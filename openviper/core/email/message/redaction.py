"""Hide the content of messages that were sent with ``sensitive=True`` from those who only watch mail."""

from openviper.core.email.message.model import MUST_SENSITIVE, OutgoingMessage, PreparedMessage, lengths
from openviper.core.email.message.serialiser import serialise

__all__ = ["is_redacted", "is_sensitive", "redact", "redact_prepared"]

_NOT_SHOWN = "Not shown: this message was sent with sensitive=True.\n"
_REDACTED = "redacted"  # key of ``extra``


def is_sensitive(message: PreparedMessage) -> bool:
    """True if the message was sent with ``sensitive=True``."""
    return bool(message.must) and MUST_SENSITIVE in message.must


def is_redacted(message: PreparedMessage) -> bool:
    """True for what ``redact_prepared`` returns, which must not be sent."""
    return bool(message.extra) and _REDACTED in message.extra


def redact_prepared(message: PreparedMessage) -> PreparedMessage:
    """Return a copy with a notice in place of its bodies, and without attachments."""
    extra = {**message.extra, _REDACTED: True}
    return message._replace(text=_NOT_SHOWN, html=None, attachments=(), calendar=None, extra=extra)


def redact(message: OutgoingMessage) -> OutgoingMessage:
    """Return a copy with a notice in place of its content; the header and the envelope stay."""
    prepared = redact_prepared(message.prepared)
    content = serialise(prepared)
    return OutgoingMessage(prepared, message.envelope, content, sum(lengths(content)))
