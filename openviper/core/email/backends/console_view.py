"""Render a message for a console: decoded, with blind copies, and safe for terminals."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from openviper.core.email.addresses import Address
from openviper.core.email.attachments import AttachmentData
from openviper.core.email.message import OutgoingMessage, PreparedMessage
from openviper.terminal import escape
from openviper.text import counted

__all__ = ["WIDTH", "View", "label_column", "render"]

WIDTH = 78
_LABEL = 12


@dataclass(frozen=True, slots=True)
class View:
    """The parts of a message to show, all of them safe for a terminal.

    ``headers`` are labels, values and notes; ``text`` and ``html_size`` are None without that part; ``attachments`` are
    names, types, sizes and notes.
    """

    headers: tuple[tuple[str, str, str], ...]
    text: str | None
    html_size: str | None
    attachments: tuple[tuple[str, str, str, str], ...]

    @classmethod
    def from_message(cls, message: OutgoingMessage) -> Self:
        """Decode and escape ``message``, with the recipients of its envelope."""
        prepared = message.prepared
        return cls(
            headers=tuple((escape(label), escape(value), note) for label, value, note in _headers(message)),
            text=None if prepared.text is None else escape(prepared.text, body=True).rstrip("\n"),
            html_size=None if prepared.html is None else _size(len(prepared.html.encode(errors="replace"))),
            attachments=tuple(_rows(prepared)),
        )


def label_column(label: str) -> str:
    """Return a header's label, padded to the column of values."""
    return f"{label + ':':<{_LABEL}} "


def render(message: OutgoingMessage) -> str:
    """Render ``message`` without colours, with a line end after the last line."""
    view = View.from_message(message)
    rule = "-" * WIDTH
    lines = [rule, *(label_column(label) + value + note for label, value, note in view.headers), ""]
    lines.append("(no text part)" if view.text is None else view.text)
    if view.html_size is not None:
        lines += ["", f"[and as HTML, {view.html_size}]"]
    if view.attachments:
        lines += ["", *_table(view.attachments)]
    return "\n".join([*lines, rule, ""])


def _headers(message: OutgoingMessage) -> Iterator[tuple[str, str, str]]:
    prepared, envelope = message.prepared, message.envelope
    yield "From", str(prepared.sender), ""
    yield from _addresses("To", prepared.to)
    yield from _addresses("Cc", prepared.cc)
    yield from _addresses("Bcc", prepared.bcc, note="  (in the envelope only)")
    yield from _addresses("Reply-To", prepared.reply_to)
    yield "Subject", prepared.subject, ""
    yield "Date", prepared.date.strftime("%a, %d %b %Y %H:%M:%S %z"), ""
    yield "Message-ID", prepared.message_id, ""
    for name, value in prepared.headers:
        yield name, value, ""
    if envelope.sender != prepared.sender.addr_spec:
        yield "Return path", envelope.sender or "<> (none)", ""
    named = {address.addr_spec for address in (*prepared.to, *prepared.cc, *prepared.bcc)}
    if set(envelope.recipients) != named:
        # One of several envelopes, or a retry for the recipients who have not got it yet.
        yield "Sent to", ", ".join(envelope.recipients), ""


def _addresses(label: str, addresses: Iterable[Address], note: str = "") -> Iterator[tuple[str, str, str]]:
    text = ", ".join(map(str, addresses))
    if text:
        yield label, text, note


def _rows(prepared: PreparedMessage) -> Iterator[tuple[str, str, str, str]]:
    calendar = prepared.calendar
    if calendar is not None:
        note = "attached, too" if calendar.attached else ""
        size = _size(len(calendar.text.encode()))
        yield "(calendar)", f"text/calendar; method={calendar.method}", size, note
    yield from map(_row, prepared.attachments)


def _row(attachment: AttachmentData) -> tuple[str, str, str, str]:
    note = f"inline, cid:{escape(attachment.content_id or '')}" if attachment.inline else ""
    return escape(attachment.filename), escape(attachment.mimetype), _size(attachment.size), note


def _table(rows: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
    names, types, sizes = (max(len(row[column]) for row in rows) for column in range(3))
    yield "Attachments:"
    for name, mimetype, size, note in rows:
        yield f"  {name:<{names}}  {mimetype:<{types}}  {size:>{sizes}}  {note}".rstrip()


def _size(count: int) -> str:
    if count < 1024:
        return counted(count, "byte")
    return f"{count / 1024:.1f} kB" if count < 1024**2 else f"{count / 1024**2:.1f} MB"
