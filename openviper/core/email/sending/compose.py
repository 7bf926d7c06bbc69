"""Turn the arguments of a send into a prepared message: render bodies, load attachments."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from openviper.core.email.addresses import Address, Addresses, AddressLike, parse_addresses, refuse_message
from openviper.core.email.attachments import AttachmentData, AttachmentInput, list_attachments, resolve_attachments
from openviper.core.email.delivery import Mailer
from openviper.core.email.delivery.wrappers import wrappers
from openviper.core.email.errors import InvalidAddress, InvalidMessage
from openviper.core.email.message import (
    ORDER,
    CalendarInput,
    EmailMessageData,
    Given,
    NoSender,
    OutgoingMessage,
    SendCancelled,
    add_unsubscribe,
    apply_before_send,
    fill_data,
    identify_call,
    identify_data,
    inline_given,
    is_address_like,
    make_link,
    misplaced_argument,
    prepare_message,
    with_key,
)
from openviper.core.email.message.plaintext import html_to_text
from openviper.core.email.settings import EmailSettings, settings_origin
from openviper.core.email.templates import RenderedTemplate
from openviper.exceptions import ImproperlyConfigured
from openviper.text import shown

__all__ = ["compose", "prepare_data"]

logger = logging.getLogger("openviper.email")

# Larger HTML is turned into text in a thread; below it the walk takes less than a thread would.
_HTML_ON_LOOP = 64 * 1024


async def compose(
    loop_mailer: Mailer,
    recipients: Addresses,
    subject: str | None = None,
    text: str | None = None,
    html: str | None = None,
    cc: Addresses | None = None,
    bcc: Addresses | None = None,
    attachments: AttachmentInput | Iterable[Any] | None = None,
    template: str | None = None,
    context: Mapping[str, Any] | None = None,
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
    key: str | None = None,
    dsn: str | Sequence[str] | None = None,
    recipients_required: bool = True,
    serialised: bool = True,
) -> OutgoingMessage:
    """Return the prepared message of :func:`submit_email`'s arguments.

    ``recipients_required`` False makes a message without any recipient, which cannot be sent; ``serialised`` as in
    :func:`prepare_message`.

    Raises:
        InvalidMessage: an argument cannot be sent as given.
        ImproperlyConfigured: no sender is given, and none is set, or the settings of an unsubscribe link are not.
        SendCancelled: ``before_send`` cancelled it.
    """
    hooks = loop_mailer.before_send
    doubt = misplaced_argument(subject, text, html, template)
    call = None
    if key is not None:
        recipients, cc = parse_addresses(recipients, field="recipients"), parse_addresses(cc, field="cc")
        bcc, reply_to = parse_addresses(bcc, field="bcc"), parse_addresses(reply_to, field="reply_to")
        given = list_attachments(attachments)
        attachments = given or None
        call = await identify_call(
            key,
            Given(
                recipients, cc, bcc, reply_to, sender, subject, text, html, template, context, headers, given, calendar
            ),
        )
    if unsubscribe is not False or recipient_id is not None:
        link = make_link(recipients, cc, bcc, stream, unsubscribe, recipient_id, loop_mailer.settings.of_mailer(mailer))
        recipients, cc, bcc, stream = link.recipients, link.cc, link.bcc, link.stream
        headers = link.add_headers(headers)
        context = context if template is None else link.add_to_context(context)
    if html is not None and loop_mailer.settings.inline_css and not hooks:
        html = await inline_given(html)
    derived = text is None
    if text is None or subject is None or template is not None or context is not None:
        _refuse_message(recipients)
        text, html, subject = await _bodies(loop_mailer, template, context, text, html, subject)
    data = EmailMessageData.__new__(EmailMessageData)
    fill_data(  # by position, as PreparedMessage is made
        data,
        recipients,
        subject,
        text,
        html,
        () if cc is None else cc,
        () if bcc is None else bcc,
        [] if attachments is None or hooks else await _attachments(loop_mailer.settings, attachments),
        sender,
        () if reply_to is None else reply_to,
        headers or {},
        envelope_sender,
        date,
        in_reply_to,
        references,
    )
    if calendar is not None or calendar_attachment:
        data.calendar, data.calendar_attachment = calendar, calendar_attachment
    if tags is not None or ref is not None or metadata is not None or stream is not None:
        data.tags, data.ref, data.metadata, data.stream = tags or (), ref, metadata or {}, stream
        data.unsubscribe, data.recipient_id = unsubscribe, recipient_id  # which need a stream
    if mailer is not None or key is not None:
        data.mailer, data.key = mailer, key
    data.sensitive, data.dsn = sensitive, dsn
    settings = loop_mailer.settings
    preparing = (
        _through_hooks(
            loop_mailer, data, attachments, derived=derived, required=recipients_required, serialised=serialised
        )
        if hooks
        else _prepare(settings, data, inlined=True, required=recipients_required, serialised=serialised)
    )
    try:
        message = await preparing
    except (NoSender, InvalidAddress) as error:
        raise _explained(error, recipients, subject) from None
    if doubt is not None:
        logger.warning("message %s: %s", message.message_id, doubt)
    return message if call is None else with_key(message, call)


def _refuse_message(recipients: Any) -> None:
    """Refuse a whole message in the place of its recipients, before the lack of a subject is found."""
    if isinstance(recipients, str):
        return
    if isinstance(recipients, Mapping):
        raise InvalidAddress(
            "recipients: must be an address or a list of addresses, not a whole message as a dict; "
            "give its values by name: send_email(recipients=..., subject=..., text=...)",
            address=shown(recipients),
        )
    refuse_message(recipients, field="recipients")


def _explained(
    error: NoSender | InvalidAddress, recipients: object, subject: object
) -> ImproperlyConfigured | InvalidAddress:
    """Return ``error`` with the settings' origin, or the order of the arguments if the subject holds the recipients."""
    if isinstance(error, NoSender):
        return _with_origin(error)
    if error.address != recipients or ORDER in str(error) or not _holds_addresses(subject):
        return error
    return InvalidAddress(f"{error}; {ORDER}", address=error.address, reason=error.reason)


