"""Prints messages for people: decoded, with what the recipients do not see, and safe for terminals."""

import asyncio
import re
import sys
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import TextIO

from openviper.core.email.addresses import Address
from openviper.core.email.attachments import AttachmentData
from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.errors import DeliveryError
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings

__all__ = ["ConsoleBackend", "escape", "render"]

_WIDTH = 78
_LABEL = 13

# C0 and C1 controls and DEL drive the terminal; bidirectional controls and line separators make text look like other
# text; lone surrogates cannot be encoded.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_UNSAFE_IN_BODY = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))

_writing = Lock()


class ConsoleBackend(EmailBackend):
    """Prints each message as one block; blocks of concurrent messages do not mix.

    ``stream`` None is ``sys.stdout`` as it is at the time of writing. The writing is done in a thread, since a
    terminal or a pipe may block.
    """

    def __init__(self, settings: EmailSettings, stream: TextIO | None = None) -> None:
        super().__init__(settings)
        self._stream = stream

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Print ``message``.

        Raises:
            DeliveryError: there is no standard output, or it is closed.
        """
        try:
            await asyncio.to_thread(self._print, message)
        except (OSError, ValueError) as error:
            raise DeliveryError(f"ConsoleBackend: cannot write to the console: {error}") from error
        return DeliveryReport(accepted=message.envelope.recipients, response="printed")

    def _print(self, message: OutgoingMessage) -> None:
        stream = sys.stdout if self._stream is None else self._stream
        # None where a process has no standard output, whatever the type stubs say.
        if stream is None:
            raise ValueError("there is no standard output")
        text = render(message)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        with _writing:
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()


def escape(text: str, *, body: bool = False) -> str:
    r"""Show as ``\x1b`` or ``\u202e`` what would drive a terminal or reorder the line.

    With ``body`` line ends and tabs stay.
    """
    if body:
        return _UNSAFE_IN_BODY.sub(_escaped, text.replace("\r\n", "\n"))
    return _UNSAFE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def render(message: OutgoingMessage) -> str:
    """The block that is printed, its last line ended."""
    rule = "-" * _WIDTH
    body = message.prepared.text
    lines = [rule, *_headers(message), ""]
    lines.append("(no text part)" if body is None else escape(body, body=True).rstrip("\n"))
    if message.prepared.html is not None:
        lines += ["", f"[and as HTML, {_size(len(message.prepared.html.encode(errors='replace')))}]"]
    if message.prepared.attachments:
        lines += ["", *_table(message.prepared.attachments)]
    return "\n".join([*lines, rule, ""])


def _headers(message: OutgoingMessage) -> Iterator[str]:
    prepared, envelope = message.prepared, message.envelope
    yield _line("From", str(prepared.sender))
    yield from _addresses("To", prepared.to)
    yield from _addresses("Cc", prepared.cc)
    yield from _addresses("Bcc", prepared.bcc, note="  (in the envelope only)")
    yield from _addresses("Reply-To", prepared.reply_to)
    yield _line("Subject", prepared.subject)
    yield _line("Date", prepared.date.strftime("%a, %d %b %Y %H:%M:%S %z"))
    yield _line("Message-ID", prepared.message_id)
    for name, value in prepared.headers:
        yield _line(name, value)
    if envelope.sender != prepared.sender.addr_spec:
        yield _line("Return path", envelope.sender or "<> (none)")
    named = {address.addr_spec for address in (*prepared.to, *prepared.cc, *prepared.bcc)}
    if set(envelope.recipients) != named:
        # One of several envelopes, or a further attempt for those who have not got it yet.
        yield _line("Sent to", ", ".join(envelope.recipients))


def _addresses(label: str, addresses: Iterable[Address], note: str = "") -> Iterator[str]:
    text = ", ".join(map(str, addresses))
    if text:
        yield _line(label, text) + note


def _line(label: str, value: str) -> str:
    return f"{escape(label)}:".ljust(_LABEL) + escape(value)


def _table(attachments: Iterable[AttachmentData]) -> Iterator[str]:
    rows = [
        (
            escape(attachment.filename),
            escape(attachment.mimetype),
            _size(len(attachment.content)),
            f"inline, cid:{escape(attachment.content_id or '')}" if attachment.inline else "",
        )
        for attachment in attachments
    ]
    names, types, sizes = (max(len(row[column]) for row in rows) for column in range(3))
    yield "Attachments:"
    for name, mimetype, size, note in rows:
        yield f"  {name:<{names}}  {mimetype:<{types}}  {size:>{sizes}}  {note}".rstrip()


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:.1f} kB" if count < 1024**2 else f"{count / 1024**2:.1f} MB"
