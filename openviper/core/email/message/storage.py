"""Encode prepared messages as JSON and back: the one codec for the queue and for the inbox's folder.

A broker keeps a JSON head, and bodies and attachments as raw bytes (``Payload``). Version 2 of the head adds two
objects: unknown keys of ``extra`` are ignored, unknown keys of ``must`` leave the message to a worker that knows them.
Version 1 has neither, and is written while both are empty, so that workers which only read version 1 can deliver it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from openviper.core.email.addresses import Address, parse_address, read_address
from openviper.core.email.attachments import AttachmentData, FileContent
from openviper.core.email.errors import DeliveryError, InvalidMessage
from openviper.core.email.events import NOTHING
from openviper.core.email.message.calendar import Calendar, read_calendar
from openviper.core.email.message.model import (
    MUST_KEY,
    MUST_MAILER,
    MUST_REDIRECT,
    MUST_SENSITIVE,
    MUST_STREAM,
    REPEATED_HEADERS,
    PreparedMessage,
    read_only,
)
from openviper.core.email.message.validation import checked_attachment, checked_headers, checked_text, is_message_id
from openviper.framing import frame, read_head, read_parts
from openviper.text import cut, shown

__all__ = [
    "SUPPORTED",
    "VERSION",
    "DamagedPayload",
    "NewerPayload",
    "Payload",
    "check_supported",
    "decode",
    "decode_message",
    "encode",
    "encode_message",
    "fingerprint",
    "join",
    "load_object",
    "split",
    "stored_version",
]

VERSION = 2

SUPPORTED: frozenset[str] = frozenset(
    {MUST_KEY, MUST_MAILER, MUST_REDIRECT, MUST_SENSITIVE, MUST_STREAM, REPEATED_HEADERS, "calendar"}
)
"""The keys of ``must`` that this version carries out."""

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
    }
)
_KEYS_OF_VERSION_2 = frozenset({"extra", "must"})
_VERSION_1 = b'{"version":1,'
_SENSITIVE = f'"{MUST_SENSITIVE}"'.encode()
_NO_PARTS = b'"sizes":[]'
_DATE = re.compile(rb',"date":"[^"]*"')
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_ATTACHMENT_KEYS = frozenset({"filename", "mimetype", "inline", "content_id", "part"})

T = TypeVar("T")


class DamagedPayload(ValueError):
    """No version could have written this. The text names the fault and shows nothing of the message."""


class NewerPayload(DeliveryError, ValueError):
    """A later version wrote this, and can deliver it. The text names what this one does not support, and no content."""

    def __init__(self, message: str) -> None:
        super().__init__(message, temporary=True)


@dataclass(frozen=True, slots=True)
class Payload:
    """``parts`` are the bodies and attachments that ``head`` points to by their number."""

    head: bytes
    parts: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Count the bytes of head and parts."""
        return len(self.head) + sum(map(len, self.parts))

    @property
    def sensitive(self) -> bool:
        """True for a message sent with ``sensitive=True``; False where the head cannot be read."""
        if _SENSITIVE not in self.head:  # nearly always, and without reading it
            return False
        must = _readable(self.head).get("must")
        return isinstance(must, dict) and MUST_SENSITIVE in must

    @property
    def content_dropped(self) -> bool:
        """True for what ``without_content`` returns: every message has a body, and so at least one part."""
        return _NO_PARTS in self.head and _readable(self.head).get("sizes") == []

    def without_content(self) -> "Payload":
        """Return the head alone, marked so that it is not taken for a whole message."""
        values = {**load_object(self.head), "sizes": []}
        return Payload(json.dumps(values, separators=(",", ":")).encode(), ())

    def summary(self) -> dict[str, str]:
        """Return the header fields by which a person knows the message; empty texts where the head cannot be read."""
        try:
            head = load_object(self.head)
            _check_version(head)
            fields = {name: ", ".join(str(Address(*one)) for one in head[name.lower()]) for name in ("To", "Cc", "Bcc")}
            return {"From": str(Address(*head["sender"])), **fields, "Subject": str(head["subject"])}
        except (DamagedPayload, NewerPayload, LookupError, TypeError, AttributeError):
            return dict.fromkeys(("From", "To", "Cc", "Bcc", "Subject"), "")

    def __repr__(self) -> str:
        return f"<Payload {self.size} bytes>"


