"""A message as a test looks at it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

from openviper.core.email import AttachmentData, DeliveryMode
from openviper.core.email.message import OutgoingMessage
from openviper.testing.links import links_in
from openviper.testing.snapshot import snapshot

__all__ = ["SentMessage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SentMessage:
    """What was sent and to whom.

    Addresses read as in a header: ``alice@example.com``, or ``"Alice" <alice@example.com>`` with a name. ``recipients``
    are those of the envelope who have accepted it, Bcc included. ``headers`` are the further ones that the application
    gave. ``mode`` is the last one that it had; HELD means sent by the commit outside a request. ``send_at`` and
    ``expires_at`` are what a queued message was given.
    """

    message_id: str
    mode: DeliveryMode
    sender: str
    to: tuple[str, ...]
    cc: tuple[str, ...]
    bcc: tuple[str, ...]
    reply_to: tuple[str, ...]
    subject: str
    text: str | None
    html: str | None
    attachments: tuple[AttachmentData, ...]
    headers: Mapping[str, str]
    date: datetime
    envelope_sender: str
    recipients: tuple[str, ...]
    send_at: datetime | None = None
    expires_at: datetime | None = None
    outgoing: OutgoingMessage = field(repr=False)

    @classmethod
    def make(
        cls,
        outgoing: OutgoingMessage,
        mode: DeliveryMode,
        *,
        accepted: tuple[str, ...] | None = None,
        due_at: float | None = None,
        expires_at: float | None = None,
    ) -> "SentMessage":
        """From what would have gone on the wire. ``accepted``: None is every recipient of its envelope."""
        prepared = outgoing.prepared
        return cls(
            message_id=prepared.message_id,
            mode=mode,
            sender=str(prepared.sender),
            to=tuple(map(str, prepared.to)),
            cc=tuple(map(str, prepared.cc)),
            bcc=tuple(map(str, prepared.bcc)),
            reply_to=tuple(map(str, prepared.reply_to)),
            subject=prepared.subject,
            text=prepared.text,
            html=prepared.html,
            attachments=prepared.attachments,
            headers=dict(prepared.headers),
            date=prepared.date,
            envelope_sender=outgoing.envelope.sender,
            recipients=outgoing.envelope.recipients if accepted is None else accepted,
            send_at=_moment(due_at),
            expires_at=_moment(expires_at),
            outgoing=outgoing,
        )

    def reaching(self, recipients: tuple[str, ...]) -> "SentMessage":
        """The same after a further attempt, which has reached ``recipients``."""
        return replace(self, recipients=self.recipients + recipients)

    @property
    def content(self) -> bytes:
        """The message as it would go on the wire (RFC 5322), not dot-stuffed."""
        return b"".join(self.outgoing.content)

    @property
    def parsed(self) -> EmailMessage:
        """The content as the standard library reads it."""
        return message_from_bytes(self.content, policy=default)

    def links(self) -> list[str]:
        """The absolute links of the HTML and the URLs of the text, in that order, each once."""
        return links_in(self.html, self.text)

    def snapshot(self) -> str:
        """The message as text that is the same in each run: ids, dates and boundaries are replaced by their names.

        Bodies are decoded, attachments shown with size and SHA-256.
        """
        return snapshot(self.parsed, self.message_id, self.bcc)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
