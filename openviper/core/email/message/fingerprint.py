"""Take the fingerprint of a send that has an idempotency key: of what the caller passed, before anything is made of it.

Message-ID and Date do not count, and neither do boundaries or tokens, which differ from one call to the next.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, NamedTuple
from uuid import UUID

from openviper.core.email.addresses import Address, parse_addresses
from openviper.core.email.attachments import AttachmentData
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message.model import MUST_KEY, EmailMessageData, OutgoingMessage, read_only
from openviper.text import control_character, shown

__all__ = ["Given", "KeyedCall", "identify_call", "identify_data", "with_key"]

_LONGEST = 200  # characters of a key
_DEEPEST = 20  # levels of a context; further down its objects may refer to each other in a circle
_BY_TEXT = (date, time, timedelta, Decimal, UUID, PurePath, Address)  # a datetime is a date
_UNCOUNTED_HEADERS = frozenset({"message-id", "date"})


class Given(NamedTuple):
    """What the caller passed, as far as it counts: two sends with one key must agree in all of it."""

    recipients: tuple[Address, ...]
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]
    reply_to: tuple[Address, ...]
    sender: Any
    subject: str | None
    text: str | None
    html: str | None
    template: str | None
    context: Any
    headers: Any
    attachments: list[Any]
    calendar: Any


class KeyedCall(NamedTuple):
    """An idempotency key, and the fingerprint of the call that it was given to."""

    name: str
    fingerprint: str


async def identify_call(key: object, given: Given) -> KeyedCall:
    """Return the checked key with the fingerprint of ``given``, of which nothing is changed or consumed.

    Raises:
        InvalidMessage: ``key`` is not a text of 1 to 200 characters without control characters.
    """
    if not isinstance(key, str):
        raise InvalidMessage(f"key: must be a string, not {type(key).__name__}")
    if not key or len(key) > _LONGEST or control_character(key):
        raise InvalidMessage(
            f"key: {shown(key)} is empty, longer than {_LONGEST} characters, or has a control character"
        )
    # Attachments may be large, and may be in files.
    return KeyedCall(key, await asyncio.to_thread(_fingerprint, given) if given.attachments else _fingerprint(given))


async def identify_data(data: EmailMessageData) -> tuple[EmailMessageData, KeyedCall]:
    """Return a message that is given as data, its addresses parsed, and its key with the fingerprint.

    Raises:
        InvalidMessage: as of :func:`identify_call`, or an address cannot be used.
    """
    data = replace(
        data,
        recipients=parse_addresses(data.recipients, field="recipients"),
        cc=parse_addresses(data.cc, field="cc"),
        bcc=parse_addresses(data.bcc, field="bcc"),
        reply_to=parse_addresses(data.reply_to, field="reply_to"),
    )
    values: dict[str, Any] = {name: getattr(data, name) for name in Given._fields if hasattr(data, name)}
    return data, await identify_call(data.key, Given(**values, template=None, context=None))


def with_key(message: OutgoingMessage, call: KeyedCall) -> OutgoingMessage:
    """Return ``message`` with the key, which travels in ``must``."""
    must = read_only({**message.prepared.must, MUST_KEY: call._asdict()})
    return message._replace(prepared=message.prepared._replace(must=must))


def _fingerprint(given: Given) -> str:
    values = given._asdict()
    for name in ("recipients", "cc", "bcc", "reply_to"):
        values[name] = sorted({str(address) for address in values[name]})
    values["headers"] = [
        (str(name).lower(), value)
        for name, value in (given.headers.items() if isinstance(given.headers, Mapping) else ())
        if str(name).lower() not in _UNCOUNTED_HEADERS
    ]
    values["headers"].sort(key=lambda pair: pair[0])
    return hashlib.sha256(_json({name: _stable(value) for name, value in values.items()}).encode()).hexdigest()


def _stable(value: Any, depth: int = 0) -> Any:
    """Return JSON values that are the same in every process; for what has none, the name of its type."""
    if isinstance(value, Enum):
        return [_type_name(value), value.name]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return ["bytes", hashlib.sha256(value).hexdigest()]
    if isinstance(value, _BY_TEXT):
        return [_type_name(value), str(value)]
    return ["object", _type_name(value)] if depth == _DEEPEST else _stable_whole(value, depth + 1)


def _stable_whole(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        pairs = [[_stable(key, depth), _stable(item, depth)] for key, item in value.items()]
        return ["mapping", sorted(pairs, key=_json)]
    if isinstance(value, list | tuple):
        return [_stable(item, depth) for item in value]
    if isinstance(value, set | frozenset):
        return ["set", sorted((_stable(item, depth) for item in value), key=_json)]
    if isinstance(value, AttachmentData):
        content = value.stored
        content = content if isinstance(content, bytes) else content.read()
        return ["attachment", _stable([value.filename, value.mimetype, value.inline, value.content_id, content], depth)]
    if is_dataclass(value) and not isinstance(value, type):
        return [
            _type_name(value),
            [[each.name, _stable(getattr(value, each.name, None), depth)] for each in fields(value)],
        ]
    return ["object", _type_name(value)]


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
