"""What is said and to whom: the caller's input, the prepared message, and the message ready to leave."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from openviper.core.email.addresses import Address
from openviper.core.email.attachments import AttachmentData

__all__ = ["EmailMessageData", "Envelope", "OutgoingMessage", "PreparedMessage"]


@dataclass(slots=True)
class EmailMessageData:
    """A message as the application gives it, bodies rendered and attachments resolved."""

    recipients: list[str]
    subject: str
    text: str | None = None
    html: str | None = None
    cc: list[str] = field(default_factory=list)
    bcc: list[str] = field(default_factory=list)
    attachments: list[AttachmentData] = field(default_factory=list)
    sender: str | None = None
    reply_to: list[str] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)
    envelope_sender: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedMessage:
    """A checked message: everything that can fail because of the caller has been done.

    ``message_id`` includes the angle brackets; it and ``date`` are made once and kept through every retry.
    """

    message_id: str
    date: datetime
    sender: Address
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]
    reply_to: tuple[Address, ...]
    subject: str
    text: str | None
    html: str | None
    attachments: tuple[AttachmentData, ...]
    headers: tuple[tuple[str, str], ...]
    envelope_sender: str


@dataclass(frozen=True, slots=True)
class Envelope:
    """What SMTP is told (RFC 5321 section 2.3.1): ``sender`` may be empty for a null reverse-path."""

    sender: str
    recipients: tuple[str, ...]
    smtputf8: bool = False


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A prepared message with its envelope and its bytes.

    ``content`` are the chunks of the RFC 5322 message: CRLF line ends only, not dot-stuffed, the last line ended.
    """

    prepared: PreparedMessage
    envelope: Envelope
    content: tuple[bytes, ...]
    size: int

    @property
    def message_id(self) -> str:
        """The Message-ID with its angle brackets."""
        return self.prepared.message_id

    def for_recipients(self, recipients: tuple[str, ...]) -> "OutgoingMessage":
        """The same message for some of its recipients, as a further attempt needs it."""
        return replace(self, envelope=replace(self.envelope, recipients=recipients))
