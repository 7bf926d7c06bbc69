"""Check what the application gives, complete it and write it as bytes: every accepted message passes here."""

import asyncio
import os
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from openviper import tracing
from openviper.core.email.addresses import Address, Addresses, AddressLike, parse_addresses, read_address
from openviper.core.email.attachments import AttachmentData, looks_like_type
from openviper.core.email.errors import AttachmentRefused, InvalidAddress, InvalidMessage
from openviper.core.email.events import NOTHING
from openviper.core.email.message.calendar import read_calendar
from openviper.core.email.message.content_ids import inline_named
from openviper.core.email.message.dsn import EXTRA_DSN, checked_dsn
from openviper.core.email.message.labels import MailerLabels, checked_labels, label_headers
from openviper.core.email.message.misplaced import type_hint
from openviper.core.email.message.model import (
    REPEATED_HEADERS,
    EmailMessageData,
    OutgoingMessage,
    PreparedMessage,
    read_only,
)
from openviper.core.email.message.serialiser import BYTES_ON_LOOP, serialise, serialise_later, serialise_message_sync
from openviper.core.email.message.tracing import with_context
from openviper.core.email.message.validation import (
    checked_attachment,
    checked_headers,
    checked_message_ids,
    checked_text,
)
from openviper.core.email.templates import CssNotInlined, inline_css
from openviper.exceptions import ImproperlyConfigured
from openviper.text import shown

if TYPE_CHECKING:
    from email.message import EmailMessage

__all__ = ["NoSender", "build_message", "check_message", "inline_given", "new_message_id", "prepare_message"]

_DEFAULT_SENDER = 'EMAIL["default_sender"]'


class NoSender(ImproperlyConfigured):
    """Neither the message nor ``EMAIL["default_sender"]`` gives a sender."""


# More addresses than these are parsed in a thread: they would hold the event loop for milliseconds.
_ADDRESSES_ON_LOOP = 1000
_EARLIEST = 1900  # year


async def prepare_message(
    data: EmailMessageData,
    default_sender: str | None,
    auto_submitted: bool,
    max_message_bytes: int,
    *,
    inline_css: bool,
    recipients_required: bool = True,
    labels: MailerLabels | None = None,
    serialised: bool = True,
) -> OutgoingMessage:
    """Check, complete and serialise ``data``; large messages in a thread.

    The arguments are the settings of the same names; see ``check_message`` and ``serialise_message``. ``inline_css``
    is for HTML that was not inlined before, when the text part was made from it. ``recipients_required`` False lets a
    message pass that has none. ``labels`` are the settings of the message's mailer; None: it has none. ``serialised``
    False lets a message without attachments be serialised only when its content is read; its ``size`` is then that of
    the bodies as they are.

    Raises:
        InvalidMessage: a value cannot be sent as given, or the message is larger than ``max_message_bytes``.
        ImproperlyConfigured: there is no sender, or the default one is not an address.
        MissingDependency: ``inline_css`` is on and css-inline is not installed.
    """
    if inline_css and data.html is not None:
        data = replace(data, html=await inline_given(data.html))
    if _is_large(data):
        return await asyncio.to_thread(
            _prepare, data, default_sender, auto_submitted, max_message_bytes, recipients_required, labels, serialised
        )
    return _prepare(data, default_sender, auto_submitted, max_message_bytes, recipients_required, labels, serialised)


def _prepare(
    data: EmailMessageData,
    default_sender: str | None,
    auto_submitted: bool,
    max_message_bytes: int,
    recipients_required: bool,
    labels: MailerLabels | None,
    serialised: bool,
) -> OutgoingMessage:
    checked = check_message(
        data, default_sender, auto_submitted, recipients_required=recipients_required, labels=labels
    )
    if tracing.tracer is not None:
        checked = with_context(checked, tracing.tracer.context())
    if not serialised and (late := serialise_later(checked, max_message_bytes=max_message_bytes)) is not None:
        return late
    return serialise_message_sync(checked, max_message_bytes=max_message_bytes)


async def inline_given(html: str) -> str:
    """Inline the CSS of the HTML that an application gives as it is; in a thread.

    Raises:
        InvalidMessage: it is not a str, nests too deep, or has CSS that cannot be inlined.
        MissingDependency: css-inline is not installed.
    """
    _body(html, field="html")
    try:
        return await asyncio.to_thread(inline_css, html) if html else html
    except CssNotInlined as error:
        raise InvalidMessage(f"html: {error}") from error


