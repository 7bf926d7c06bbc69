"""Convert messages and their timeline steps to JSON for files, and back."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from openviper.core.email.addresses import Address
from openviper.core.email.attachments import AttachmentData
from openviper.core.email.events import MessageEvent
from openviper.core.email.inbox.entries import Entry, TimelineStep
from openviper.core.email.message import Envelope, OutgoingMessage, PreparedMessage

__all__ = ["parse_entry", "parse_step", "serialise_event", "serialise_message_fields"]

_VERSION = 1
_ADDRESS_LISTS = ("to", "cc", "bcc", "reply_to")
_PLAIN = ("message_id", "subject", "text", "html", "envelope_sender")


def serialise_message_fields(message: OutgoingMessage) -> str:
    """Return a message's fields and envelope as JSON, without its bytes and the contents of its attachments."""
    prepared = message.prepared
    record: dict[str, Any] = {name: getattr(prepared, name) for name in _PLAIN}
    record |= {name: [asdict(address) for address in getattr(prepared, name)] for name in _ADDRESS_LISTS}
    record |= {
        "version": _VERSION,
        "date": prepared.date.isoformat(),
        "sender": asdict(prepared.sender),
        "headers": prepared.headers,
        "recipients": message.envelope.recipients,
        "smtputf8": message.envelope.smtputf8,
        "size": message.size,
        "attachments": [
            {
                "filename": part.filename,
                "mimetype": part.mimetype,
                "inline": part.inline,
                "content_id": part.content_id,
                "size": len(part.content),
            }
            for part in prepared.attachments
        ],
    }
    return json.dumps(record)


def parse_entry(key: str, record: str, steps: tuple[TimelineStep, ...], *, read: bool) -> Entry:
    """Return the entry that ``serialise_message_fields`` stored in ``record``; its attachments have no content.

    Raises:
        ValueError, LookupError, TypeError: ``record`` is damaged or has another version.
    """
    values = json.loads(record)
    if values["version"] != _VERSION:
        raise ValueError(f"version {values['version']} is not {_VERSION}")
    fields: dict[str, Any] = {name: values[name] for name in _PLAIN}
    fields |= {name: tuple(Address(**address) for address in values[name]) for name in _ADDRESS_LISTS}
    prepared = PreparedMessage(
        **fields,
        date=datetime.fromisoformat(values["date"]),
        sender=Address(**values["sender"]),
        headers=tuple((name, value) for name, value in values["headers"]),
        attachments=tuple(
            AttachmentData(part["filename"], b"", part["mimetype"], part["inline"], part["content_id"])
            for part in values["attachments"]
        ),
    )
    envelope = Envelope(prepared.envelope_sender, tuple(values["recipients"]), values["smtputf8"])
    sizes = tuple(part["size"] for part in values["attachments"])
    return Entry(key, prepared, envelope, values["size"], sizes, steps, read)


def serialise_event(event: MessageEvent) -> str:
    """Return an event as one line of JSON, including the line end."""
    step: dict[str, Any] = {"kind": event.kind, "at": event.at, "detail": event.detail}
    step |= {"recipients": event.message.envelope.recipients, "refused": event.refused}
    return json.dumps(step) + "\n"


def parse_step(line: str) -> TimelineStep | None:
    """Return the step stored in a line; None if the line is damaged, as by a killed process."""
    try:
        values = json.loads(line)
        people = tuple(values["recipients"]), tuple(values["refused"])
        return TimelineStep(values["kind"], float(values["at"]), str(values["detail"]), *people)
    except (ValueError, LookupError, TypeError):
        return None