def encode(message: PreparedMessage) -> Payload:
    """Encode all that the message's bytes follow from, so that each attempt sends the same ones.

    Blocks where an attachment is in a temporary file, which is read into memory here.
    """
    parts: list[bytes] = []

    def add(content: bytes | FileContent) -> int:
        parts.append(content if isinstance(content, bytes) else content.read())
        return len(parts) - 1

    head = encode_message(message, body=lambda text: add(text.encode()), content=add)
    head["sizes"] = [*map(len, parts)]
    return Payload(_to_json(head).encode(), tuple(parts))


def decode(payload: Payload, *, supported: Collection[str] = SUPPORTED) -> PreparedMessage:
    """Decode and check a message as one that an application gives: whoever can write to a broker is not trusted.

    ``supported``: the keys of ``must`` that the caller carries out.

    Raises:
        NewerPayload: a later version wrote it, or it requires what is not supported.
        DamagedPayload: an unknown or missing field, or a value that no message can have.
    """
    head = load_object(payload.head)
    _check_version(head)
    if [*map(len, payload.parts)] != head.pop("sizes", None):
        raise DamagedPayload("the sizes of its parts are not those that were written")
    if isinstance(must := head.get("must"), dict):
        check_supported(must, supported)
    return decode_message(
        head, body=lambda number: payload.parts[number].decode(), content=lambda number: payload.parts[number]
    )


def fingerprint(payload: Payload) -> str:
    """Return the same text for messages that differ at most in their date and in ``extra``."""
    head = payload.head
    if not head.startswith(_VERSION_1):
        values = load_object(head)
        values.pop("extra", None)
        if not values.get("must", True):  # it would be version 1 but for what is left out here
            del values["must"]
            values["version"] = 1
        head = _to_json(values).encode()
    # A quotation mark inside a JSON string has a backslash before it, so that this is the field.
    digest = hashlib.sha256(_DATE.sub(b"", head, count=1))
    for part in payload.parts:
        digest.update(part)
    return digest.hexdigest()


def join(payload: Payload) -> bytes:
    """Join head and parts, for a broker that keeps a message in one piece."""
    return frame(payload.head, payload.parts)


def split(joined: bytes) -> Payload:
    """Split what ``join`` has joined.

    Raises:
        NewerPayload: a later version wrote it.
        DamagedPayload: it is no such payload.
    """
    head, begin = read_head(joined)
    values = load_object(head)
    _check_version(values)
    sizes = values.get("sizes")
    if not isinstance(sizes, list) or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise DamagedPayload("its sizes are not numbers")
    try:
        return Payload(head, tuple(read_parts(joined, begin, sizes)))
    except ValueError:
        raise DamagedPayload("it is cut short") from None


def encode_message(
    message: PreparedMessage, *, body: Callable[[str], object], content: Callable[[bytes | FileContent], object]
) -> dict[str, Any]:
    """Return ``message`` as JSON values; ``body`` and ``content`` return what stands for a body or an attachment."""
    values: dict[str, Any] = {
        "version": 1,
        "message_id": message.message_id,
        "date": message.date.isoformat(),
        "sender": _encode_address(message.sender),
        "to": [*map(_encode_address, message.to)],
        "cc": [*map(_encode_address, message.cc)],
        "bcc": [*map(_encode_address, message.bcc)],
        "reply_to": [*map(_encode_address, message.reply_to)],
        "subject": message.subject,
        "text": None if message.text is None else body(message.text),
        "html": None if message.html is None else body(message.html),
        "attachments": [
            {
                "filename": attachment.filename,
                "mimetype": attachment.mimetype,
                "inline": attachment.inline,
                "content_id": attachment.content_id,
                "part": content(attachment.stored),
            }
            for attachment in message.attachments
        ],
        "headers": [*map(list, message.headers)],
        "envelope_sender": message.envelope_sender,
    }
    if message.extra or message.must or message.calendar is not None:
        values |= {"version": 2, "extra": dict(message.extra), "must": dict(message.must)}
    if message.calendar is not None:  # must: a version that does not know it would send an invitation without it
        values["must"]["calendar"] = {"text": body(message.calendar.text), "attached": message.calendar.attached}
    return values


