"""Ready messages for tests of what carries them."""

from collections.abc import Sequence
from datetime import UTC, datetime

from openviper.core.email.addresses import Address
from openviper.core.email.attachments import AttachmentData
from openviper.core.email.message import Envelope, OutgoingMessage, PreparedMessage

__all__ = ["outgoing"]

HEAD = b"From: from@example.com\r\nTo: to@example.com\r\nSubject: a test\r\n\r\n"


def outgoing(
    body: bytes | Sequence[bytes] = b"Hello.\r\n",
    *,
    to: Sequence[str] = ("to@example.com",),
    sender: str = "from@example.com",
    number: int = 1,
    smtputf8: bool = False,
    attachments: Sequence[AttachmentData] = (),
) -> OutgoingMessage:
    """A message with ``body`` (or chunks of it) for the addresses ``to``; its id is ``<number@example.com>``."""
    content = (HEAD, body) if isinstance(body, bytes) else (HEAD, *body)
    author = Address("", "from", "example.com")
    prepared = PreparedMessage(
        message_id=f"<{number}@example.com>",
        date=datetime(2026, 1, 1, tzinfo=UTC),
        sender=author,
        to=(Address("", "to", "example.com"),),
        cc=(),
        bcc=(),
        reply_to=(),
        subject="a test",
        text="Hello.",
        html=None,
        attachments=tuple(attachments),
        headers=(),
        envelope_sender=sender,
    )
    return OutgoingMessage(prepared, Envelope(sender, tuple(to), smtputf8), content, sum(map(len, content)))