def _is_large(data: EmailMessageData) -> bool:
    try:
        size = len(data.text or "") + len(data.html or "")
        if data.attachments:
            size += sum([part.size for part in data.attachments])
    except (AttributeError, TypeError):
        return False  # of a wrong type, which the check says
    if size > BYTES_ON_LOOP:
        return True
    try:
        return len(data.recipients) + len(data.cc) + len(data.bcc) > _ADDRESSES_ON_LOOP  # type: ignore[arg-type]
    except TypeError:
        return False  # one address, an iterator, or a wrong type


def build_message(data: EmailMessageData) -> "EmailMessage":
    """Return the message as a standard ``EmailMessage``, parsed from the bytes that would be sent.

    ``data.sender`` must be given: no settings are read here. Its ``as_bytes()`` has CRLF line ends.

    Raises:
        InvalidMessage: a value cannot be sent as given; the text names the field.
    """
    if data.sender is None:
        raise InvalidMessage("sender: build_message reads no settings, so the message must name its sender")
    if data.unsubscribe is not False:
        raise InvalidMessage("unsubscribe: build_message reads no settings, and so knows no key; leave it out")
    import email.policy  # a twentieth of what importing this component takes, and sending does without

    content = b"".join(serialise(check_message(data, default_sender=None)))
    # Headers are written out again as they were parsed.
    policy = email.policy.SMTP.clone(refold_source="none", utf8=not content.isascii())
    # Decoded first, because addresses that need SMTPUTF8 stand in the header as UTF-8.
    return email.message_from_string(content.decode(), policy=policy)


def check_message(
    data: EmailMessageData,
    default_sender: str | None,
    auto_submitted: bool = False,
    *,
    now: datetime | None = None,
    recipients_required: bool = True,
    labels: MailerLabels | None = None,
) -> PreparedMessage:
    """Check ``data`` and complete it: parsed addresses, one Message-ID on the sender's domain, one date.

    ``default_sender`` is ``EMAIL["default_sender"]``, used when ``data.sender`` is None. ``auto_submitted`` adds the
    header of RFC 3834 that keeps vacation responders quiet, unless ``data.headers`` has one. ``now`` (aware) is the
    Date of a message without one; None is the present moment. Exact duplicates leave the headers; see
    ``PreparedMessage.recipients`` for the envelope. ``data`` is not changed.

    Raises:
        InvalidMessage: a value cannot be sent as given; the text names the field.
        ImproperlyConfigured: there is no sender, or the default one is not an address.
    """
    sender = _sender(data.sender, default_sender, labels)
    to = _addresses(data.recipients, field="recipients")
    cc = _addresses(data.cc, field="cc")
    bcc = _addresses(data.bcc, field="bcc")
    if not to and not cc and not bcc and recipients_required:
        raise InvalidMessage("recipients: there is no recipient, not even in cc or bcc; give an address")
    text = data.text if isinstance(data.text, str) else _body(data.text, field="text")
    html = data.html if isinstance(data.html, str) else _body(data.html, field="html")
    if text is None and html is None:
        raise InvalidMessage('text: there is no body; give text (text="" is valid), html or a template')
    headers = checked_headers(data.headers) if data.headers else ()
    if data.in_reply_to is not None or data.references is not None:
        headers = (*headers, *_thread(data, headers))
    attachments: tuple[AttachmentData, ...] = ()
    if data.attachments:
        attachments = _attachments(data.attachments)
        if html is not None:
            html, attachments = inline_named(html, attachments)
    message_id, headers = _message_id(headers, sender)
    if auto_submitted and not any(name.lower() == "auto-submitted" for name, _ in headers):
        headers = (*headers, ("Auto-Submitted", "auto-generated"))
    prepared = PreparedMessage(  # by position: thirteen names would cost 2 % of a send
        message_id,
        _date(data.date) if data.date is not None else datetime.now(UTC) if now is None else now,
        sender,
        to,
        cc,
        bcc,
        _addresses(data.reply_to, field="reply_to"),
        checked_text(data.subject, field="subject"),
        text,
        html,
        attachments,
        headers,
        _envelope_sender(data.envelope_sender, sender),
    )
    if len(headers) > 1 and _has_repeated(headers):
        prepared = prepared._replace(must=read_only({REPEATED_HEADERS: True}))
    if data.calendar is not None or data.calendar_attachment:
        prepared = prepared._replace(calendar=read_calendar(data.calendar, attached=data.calendar_attachment))
    stream = data.stream if data.stream is not None or labels is None else labels.stream
    if (
        data.tags
        or data.ref is not None
        or data.metadata is not NOTHING
        or stream is not None
        or data.mailer is not None
        or data.sensitive is not False
        or data.dsn is not None
    ):
        return _labelled(prepared, data, labels, stream)
    return prepared