def decode_message(
    values: Mapping[str, Any], *, body: Callable[[Any], str], content: Callable[[Any], bytes]
) -> PreparedMessage:
    """Return the checked message of what ``encode_message`` returned; ``body`` and ``content`` undo those.

    Raises:
        NewerPayload: a later version wrote it.
        DamagedPayload: an unknown or missing field, or a value that no message can have.
    """
    allowed = _KEYS if _check_version(values) == 1 else _KEYS | _KEYS_OF_VERSION_2
    if values.keys() != allowed:
        unknown, missing = sorted(values.keys() - allowed), sorted(allowed - values.keys())
        raise DamagedPayload(
            f"unknown fields: {cut(', '.join(unknown), 200) or 'none'}; missing: {', '.join(missing) or 'none'}"
        )
    must = dict(_field(values, "must", _object)) if "must" in values else {}
    calendar = _field(must, "calendar", partial(_calendar, body)) if "calendar" in must else None
    must.pop("calendar", None)
    return PreparedMessage(
        message_id=_field(values, "message_id", _message_id),
        date=_field(values, "date", _date),
        sender=_field(values, "sender", _decode_address),
        to=_field(values, "to", _decode_addresses),
        cc=_field(values, "cc", _decode_addresses),
        bcc=_field(values, "bcc", _decode_addresses),
        reply_to=_field(values, "reply_to", _decode_addresses),
        subject=_field(values, "subject", lambda value: checked_text(_text(value), field="subject")),
        text=_field(values, "text", lambda value: None if value is None else body(value)),
        html=_field(values, "html", lambda value: None if value is None else body(value)),
        attachments=_field(values, "attachments", lambda value: tuple([_attachment(one, content) for one in value])),
        headers=_field(values, "headers", lambda value: checked_headers(_by_name(value)) if value else ()),
        envelope_sender=_field(values, "envelope_sender", _envelope_sender),
        extra=read_only(_field(values, "extra", _object)) if "extra" in values else NOTHING,
        must=read_only(must) if must else NOTHING,
        calendar=calendar,
    )


def load_object(raw: str | bytes) -> dict[str, Any]:
    """Load a JSON object.

    Raises:
        DamagedPayload: it is not one.
    """
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        raise DamagedPayload("it is not JSON") from None
    if not isinstance(values, dict):
        raise DamagedPayload("it is not a JSON object")
    return values


def _readable(raw: bytes) -> dict[str, Any]:
    """Return the JSON object, empty if it cannot be read."""
    try:
        return load_object(raw)
    except DamagedPayload:
        return {}


def stored_version(values: Mapping[str, Any]) -> int:
    """Return the version that ``values`` name, which may be a later one.

    Raises:
        DamagedPayload: they name none.
    """
    version = values.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DamagedPayload(f"its version is {shown(version)}, which is not a number from 1 on")
    return version


def check_supported(must: Collection[str], supported: Collection[str] = SUPPORTED) -> None:
    """Check that all keys of ``must`` are supported.

    Raises:
        NewerPayload: they are not; the text names them.
    """
    if unsupported := sorted(set(must) - set(supported)):
        names = ", ".join(shown(name) for name in unsupported[:10])
        raise NewerPayload(f"it requires {names}, which this version does not support")


def _check_version(values: Mapping[str, Any]) -> int:
    version = stored_version(values)
    if version > VERSION:
        raise NewerPayload(f"its version is {version}, and this program reads versions up to {VERSION}")
    return version


def _field(values: Mapping[str, Any], name: str, read: Callable[[Any], T]) -> T:
    try:
        return read(values[name])
    except (InvalidMessage, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        # Without the cause: its text may show an address.
        raise DamagedPayload(f"its field {shown(name)} cannot be read ({type(error).__name__})") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _by_name(pairs: Sequence[Any]) -> dict[str, str | list[str]]:
    """Return headers as an application gives them; those of one name are a list."""
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
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


def _encode_address(address: Address) -> list[str]:
    return [address.display_name, address.local_part, address.domain]


def _decode_address(value: Any) -> Address:
    name, local_part, domain = map(_text, value)
    address = Address(name, local_part, domain)
    if read_address(address, field="address") != address:
        raise ValueError
    return address


def _decode_addresses(values: Sequence[Any]) -> tuple[Address, ...]:
    return tuple([_decode_address(value) for value in values])


def _envelope_sender(value: Any) -> str:
    if value and parse_address(value, field="envelope_sender").addr_spec != value:
        raise ValueError
    return _text(value)


def _calendar(body: Callable[[Any], str], given: Mapping[str, Any]) -> Calendar:
    if given.keys() != {"text", "attached"}:
        raise ValueError
    return read_calendar(body(given["text"]), attached=given["attached"])


def _attachment(given: Mapping[str, Any], content: Callable[[Any], bytes]) -> AttachmentData:
    if given.keys() != _ATTACHMENT_KEYS:
        raise ValueError
    return checked_attachment(
        AttachmentData(
            filename=_text(given["filename"]),
            content=content(given["part"]),
            mimetype=_text(given["mimetype"]),
            inline=bool(given["inline"]),
            content_id=given["content_id"],
        )
    )
