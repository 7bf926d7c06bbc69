"""Convert messages and their timeline steps to JSON for files, and back."""

import json
from collections.abc import Mapping
from typing import Any

from openviper.core.email.events import MessageEvent
from openviper.core.email.inbox.entries import Entry, TimelineStep
from openviper.core.email.message import Envelope, OutgoingMessage
from openviper.core.email.message.storage import DamagedPayload, decode_message, encode_message, load_object
from openviper.text import shown

__all__ = [
    "parse_entry",
    "parse_read_mark",
    "parse_step",
    "serialise_event",
    "serialise_message_fields",
    "serialise_read_mark",
]

_MARKS = {'{"read": true}': True, '{"read": false}': False}

_OWN_FIELDS = frozenset({"recipients", "smtputf8", "size"})


def serialise_message_fields(message: OutgoingMessage) -> str:
    """Return a message's fields and envelope as JSON, without its bytes and the contents of its attachments."""
    return json.dumps(
        {
            "message": encode_message(message.prepared, body=str, content=len),
            "recipients": message.envelope.recipients,
            "smtputf8": message.envelope.smtputf8,
            "size": message.size,
        }
    )


def parse_entry(key: str, record: str, steps: tuple[TimelineStep, ...], *, read: bool) -> Entry:
    """Return the entry that ``serialise_message_fields`` stored in ``record``; its attachments have no content.

    Raises:
        ValueError, LookupError, TypeError: ``record`` is damaged, or has a later version.
    """
    values = load_object(record)
    message = values["message"] if "message" in values else _message_of_first_version(values)
    prepared = decode_message(message, body=_body, content=lambda _size: b"")
    envelope = Envelope(prepared.envelope_sender, tuple(values["recipients"]), values["smtputf8"])
    sizes = tuple(part["part"] for part in message["attachments"])
    return Entry(key, prepared, envelope, values["size"], sizes, steps, read)


def serialise_event(event: MessageEvent) -> str:
    """Return an event as one line of JSON, including the line end."""
    step: dict[str, Any] = {"kind": event.kind, "at": event.at, "detail": event.detail}
    step |= {"recipients": event.message.envelope.recipients, "refused": event.refused, "mode": event.mode}
    return json.dumps(step) + "\n"


def parse_step(line: str) -> TimelineStep | None:
    """Return the step stored in a line; None if the line is damaged, as by a killed process."""
    try:
        values = json.loads(line)
        people = tuple(values["recipients"]), tuple(values["refused"])
        mode = values.get("mode")  # later than the first version
        return TimelineStep(values["kind"], float(values["at"]), str(values["detail"]), *people, mode)
    except (ValueError, LookupError, TypeError):
        return None


def serialise_read_mark(*, read: bool) -> bytes:
    """Return a mark as read or unread as one line of JSON, including the line end."""
    return (json.dumps({"read": read}) + "\n").encode()


def parse_read_mark(line: str) -> bool | None:
    """Return whether a line marks the message as read; None if it is no mark."""
    return _MARKS.get(line)


def _body(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _message_of_first_version(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a record in which the message's fields stood beside the envelope's, and addresses were objects."""
    if values["version"] != 1:
        raise DamagedPayload(f"its version is {shown(values['version'])}, but its fields are those of version 1")
    addresses = {name: [[*one.values()] for one in values[name]] for name in ("to", "cc", "bcc", "reply_to")}
    attachments = [
        {name: part[name] for name in part.keys() - {"size"}} | {"part": part["size"]} for part in values["attachments"]
    ]
    message = {name: value for name, value in values.items() if name not in _OWN_FIELDS}
    return message | addresses | {"sender": [*values["sender"].values()], "attachments": attachments}
