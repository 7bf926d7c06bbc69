"""A sent message, as tests inspect it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import TYPE_CHECKING, Any

from openviper.core.email import AttachmentData, DeliveryMode
from openviper.core.email.message import OutgoingMessage, PreparedMessage
from openviper.core.email.message.redaction import is_sensitive
from openviper.core.email.queue.keys import read_key
from openviper.testing.links import links_in
from openviper.testing.snapshot import snapshot
from openviper.text import shown, suggestion

__all__ = ["SentMessage"]


# As other mail libraries name a message's parts.
_NAMES_ELSEWHERE = {"body": "text", "from_email": "sender", "alternatives": "html", "extra_headers": "headers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SentMessage:
    """A message that was sent, and its recipients.

    Addresses have the form of headers: ``alice@example.com``, or ``"Alice" <alice@example.com>`` with a name.
    ``recipients`` are the envelope's accepted recipients, including Bcc. ``headers`` are the additional headers that
    the application set; several values of one name are separated by ", ". ``mode`` is the last delivery mode; HELD
    means sent by a commit outside a request. ``send_at`` and ``expires_at`` are a queued message's times. ``calendar``
    is the text of an invitation, with CRLF line ends. ``mailer`` is the requested mailer's name; ``sensitive`` and
    ``key`` are the arguments of the same names.
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
    calendar: str | None = None
    mailer: str = "default"
    sensitive: bool = False
    key: str | None = None
    outgoing: OutgoingMessage = field(repr=False)

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name: str) -> Any:
            known = [each for each in dir(type(self)) if each[0] != "_"]
            remedy = suggestion(name, known, aliases=_NAMES_ELSEWHERE)
            raise AttributeError(f"'SentMessage' object has no attribute {shown(name)}{remedy}")

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
        """Make a sent message from an outgoing one; ``accepted`` None means all recipients of its envelope."""
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
            headers=_by_name(prepared.headers),
            date=prepared.date,
            envelope_sender=outgoing.envelope.sender,
            recipients=outgoing.envelope.recipients if accepted is None else accepted,
            send_at=_moment(due_at),
            expires_at=_moment(expires_at),
            calendar=None if prepared.calendar is None else prepared.calendar.text,
            mailer=outgoing.mailer,
            sensitive=is_sensitive(prepared),
            key=_key(prepared),
            outgoing=outgoing,
        )

    def with_recipients(self, recipients: tuple[str, ...]) -> "SentMessage":
        """Return a copy with further ``recipients``, whom a retry has reached."""
        return replace(self, recipients=self.recipients + recipients)

    @property
    def content(self) -> bytes:
        """Return the message's bytes (RFC 5322), without dot-stuffing."""
        return b"".join(self.outgoing.content)

    @property
    def parsed(self) -> EmailMessage:
        """Return the message as parsed by the standard library."""
        return message_from_bytes(self.content, policy=default)

    def links(self) -> list[str]:
        """Return the HTML's absolute links and then the text's URLs, each once."""
        return links_in(self.html, self.text)

    def snapshot(self) -> str:
        """Return the message as text that is the same in every run: ids and dates are replaced, boundaries left out.

        Bodies are decoded; attachments appear with their size and SHA-256.
        """
        return snapshot(self.parsed, self.message_id, self.bcc)


def _by_name(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers:
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _key(prepared: PreparedMessage) -> str | None:
    found = read_key(prepared.must)
    return None if found is None else found[0]


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