def _holds_addresses(subject: object) -> bool:
    return is_address_like(subject) or (isinstance(subject, list | tuple | set) and any(map(is_address_like, subject)))


async def _through_hooks(
    mailer: Mailer, data: EmailMessageData, attachments: Any, *, derived: bool, required: bool, serialised: bool
) -> OutgoingMessage:
    """Have ``before_send`` edit ``data``, then load the attachments, inline the CSS and derive the text again."""
    data.attachments = list_attachments(attachments)
    text, html = data.text, data.html
    data, reason = await apply_before_send(mailer.before_send, data)
    if reason is not None:
        data.attachments = []  # for a message that is not sent nothing is fetched
    if isinstance(data.html, str) and mailer.settings.inline_css:
        data.html = await inline_given(data.html)
    if derived and data.text == text and data.html != html and isinstance(data.html, str):
        data.text = await _text_of(data.html)
    data.attachments = await _attachments(mailer.settings, data.attachments) if data.attachments else []
    message = await _prepare(mailer.settings, data, inlined=True, required=required, serialised=serialised)
    if reason is not None:
        raise SendCancelled(message, reason)
    return message


def _prepare(
    settings: EmailSettings, data: EmailMessageData, *, inlined: bool, required: bool = True, serialised: bool = True
) -> Coroutine[Any, Any, OutgoingMessage]:
    if data.mailer is not None:
        settings = settings.of_mailer(data.mailer)
    # No coroutine of its own, which would cost 0.5 % of a send.
    return prepare_message(
        data,
        settings.default_sender,
        settings.auto_submitted,
        settings.max_message_bytes,
        inline_css=settings.inline_css and not inlined,
        recipients_required=required,
        labels=settings,
        serialised=serialised,
    )


def _with_origin(error: NoSender) -> ImproperlyConfigured:
    unreached = wrappers.unreached_settings()
    if unreached is not None:
        return ImproperlyConfigured(f"{unreached}; without these settings there is no sender")
    return ImproperlyConfigured(f"{error}; {settings_origin()}")


async def prepare_data(mailer: Mailer, data: EmailMessageData, *, serialised: bool = True) -> OutgoingMessage:
    """Prepare ``data`` as an application gives it, as the mailer's settings say.

    ``serialised`` is as in :func:`prepare_message`.

    Raises:
        InvalidMessage: a value cannot be sent as given.
        ImproperlyConfigured: no sender is given, and none is set, or the settings of an unsubscribe link are not.
        SendCancelled: ``before_send`` cancelled it.
    """
    reason = call = None
    if data.key is not None:
        data, call = await identify_data(data)
    if data.unsubscribe is not False or data.recipient_id is not None:
        data = add_unsubscribe(data, mailer.settings.of_mailer(data.mailer))
    if mailer.before_send:
        data, reason = await apply_before_send(mailer.before_send, data)
    try:
        message = await _prepare(mailer.settings, data, inlined=False, serialised=serialised)
    except NoSender as error:
        raise _with_origin(error) from None
    if reason is not None:
        raise SendCancelled(message, reason)
    return message if call is None else with_key(message, call)


async def _bodies(
    mailer: Mailer,
    template: str | None,
    context: Any,
    text: str | None,
    html: str | None,
    subject: str | None,
) -> tuple[str | None, str | None, str]:
    if isinstance(template, Mapping):
        raise InvalidMessage("template: must be the name of a file, not its values; these are given as context=")
    if context is not None and not isinstance(context, Mapping):
        raise InvalidMessage(f"context: must be a mapping of names to values, not {type(context).__name__}")
    if template is not None:
        rendered = await mailer.renderer.render(template, context)
        _check_used(template, rendered, text=text, html=html, subject=subject)
        text = rendered.text if text is None else text
        html = rendered.html if html is None else html
        subject = rendered.subject if subject is None else subject
    elif context:
        raise InvalidMessage("context is given without a template: name the template, or leave the context out")
    if subject is None:
        raise InvalidMessage("subject is missing: give one, or a template with a 'subject' block")
    if text is None and isinstance(html, str):  # of another type it is refused with the rest
        text = await _text_of(html)
    return text, html, subject


def _check_used(
    template: str, rendered: RenderedTemplate, *, text: str | None, html: str | None, subject: str | None
) -> None:
    """Refuse a template of which nothing is used, because all that it gives is given besides.

    Raises:
        InvalidMessage: it is one.
    """
    parts = ((rendered.text, text), (rendered.html, html), (rendered.subject, subject))
    if all(part is None or given is not None for part, given in parts):
        given_too = " and ".join(name for name, value in (("text", text), ("html", html)) if value is not None)
        raise InvalidMessage(
            f"template: nothing of {shown(template)} is used, because {given_too} is given too; leave one of them out"
        )


async def _text_of(html: str) -> str:
    return html_to_text(html) if len(html) <= _HTML_ON_LOOP else await asyncio.to_thread(html_to_text, html)


async def _attachments(settings: EmailSettings, attachments: AttachmentInput | Iterable[Any]) -> list[AttachmentData]:
    return await resolve_attachments(
        attachments,
        max_bytes=settings.max_attachment_bytes,
        max_total_bytes=settings.max_message_bytes,
        dirs=settings.attachment_dirs,
        allowed_hosts=settings.attachment_hosts,
    )
