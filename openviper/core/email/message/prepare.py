"""Check what the application gives and complete it: parsed addresses, one Message-ID, one date."""

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from openviper.core.email.addresses import Address, Addresses, parse_address, parse_addresses
from openviper.core.email.attachments import AttachmentData
from openviper.core.email.errors import InvalidAddress, InvalidMessage
from openviper.core.email.message.model import EmailMessageData, PreparedMessage
from openviper.core.email.message.validation import checked_attachment, checked_headers, checked_text
from openviper.exceptions import ImproperlyConfigured

__all__ = ["new_message_id", "prepare"]

_TOKENS = 64
_tokens: list[str] = []  # shared by all threads; a forked process must draw its own
os.register_at_fork(after_in_child=_tokens.clear)


def prepare(
    data: EmailMessageData,
    *,
    default_sender: str | None,
    auto_submitted: bool = False,
    now: datetime | None = None,
) -> PreparedMessage:
    """Check ``data`` and complete it: parsed addresses, one Message-ID on the sender's domain, one date.

    ``default_sender`` is ``EMAIL["default_sender"]``, used when ``data.sender`` is None. ``auto_submitted`` adds the
    header of RFC 3834 that keeps vacation responders quiet, unless ``data.headers`` has one. ``now`` (aware) is the
    Date; None is the present moment. Exact duplicates leave the headers; see ``PreparedMessage.recipients`` for the
    envelope. ``data`` is not changed.

    Raises:
        InvalidMessage: a value cannot be sent as given; the text names the field.
        ImproperlyConfigured: there is no sender, or the default one is not an address.
    """
    sender = _sender(data.sender, default_sender)
    to = _addresses(data.recipients, field="recipients")
    cc = _addresses(data.cc, field="cc")
    bcc = _addresses(data.bcc, field="bcc")
    if not to and not cc and not bcc:
        raise InvalidMessage("recipients: there is no recipient, not in cc or bcc either")
    text, html = _body(data.text, field="text"), _body(data.html, field="html")
    if text is None and html is None:
        raise InvalidMessage('text: there is no body; give text (text="" is valid), html or a template')
    headers = checked_headers(data.headers) if data.headers else ()
    message_id, headers = _message_id(headers, sender)
    if auto_submitted and not any(name.lower() == "auto-submitted" for name, _ in headers):
        headers = (*headers, ("Auto-Submitted", "auto-generated"))
    return PreparedMessage(  # by position, which takes less than half as long as by name
        message_id,
        datetime.now(UTC) if now is None else now,
        sender,
        to,
        cc,
        bcc,
        _addresses(data.reply_to, field="reply_to"),
        checked_text(data.subject, field="subject"),
        text,
        html,
        _attachments(data.attachments) if data.attachments else (),
        headers,
        _envelope_sender(data.envelope_sender, sender),
    )


def _sender(given: str | None, default: str | None) -> Address:
    if given is not None:
        return parse_address(given, field="sender")
    if not default:
        raise ImproperlyConfigured(
            'EMAIL["default_sender"]: is not set, and the message names no sender; set it, or pass sender='
        )
    try:
        return parse_address(default, field='EMAIL["default_sender"]')
    except InvalidAddress as error:
        raise ImproperlyConfigured(str(error)) from error


def _addresses(value: Addresses, *, field: str) -> tuple[Address, ...]:
    if value == ():
        return ()
    if isinstance(value, str):
        return (parse_address(value, field=field),)
    addresses = parse_addresses(value, field=field)
    return addresses if len(addresses) < 2 else tuple(dict.fromkeys(addresses))


def _body(value: Any, *, field: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidMessage(f"{field}: must be a str, not {type(value).__name__}")
    return value


def _message_id(headers: tuple[tuple[str, str], ...], sender: Address) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The Message-ID that the application gave as a header, or a new one; and the headers without it."""
    for name, value in headers:
        if name.lower() == "message-id":
            return value, tuple([pair for pair in headers if pair[0] != name])
    return new_message_id(sender), headers


def new_message_id(sender: Address) -> str:
    """A Message-ID that was never given before, on the sender's domain, with its angle brackets."""
    return f"<{_token()}@{sender.domain}>"


def _token() -> str:
    """32 random hex digits. Many are drawn at a time, because asking the system takes as long as the rest of an id."""
    try:
        return _tokens.pop()
    except IndexError:
        digits = os.urandom(16 * _TOKENS).hex()
        first, *others = [digits[at : at + 32] for at in range(0, len(digits), 32)]
        _tokens.extend(others)  # other threads may take them all
        return first


def _attachments(attachments: Iterable[AttachmentData]) -> tuple[AttachmentData, ...]:
    checked = tuple([checked_attachment(attachment) for attachment in attachments])
    content_ids: set[str] = set()
    for attachment in checked:
        if attachment.content_id is None:
            continue
        if attachment.content_id in content_ids:
            raise InvalidMessage(
                f"attachments: {attachment.filename!r} has the content_id {attachment.content_id!r} of another one"
            )
        content_ids.add(attachment.content_id)
    return checked


def _envelope_sender(given: str | None, sender: Address) -> str:
    if given is None:
        return sender.addr_spec
    if given == "":
        return ""
    address = parse_address(given, field="envelope_sender")
    if address.display_name:
        raise InvalidAddress("envelope_sender: takes an address without a name", address=given)
    return address.addr_spec
