"""From what the caller gives to a message that is ready to leave: bodies, attachments, checks, bytes."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from openviper.core.email.addresses import Addresses
from openviper.core.email.attachments import AttachmentData, resolve_attachments
from openviper.core.email.delivery import Mailer
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message import EmailMessageData, OutgoingMessage, PreparedMessage, prepare
from openviper.core.email.message.plaintext import html_to_text
from openviper.core.email.message.serialiser import serialise_message, serialise_message_sync
from openviper.core.email.settings import EmailSettings

__all__ = ["compose", "prepare_message"]

# Larger HTML is turned into text in a thread; below it the walk takes less than a thread would.
_HTML_ON_LOOP = 64 * 1024
# More than these are checked in a thread, which costs about a tenth of a millisecond by itself.
_ADDRESSES_ON_LOOP = 1000
_CHARACTERS_ON_LOOP = 1024 * 1024
_CHARACTERS_AT_ONCE = 64 * 1024  # are serialised on the loop without further questions


async def compose(
    mailer: Mailer,
    *,
    recipients: Addresses,
    subject: str | None = None,
    text: str | None = None,
    html: str | None = None,
    cc: Addresses | None = None,
    bcc: Addresses | None = None,
    attachments: Sequence[Any] | None = None,
    template: str | None = None,
    context: Mapping[str, Any] | None = None,
    sender: str | None = None,
    reply_to: Addresses | None = None,
    headers: Mapping[str, str] | None = None,
    envelope_sender: str | None = None,
) -> OutgoingMessage:
    """The message of :func:`submit_email`'s arguments, ready to leave; raises what is wrong with them."""
    if text is None or subject is None or template is not None or context is not None:
        text, html, subject = await _bodies(mailer, template, context, text, html, subject)
    data = EmailMessageData(  # by position, which takes less than half as long as by name
        recipients,
        subject,
        text,
        html,
        () if cc is None else cc,
        () if bcc is None else bcc,
        [] if attachments is None else await _attachments(mailer.settings, attachments),
        sender,
        () if reply_to is None else reply_to,
        headers or {},
        envelope_sender,
    )
    return _prepare_small(mailer.settings, data) or await _prepare_large(mailer.settings, data)


async def prepare_message(mailer: Mailer, data: EmailMessageData) -> OutgoingMessage:
    """``data`` as it is, checked, completed and serialised.

    Raises:
        InvalidMessage: a value cannot be sent as given.
        ImproperlyConfigured: no sender is given, and none is set.
    """
    return _prepare_small(mailer.settings, data) or await _prepare_large(mailer.settings, data)


def _prepare_small(settings: EmailSettings, data: EmailMessageData) -> OutgoingMessage | None:
    """The usual small message; None for one that takes longer, or whose values have to be looked at more closely."""
    try:
        characters = len(data.text or "") + len(data.html or "")
        if data.attachments or characters > _CHARACTERS_AT_ONCE or _addresses(data) > _ADDRESSES_ON_LOOP:
            return None
    except TypeError:
        return None
    return serialise_message_sync(_checked(data, settings), max_message_bytes=settings.max_message_bytes)


async def _prepare_large(settings: EmailSettings, data: EmailMessageData) -> OutgoingMessage:
    message = await asyncio.to_thread(_checked, data, settings) if _is_long(data) else _checked(data, settings)
    return await serialise_message(message, max_message_bytes=settings.max_message_bytes)


def _checked(data: EmailMessageData, settings: EmailSettings) -> PreparedMessage:
    return prepare(data, default_sender=settings.default_sender, auto_submitted=settings.auto_submitted)


def _is_long(data: EmailMessageData) -> bool:
    """Whether checking takes milliseconds; what has no length is for the check itself."""
    try:
        characters = len(data.text or "") + len(data.html or "")
        return characters > _CHARACTERS_ON_LOOP or _addresses(data) > _ADDRESSES_ON_LOOP
    except TypeError:
        return False


def _addresses(data: EmailMessageData) -> int:
    return len(data.recipients) + len(data.cc) + len(data.bcc)  # type: ignore[arg-type]


async def _bodies(
    mailer: Mailer,
    template: str | None,
    context: Any,
    text: str | None,
    html: str | None,
    subject: str | None,
) -> tuple[str | None, str | None, str]:
    if context is not None and not isinstance(context, Mapping):
        raise InvalidMessage(f"context: must be a mapping of names to values, not {type(context).__name__}")
    if template is not None:
        rendered = await mailer.renderer.render(template, context)
        text = rendered.text if text is None else text
        html = rendered.html if html is None else html
        subject = rendered.subject if subject is None else subject
    elif context:
        raise InvalidMessage("context is given without a template: name the template, or leave the context out")
    if subject is None:
        raise InvalidMessage("subject is missing: give one, or a template with a 'subject' block")
    if text is None and isinstance(html, str):  # of another type it is refused with the rest
        text = html_to_text(html) if len(html) <= _HTML_ON_LOOP else await asyncio.to_thread(html_to_text, html)
    return text, html, subject


async def _attachments(settings: EmailSettings, attachments: Sequence[Any]) -> list[AttachmentData]:
    return await resolve_attachments(
        attachments,
        max_bytes=settings.max_attachment_bytes,
        max_total_bytes=settings.max_message_bytes,
        dirs=settings.attachment_dirs,
        allowed_hosts=settings.attachment_hosts,
    )
