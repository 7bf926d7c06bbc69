"""A prepared message as a broker keeps it: a JSON head with a version, and bodies and attachments as raw bytes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from openviper.core.email.addresses import Address, parse_address
from openviper.core.email.attachments import AttachmentData
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message.model import PreparedMessage
from openviper.core.email.message.validation import checked_attachment, checked_headers, checked_text, is_message_id
from openviper.text import shown

__all__ = ["VERSION", "Payload", "UnknownPayload", "decode", "encode", "join", "split"]

VERSION = 1

_KEYS = frozenset(
    {
        "version",
        "message_id",
        "date",
        "sender",
        "to",
        "cc",
        "bcc",
        "reply_to",
        "subject",
        "text",
        "html",
        "attachments",
        "headers",
        "envelope_sender",
        "sizes",
    }
)
_ATTACHMENT_KEYS = frozenset({"filename", "mimetype", "inline", "content_id", "part"})

T = TypeVar("T")


class UnknownPayload(ValueError):
    """Written by another version, or damaged. The text says what is unknown and shows nothing of the message."""


@dataclass(frozen=True, slots=True)
class Payload:
    """``parts`` are the bodies and attachments that ``head`` points to by their number."""

    head: bytes
    parts: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of everything."""
        return len(self.head) + sum(map(len, self.parts))

    def about(self) -> dict[str, str]:
        """The header fields that tell a person which message it is; empty where the head cannot be read."""
        try:
            head = _head(self.head)
            fields = {name: ", ".join(str(Address(*one)) for one in head[name.lower()]) for name in ("To", "Cc", "Bcc")}
            return {"From": str(Address(*head["sender"])), **fields, "Subject": str(head["subject"])}
        except (UnknownPayload, TypeError, AttributeError):
            return dict.fromkeys(("From", "To", "Cc", "Bcc", "Subject"), "")

    def __repr__(self) -> str:
        return f"<Payload {self.size} bytes>"


def encode(message: PreparedMessage) -> Payload:
    """``message`` with everything that its bytes follow from, so that each attempt sends the same ones."""
    parts: list[bytes] = []

    def part(content: bytes | None) -> int | None:
        if content is None:
            return None
        parts.append(content)
        return len(parts) - 1

    head = {
        "version": VERSION,
        "message_id": message.message_id,
        "date": message.date.isoformat(),
        "sender": _address_out(message.sender),
        "to": [*map(_address_out, message.to)],
        "cc": [*map(_address_out, message.cc)],
        "bcc": [*map(_address_out, message.bcc)],
        "reply_to": [*map(_address_out, message.reply_to)],
        "subject": message.subject,
        "text": part(None if message.text is None else message.text.encode()),
        "html": part(None if message.html is None else message.html.encode()),
        "attachments": [
            {
                "filename": attachment.filename,
                "mimetype": attachment.mimetype,
                "inline": attachment.inline,
                "content_id": attachment.content_id,
                "part": part(attachment.content),
            }
            for attachment in message.attachments
        ],
        "headers": [*map(list, message.headers)],
        "envelope_sender": message.envelope_sender,
        "sizes": [*map(len, parts)],
    }
    return Payload(json.dumps(head, separators=(",", ":")).encode(), tuple(parts))


def decode(payload: Payload) -> PreparedMessage:
    """The message of ``payload``, checked as one that an application gives: who can write to a broker is not trusted.

    Raises:
        UnknownPayload: another version, an unknown or missing field, or a value that no message can have.
    """
    head = _head(payload.head)
    if [*map(len, payload.parts)] != head["sizes"]:
        raise UnknownPayload("the sizes of its parts are not those that were written")
    return PreparedMessage(
        message_id=_field(head, "message_id", _message_id),
        date=_field(head, "date", _date),
        sender=_field(head, "sender", _address_in),
        to=_field(head, "to", _addresses_in),
        cc=_field(head, "cc", _addresses_in),
        bcc=_field(head, "bcc", _addresses_in),
        reply_to=_field(head, "reply_to", _addresses_in),
        subject=_field(head, "subject", lambda value: checked_text(_text(value), field="subject")),
        text=_field(head, "text", lambda value: _body(payload, value)),
        html=_field(head, "html", lambda value: _body(payload, value)),
        attachments=_field(head, "attachments", lambda value: tuple([_attachment(payload, one) for one in value])),
        headers=_field(head, "headers", lambda value: checked_headers(dict(value)) if value else ()),
        envelope_sender=_field(head, "envelope_sender", _envelope_sender),
    )


def join(payload: Payload) -> bytes:
    """``payload`` as one piece, for a broker that keeps a message in one."""
    return b"".join((len(payload.head).to_bytes(4, "big"), payload.head, *payload.parts))


def split(joined: bytes) -> Payload:
    """The payload of ``join``'s result.

    Raises:
        UnknownPayload: it is none.
    """
    end = 4 + int.from_bytes(joined[:4], "big")
    head = bytes(joined[4:end])
    sizes = _head(head)["sizes"]
    if not isinstance(sizes, list) or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise UnknownPayload("its sizes are no numbers")
    parts = []
    for size in sizes:
        parts.append(bytes(joined[end : end + size]))
        end += size
    return Payload(head, tuple(parts))


def _head(raw: bytes) -> dict[str, Any]:
    try:
        head = json.loads(raw)
    except (ValueError, RecursionError):
        raise UnknownPayload("its head is not JSON") from None
    if not isinstance(head, dict):
        raise UnknownPayload("its head is not an object")
    if head.get("version") != VERSION:
        raise UnknownPayload(f"its version is {shown(head.get('version'))}, and this program knows {VERSION}")
    if head.keys() != _KEYS:
        unknown, missing = sorted(head.keys() - _KEYS), sorted(_KEYS - head.keys())
        raise UnknownPayload(
            f"unknown fields: {', '.join(unknown)[:200] or 'none'}; missing: {', '.join(missing) or 'none'}"
        )
    return head


def _field(head: Mapping[str, Any], name: str, read: Callable[[Any], T]) -> T:
    try:
        return read(head[name])
    except (InvalidMessage, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        # Without the cause: its text may show an address.
        raise UnknownPayload(f"its field {shown(name)} cannot be read ({type(error).__name__})") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _message_id(value: Any) -> str:
    if not is_message_id(_text(value)):
        raise ValueError
    return str(value)


def _date(value: Any) -> datetime:
    date = datetime.fromisoformat(value)
    if date.tzinfo is None:
        raise ValueError
    return date


def _address_out(address: Address) -> list[str]:
    return [address.display_name, address.local_part, address.domain]


def _address_in(value: Any) -> Address:
    name, local_part, domain = map(_text, value)
    address = Address(name, local_part, domain)
    if parse_address(str(address), field="address") != address:
        raise ValueError
    return address


def _addresses_in(values: Sequence[Any]) -> tuple[Address, ...]:
    return tuple([_address_in(value) for value in values])


def _envelope_sender(value: Any) -> str:
    if value and parse_address(value, field="envelope_sender").addr_spec != value:
        raise ValueError
    return _text(value)


def _body(payload: Payload, number: int | None) -> str | None:
    return None if number is None else payload.parts[number].decode()


def _attachment(payload: Payload, given: Mapping[str, Any]) -> AttachmentData:
    if given.keys() != _ATTACHMENT_KEYS:
        raise ValueError
    return checked_attachment(
        AttachmentData(
            filename=_text(given["filename"]),
            content=payload.parts[given["part"]],
            mimetype=_text(given["mimetype"]),
            inline=bool(given["inline"]),
            content_id=given["content_id"],
        )
    )
