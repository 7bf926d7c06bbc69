"""Messages and their steps as text in files, and back."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

from openviper.core.email.addresses import Address
from openviper.core.email.attachments import AttachmentData
from openviper.core.email.events import MessageEvent
from openviper.core.email.inbox.store import Entry, TimelineStep
from openviper.core.email.message import Envelope, OutgoingMessage, PreparedMessage

__all__ = ["entry_from", "message_record", "step_from", "step_line"]

_VERSION = 1
_ADDRESS_LISTS = ("to", "cc", "bcc", "reply_to")
_PLAIN = ("message_id", "subject", "text", "html", "envelope_sender")


def message_record(message: OutgoingMessage) -> str:
    """A message as JSON, without its bytes and without what is attached."""
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


def entry_from(key: str, record: str, steps: tuple[TimelineStep, ...], *, read: bool) -> Entry:
    """The entry of a record; its attachments have no content.

    Raises:
        ValueError: no record, or one of another version.
        LookupError, TypeError: likewise.
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


def step_line(event: MessageEvent) -> str:
    """An event as one line of JSON, its line end included."""
    step: dict[str, Any] = {"kind": event.kind, "at": event.at, "detail": event.detail}
    step |= {"recipients": event.message.envelope.recipients, "refused": event.refused}
    return json.dumps(step) + "\n"


def step_from(line: str) -> TimelineStep | None:
    """The step of a line; None for a line that was cut short or is none."""
    try:
        values = json.loads(line)
        people = tuple(values["recipients"]), tuple(values["refused"])
        return TimelineStep(values["kind"], float(values["at"]), str(values["detail"]), *people)
    except (ValueError, LookupError, TypeError):
        return None
