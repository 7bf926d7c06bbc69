"""What became of a transaction, and the errors that tell it apart: refused, not sent, and uncertain."""

from collections.abc import Mapping, Sequence

from openviper.core.email.backends.smtp.exchange import WireFailure
from openviper.core.email.backends.smtp.replies import Reply
from openviper.core.email.errors import (
    ConnectionFailed,
    DeliveryError,
    DeliveryTimeout,
    MessageRefused,
    RecipientsRefused,
    Refusal,
)
from openviper.core.email.message import OutgoingMessage

__all__ = [
    "StaleConnection",
    "message_refused",
    "recipients_refused",
    "server_closing",
    "too_large",
    "wire_error",
]


class StaleConnection(Exception):
    """The connection was gone before the message could have been taken; on a fresh one it may be sent again.

    ``error`` is what to raise where it is not.
    """

    def __init__(self, error: DeliveryError) -> None:
        super().__init__(str(error))
        self.error = error


def wire_error(peer: str, step: str, failure: WireFailure, *, body_sent: bool) -> DeliveryError:
    """The error for a connection that ended while ``step`` was waited for.

    ``body_sent``: the whole message, its end included, had left this process, so that nobody can know what became
    of it (RFC 1047).
    """
    end = "; the message may or may not have been taken" if body_sent else ""
    kind = DeliveryTimeout if failure.kind == "silent" else ConnectionFailed
    return kind(f"{peer}: {step}: {failure.detail}{end}", temporary=True, uncertain=body_sent)


def server_closing(peer: str, step: str, reply: Reply) -> DeliveryError:
    """The error for 421, which the server may give to anything: it is closing the connection."""
    return ConnectionFailed(f"{peer}: {step}: {reply}", temporary=True, code=reply.code)


def message_refused(peer: str, step: str, reply: Reply) -> MessageRefused:
    """The error for a sender or content that was refused."""
    return MessageRefused(f"{peer}: {step}: {reply}", temporary=reply.refusal().temporary, code=reply.code)


def recipients_refused(peer: str, accepted: Sequence[str], refused: Mapping[str, Refusal]) -> RecipientsRefused:
    """The error for an envelope nobody of which gets the message."""
    replies = sorted({str(refusal) for refusal in refused.values()})
    shown = "; ".join(replies[:3]) + ("; ..." if len(replies) > 3 else "")
    count = f"{len(refused)} of {len(accepted) + len(refused)} recipients refused, nothing was sent"
    return RecipientsRefused(f"{peer}: RCPT TO: {count}: {shown}", accepted=accepted, refused=refused)


def too_large(peer: str, message: OutgoingMessage, size: int, limit: int) -> MessageRefused:
    """The error for a message above the limit that the server announces; nothing was sent."""
    prepared = message.prepared
    parts = [(len(each.content), f"attachment {each.filename[:100]!r}") for each in prepared.attachments]
    parts += [(len(body), name) for name, body in (("text", prepared.text), ("html", prepared.html)) if body]
    # Exact, because a message is often too large by little.
    text = f"{peer}: the message has {size:,} bytes and the server takes at most {limit:,} bytes"
    if parts:
        largest, name = max(parts)
        text += f"; the largest part is {name} with {largest:,} bytes"
    return MessageRefused(text)