def _labelled(
    prepared: PreparedMessage, data: EmailMessageData, labels: MailerLabels | None, stream: str | None
) -> PreparedMessage:
    extra, must = checked_labels(data, stream)
    if data.dsn is not None:
        extra[EXTRA_DSN] = checked_dsn(
            data.dsn, envelope_sender=prepared.envelope_sender, sensitive=data.sensitive is not False
        )
    headers = prepared.headers
    if extra and labels is not None:
        headers = (*headers, *label_headers(extra, labels, headers))
    extra, must = read_only({**prepared.extra, **extra}), read_only({**prepared.must, **must})
    return prepared._replace(extra=extra, must=must, headers=headers)


def _sender(given: AddressLike | None, default: str | None, labels: MailerLabels | None) -> Address:
    if given is not None:
        return read_address(given, field="sender")
    if not default:
        setting = _setting(labels)
        raise NoSender(f"{setting}: is not set, and the message names no sender; set it, or pass sender=")
    try:
        return read_address(default, field=_DEFAULT_SENDER)
    except InvalidAddress as error:
        raise ImproperlyConfigured(str(error).replace(_DEFAULT_SENDER, _setting(labels))) from error


def _setting(labels: MailerLabels | None) -> str:
    return _DEFAULT_SENDER if labels is None else labels.path("default_sender")


def _addresses(value: Addresses, *, field: str) -> tuple[Address, ...]:
    if value == ():
        return ()
    if isinstance(value, str):
        return (read_address(value, field=field, in_list=True),)
    addresses = parse_addresses(value, field=field)
    return addresses if len(addresses) < 2 else tuple(dict.fromkeys(addresses))


def _date(value: Any) -> datetime:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidMessage(f"date: must be a datetime with a time zone, not {shown(value)}; datetime.now(UTC) is one")
    if value.year < _EARLIEST:
        raise InvalidMessage(f"date: is before {_EARLIEST}, and no message may be that old (RFC 5322 section 3.3)")
    return value


def _thread(data: EmailMessageData, headers: tuple[tuple[str, str], ...]) -> Iterable[tuple[str, str]]:
    """Return the headers of a reply; without ``references`` they name the message that it answers."""
    references = data.in_reply_to if data.references is None else data.references
    for name, field, value in (
        ("In-Reply-To", "in_reply_to", data.in_reply_to),
        ("References", "references" if data.references is not None else "in_reply_to", references),
    ):
        if value is None:
            continue
        if any(given.lower() == name.lower() for given, _ in headers):
            raise InvalidMessage(f"headers['{name}']: is set by the argument {field} already; give it once")
        yield name, checked_message_ids(value, field=field)


def _has_repeated(headers: tuple[tuple[str, str], ...]) -> bool:
    return len({name for name, _ in headers}) < len(headers)


def _body(value: Any, *, field: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidMessage(f"{field}: must be a str, not {type(value).__name__}{type_hint(field, value)}")
    return value


def _message_id(headers: tuple[tuple[str, str], ...], sender: Address) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the Message-ID that the application gave as a header, or a new one; and the headers without it."""
    for name, value in headers:
        if name.lower() == "message-id":
            return value, tuple([pair for pair in headers if pair[0] != name])
    return new_message_id(sender), headers


def new_message_id(sender: Address) -> str:
    """Return a new Message-ID on the sender's domain, with its angle brackets: 128 random bits (RFC 5322 3.6.4)."""
    return f"<{os.urandom(16).hex()}@{sender.domain}>"


def _attachments(attachments: Iterable[AttachmentData]) -> tuple[AttachmentData, ...]:
    checked = tuple([checked_attachment(attachment) for attachment in attachments])
    content_ids: set[str] = set()
    for attachment in checked:
        if looks_like_type(attachment.filename):
            raise AttachmentRefused(
                attachment.filename, "filename: is a media type; write (filename, content, mimetype)"
            )
        if attachment.content_id is None:
            continue
        if attachment.content_id in content_ids:
            raise InvalidMessage(
                f"attachments: {shown(attachment.filename)} has the content_id "
                f"{shown(attachment.content_id)} of another attachment"
            )
        content_ids.add(attachment.content_id)
    return checked


def _envelope_sender(given: str | Address | None, sender: Address) -> str:
    if given is None:
        return sender.addr_spec
    if given == "":
        return ""
    address = read_address(given, field="envelope_sender")
    if address.display_name:
        raise InvalidAddress(
            f"envelope_sender: {shown(given)} has a name; give the address alone", address=address.addr_spec
        )
    return address.addr_spec
