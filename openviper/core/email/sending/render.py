"""Render an email without sending it: ``render_email``."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from openviper.core.email.addresses import Address, Addresses, AddressLike
from openviper.core.email.attachments import AttachmentInput
from openviper.core.email.delivery import current_mailer
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message import (
    CalendarInput,
    OutgoingMessage,
    SendCancelled,
    is_address_like,
    with_keyword_hints,
)
from openviper.core.email.sending.compose import compose

__all__ = ["RenderedEmail", "render_email"]

_DRAFT = b"X-Unsent: 1\r\n"


@dataclass(frozen=True, slots=True)
class RenderedEmail:
    """A message as it would be sent.

    ``text`` may have been made from the HTML. ``headers`` maps the name of each header to its decoded value; several
    values of one name are separated by ", ". ``content`` is the message (RFC 5322) with CRLF line ends;
    ``bytes(rendered)`` returns the same.
    """

    subject: str
    text: str | None
    html: str | None
    headers: Mapping[str, str]
    content: bytes

    def eml(self, *, draft: bool = False) -> bytes:
        """Return the content of an ``.eml`` file, which mail clients can open.

        ``draft`` adds ``X-Unsent: 1``, which makes Outlook and other clients open it for editing and sending.
        """
        return _DRAFT + self.content if draft else self.content

    def __bytes__(self) -> bytes:
        return self.content


def _refuse_recipients(first: object) -> None:
    """Raise if ``first``, which render_email() takes for the subject, is a recipient."""
    if is_address_like(first) or (isinstance(first, list | tuple | set) and any(map(is_address_like, first))):
        raise InvalidMessage(
            "render_email() takes the subject first, not recipients, but the first value is an address: write "
            "render_email(subject, text, recipients=...), or subject=... if the address is the subject"
        )


@partial(with_keyword_hints, check_first=_refuse_recipients)
async def render_email(
    subject: str | None = None,
    text: str | None = None,
    html: str | None = None,
    cc: Addresses | None = None,
    bcc: Addresses | None = None,
    attachments: AttachmentInput | Iterable[Any] | None = None,
    template: str | None = None,
    context: Mapping[str, Any] | None = None,
    *,
    recipients: Addresses | None = None,
    sender: AddressLike | None = None,
    reply_to: Addresses | None = None,
    headers: Mapping[str, str | Sequence[str]] | None = None,
    envelope_sender: str | Address | None = None,
    date: datetime | None = None,
    in_reply_to: str | Sequence[str] | None = None,
    references: str | Sequence[str] | None = None,
    calendar: CalendarInput | None = None,
    calendar_attachment: bool = False,
    tags: Sequence[str] | None = None,
    ref: str | None = None,
    metadata: Mapping[str, str] | None = None,
    stream: str | None = None,
    unsubscribe: bool = False,
    recipient_id: str | int | None = None,
    mailer: str | None = None,
    sensitive: bool = False,
) -> RenderedEmail:
    """Return the message that :func:`send_email` would send with these arguments; nothing is sent or published.

    Takes those arguments of :func:`submit_email` that determine the message, and checks them in the same way.
    Recipients may be left out; the message then has no To header.

    Raises:
        InvalidMessage: an argument cannot be sent, or the first one is an address, as in a call of ``send_email``.
        ImproperlyConfigured: a setting is missing or wrong.
    """
    composing = compose(
        await current_mailer(),
        recipients=() if recipients is None else recipients,
        subject=subject,
        text=text,
        html=html,
        cc=cc,
        bcc=bcc,
        attachments=attachments,
        template=template,
        context=context,
        sender=sender,
        reply_to=reply_to,
        headers=headers,
        envelope_sender=envelope_sender,
        date=date,
        in_reply_to=in_reply_to,
        references=references,
        calendar=calendar,
        calendar_attachment=calendar_attachment,
        tags=tags,
        ref=ref,
        metadata=metadata,
        stream=stream,
        unsubscribe=unsubscribe,
        recipient_id=recipient_id,
        mailer=mailer,
        sensitive=sensitive,
        recipients_required=False,
    )
    try:
        message = await composing
    except SendCancelled as cancelled:  # what would be sent is shown all the same
        message = cancelled.message
    return await asyncio.to_thread(_rendered, message)


def _rendered(message: OutgoingMessage) -> RenderedEmail:
    from email import message_from_string, policy  # slow to import, and sending does without

    content = b"".join(message.content)
    head = content[: content.index(b"\r\n\r\n") + 4]
    headers: dict[str, str] = {}
    # Decoded first, because addresses that need SMTPUTF8 stand in the header as UTF-8.
    for name, value in message_from_string(head.decode(), policy=policy.default).items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else str(value)
    prepared = message.prepared
    return RenderedEmail(prepared.subject, prepared.text, prepared.html, headers, content)
