"""Write a prepared message as bytes: headers, structure and transfer encodings.

The standard library's builder decodes encoded words while it writes headers, which lets values add headers on Pythons
that are still in use (CVE-2024-6923), and takes most of the time of a send. The bytes depend on nothing but the
prepared message, so every attempt sends the same ones.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial

from openviper.core.email.addresses import Address, parse_address
from openviper.core.email.attachments import AttachmentData, FileContent
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.events import NOTHING
from openviper.core.email.message.calendar import Calendar
from openviper.core.email.message.content_ids import with_msg_ids
from openviper.core.email.message.dsn import requested_dsn
from openviper.core.email.message.header_lines import (
    address_header,
    date_header,
    media_header,
    named_header,
    parameter,
    structured_header,
    text_header,
)
from openviper.core.email.message.model import (
    Chunks,
    CleanChunks,
    Content,
    Envelope,
    LateContent,
    OutgoingMessage,
    PreparedMessage,
    lengths,
)
from openviper.core.email.message.transfer_encodings import (
    Base64Slice,
    FileSlice,
    base64_length,
    base64_slices,
    encode_text,
    file_slices,
    seven_bit,
)
from openviper.core.email.message.validation import HeaderSyntax, header_syntax, split_addresses, split_list_id
from openviper.text import shown

__all__ = ["BYTES_ON_LOOP", "serialise", "serialise_later", "serialise_message", "serialise_message_sync"]

# More octets of bodies and attachments than these are encoded in a thread: they would hold the event loop too long.
BYTES_ON_LOOP = 256 * 1024
_CHUNK = 256 * 1024
# No line of quoted-printable, base64 or of a header can begin so: '=_' is in none of them (RFC 2045 section 6.7).
_BOUNDARY_PREFIX = b"=_"
_TEXT_HEADERS = {
    (subtype, encoding): (
        f"Content-Type: text/{subtype}; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    ).encode("ascii")
    for subtype in ("plain", "html")
    for encoding in ("quoted-printable", "base64")
}
# More bytes than a header has besides what is given, and than a character takes in it or in a body: four octets in
# quoted-printable, and the ends of lines or encoded words.
_HEADER_MOST, _ENCODED_MOST = 4096, 16
# A message is joined from these.
Piece = bytes | Base64Slice | FileSlice


async def serialise_message(message: PreparedMessage, *, max_message_bytes: int) -> OutgoingMessage:
    """Serialise ``message`` and put it in its envelope; large ones in a thread.

    Raises:
        InvalidMessage: the encoded message would be larger than ``max_message_bytes`` (``EMAIL["max_message_bytes"]``);
            found by arithmetic before attachments are encoded. The text names the largest part. Or a body has a lone
            surrogate.
    """
    if _least_size(message) <= BYTES_ON_LOOP:
        return serialise_message_sync(message, max_message_bytes=max_message_bytes)
    return await asyncio.to_thread(serialise_message_sync, message, max_message_bytes=max_message_bytes)


def serialise_message_sync(message: PreparedMessage, *, max_message_bytes: int) -> OutgoingMessage:
    """Serialise ``message`` on this thread; see :func:`serialise_message`."""
    size = _least_size(message)
    if size > max_message_bytes:
        raise _too_large(message, size, max_message_bytes)
    content = serialise(message)
    size = len(content[0]) if len(content) == 1 else sum(lengths(content))
    if size > max_message_bytes:
        raise _too_large(message, size, max_message_bytes)
    recipients = message.recipients
    # Bodies are ASCII, so that other octets can only come from an address in a header.
    smtputf8 = not (content[0].isascii() and message.envelope_sender.isascii() and all(map(str.isascii, recipients)))
    # A call costs more than this test, which each send makes.
    dsn = None if message.extra is NOTHING else requested_dsn(message.extra, message.message_id)
    envelope = Envelope(message.envelope_sender, recipients, smtputf8, dsn)
    return OutgoingMessage(message, envelope, content, size)


def serialise_later(message: PreparedMessage, *, max_message_bytes: int) -> OutgoingMessage | None:
    """Put ``message`` in its envelope, to be serialised when its content is read.

    ``size`` is that of the bodies as they are. None: only its bytes show whether it can be sent.
    """
    if message.attachments or message.calendar is not None:
        return None
    text, html, recipients = message.text or "", message.html or "", message.recipients
    addresses = (message.envelope_sender, message.sender.addr_spec, *recipients)
    if message.reply_to:
        addresses += tuple([address.addr_spec for address in message.reply_to])
    others = [part for pair in message.headers for part in pair] if message.headers else []
    if not all(map(str.isascii, addresses)) or not all(map(str.isascii, others)):
        return None  # whether it needs SMTPUTF8
    names = message.to if not message.cc else (*message.to, *message.cc)
    length = len(text) + len(html) + len(message.subject) + sum(map(len, addresses)) + sum(map(len, others))
    length += sum([len(address.display_name) for address in names]) + len(message.sender.display_name)
    if _HEADER_MOST + length * _ENCODED_MOST > max_message_bytes:
        return None
    try:
        size = len(text) if text.isascii() else len(text.encode())
        size += len(html) if html.isascii() else len(html.encode())
    except UnicodeEncodeError:
        return None
    dsn = None if message.extra is NOTHING else requested_dsn(message.extra, message.message_id)
    envelope = Envelope(message.envelope_sender, recipients, dsn=dsn)
    return OutgoingMessage(message, envelope, LateContent(partial(serialise, message)), size)


def serialise(message: PreparedMessage) -> Chunks:
    """Return the chunks of the RFC 5322 message: CRLF line ends, the last line ended, without Bcc.

    The first chunk holds the whole header. No chunk is much larger than 256 kB. With more than one, attachments are
    encoded when their chunks are read.

    Raises:
        InvalidMessage: a body has a lone surrogate.
    """
    boundary = _boundary(message)
    calendar = message.calendar
    if not message.attachments and (calendar is None or not calendar.attached):
        return _joined([_header(message).encode(), *_body(message, (), boundary)])
    message = with_msg_ids(message)
    attached = [attachment for attachment in message.attachments if not attachment.inline]
    inline = [attachment for attachment in message.attachments if attachment.inline]
    if inline and message.html is None:
        attached, inline = [*message.attachments], []
    shown = [_attachment(each) for each in inline]
    body = _body(message, shown, boundary)
    others = [_attachment(each) for each in attached]
    if calendar is not None and calendar.attached:
        # Another type than the body's, because some clients show a meeting for each part that is text/calendar.
        others.append(_attachment(AttachmentData(calendar.filename, calendar.text.encode(), "application/ics")))
    if others:
        body = _multipart(b"mixed", boundary + b"m", [body, *others])
    return _joined([_header(message).encode(), *body])


def _header(message: PreparedMessage) -> str:
    lines = [_from_header(message.sender)]
    if message.to:
        lines.append(address_header("To", message.to))
    elif message.bcc and not message.cc:
        # All recipients are blind ones; some filters count a message without To as spam.
        lines.append("To: undisclosed-recipients:;\r\n")
    if message.cc:
        lines.append(address_header("Cc", message.cc))
    if message.reply_to:
        lines.append(address_header("Reply-To", message.reply_to))
    lines.append(text_header("Subject", message.subject))
    lines.append(date_header(message.date))
    lines.append(f"Message-ID: {message.message_id}\r\n")
    for name, value in message.headers:
        lines.append(_custom_header(name, value))
    lines.append("MIME-Version: 1.0\r\n")
    return "".join(lines)


@lru_cache(maxsize=256)
def _from_header(sender: Address) -> str:
    # An application has few senders, and sends as one of them again and again.
    return address_header("From", (sender,))


def _custom_header(name: str, value: str) -> str:
    lower = name.lower()
    if lower == "sender":
        return address_header(name, (parse_address(value, field=name),))
    syntax = header_syntax(lower)
    if syntax is HeaderSyntax.AS_GIVEN:
        return structured_header(name, value)
    if syntax is HeaderSyntax.ADDRESSES:
        return address_header(name, split_addresses(value, field=name))
    if syntax is HeaderSyntax.LIST_ID and (split := split_list_id(value)) is not None:
        return named_header(name, *split)
    return text_header(name, value, long_words=True)


def _body(message: PreparedMessage, inline: Sequence[list[Piece]], boundary: bytes) -> list[Piece]:
    """Return the text, the HTML and the calendar as alternatives; the HTML with its inline parts (RFC 2387).

    One of them alone is no alternative. A calendar is the last, which clients that know it prefer (RFC 2046 5.1.4).
    """
    text, html, calendar = message.text, message.html, message.calendar
    if html is None and calendar is None:
        return _text_part("plain", text or "")
    parts = [] if text is None and html is not None else [_text_part("plain", text or "")]
    if html is not None:
        part = _text_part("html", html)
        if inline:
            part = _multipart(b"related", boundary + b"r", [part, *inline], parameter=b' type="text/html";\r\n')
        parts.append(part)
    if calendar is not None:
        parts.append(_calendar_part(calendar))
    return parts[0] if len(parts) == 1 else _multipart(b"alternative", boundary + b"a", parts)


def _calendar_part(calendar: Calendar) -> list[Piece]:
    """Return the calendar as a body (RFC 6047 section 2.4); decoded it has the lines as given."""
    encoding, slices = encode_text(calendar.text)
    header = (
        f"Content-Type: text/calendar; method={calendar.method}; charset=utf-8\r\n"
        f"Content-Transfer-Encoding: {encoding}\r\n\r\n"
    )
    return [header.encode("ascii"), *slices]


def _text_part(subtype: str, text: str) -> list[Piece]:
    try:
        encoding, slices = encode_text(text)
    except UnicodeEncodeError as error:
        raise InvalidMessage(
            f"{'html' if subtype == 'html' else 'text'}: contains the lone surrogate "
            f"U+{ord(error.object[error.start]):04X}, which is not a character"
        ) from error
    return [_TEXT_HEADERS[subtype, encoding], *slices]


def _multipart(subtype: bytes, boundary: bytes, parts: Iterable[list[Piece]], *, parameter: bytes = b"") -> list[Piece]:
    """Return a multipart of ``parts``; ``parameter`` is one besides the boundary, on a line of its own if needed."""
    delimiter = b"\r\n--%b\r\n" % boundary
    chunks: list[Piece] = [b'Content-Type: multipart/%b;%b boundary="%b"\r\n' % (subtype, parameter, boundary)]
    for part in parts:
        chunks.append(delimiter)
        chunks += part
    chunks.append(b"\r\n--%b--\r\n" % boundary)
    return chunks


def _attachment(attachment: AttachmentData) -> list[Piece]:
    mimetype, filename, encoding = attachment.mimetype, attachment.filename, "base64"
    content: list[bytes] | None = None
    if _is_message(attachment):
        content = seven_bit(attachment.content)
        encoding = "7bit"
        if content is None:
            # RFC 2046 section 5.2.1 forbids to encode a message, and 8-bit lines need a server's leave; as a file
            # that mail clients open it arrives byte for byte.
            mimetype, encoding = "application/octet-stream", "base64"
            filename = filename if filename.lower().endswith(".eml") else f"{filename}.eml"
    media_type = [f" {piece.strip()}" for piece in mimetype.split(";")]
    disposition = " inline" if attachment.inline else " attachment"
    header = [
        media_header("Content-Type", media_type),
        f"Content-Transfer-Encoding: {encoding}\r\n",
        media_header("Content-Disposition", [disposition, *parameter("filename", filename)]),
    ]
    if attachment.content_id is not None:
        header.append(f"Content-ID: <{attachment.content_id}>\r\n")
    header.append("\r\n")
    encoded = _base64(attachment.stored) if content is None else content
    return ["".join(header).encode("ascii"), *encoded]


def _base64(content: bytes | FileContent) -> Sequence[Base64Slice | FileSlice]:
    return file_slices(content) if isinstance(content, FileContent) else base64_slices(content)


def _is_message(attachment: AttachmentData) -> bool:
    return attachment.mimetype[:8].lower() == "message/"


def _boundary(message: PreparedMessage) -> bytes:
    """Return the start of this message's boundaries: derived from its id, and found in no unencoded part."""
    token = message.message_id[1:25]
    if not message.attachments and token.isalnum():  # as in every id that is made here
        return _BOUNDARY_PREFIX + token.encode()
    verbatim = [attachment.content for attachment in message.attachments if _is_message(attachment)]
    attempt = 0
    while True:
        digest = hashlib.blake2b(f"{attempt}{message.message_id}".encode(), digest_size=12).hexdigest()
        boundary = _BOUNDARY_PREFIX + digest.encode("ascii")
        if not verbatim or not any(_holds(content, boundary) for content in verbatim):
            return boundary
        attempt += 1


def _holds(content: bytes, searched: bytes) -> bool:
    """Return ``searched in content``, in steps that each hold the interpreter's lock briefly."""
    steps = range(0, len(content), _CHUNK)
    return any(content.find(searched, start, start + _CHUNK + len(searched)) >= 0 for start in steps)


def _joined(pieces: Sequence[Piece]) -> Chunks:
    """Join small pieces into chunks; in a message that is larger than one chunk, slices of attachments stay alone."""
    if sum(map(len, pieces)) <= _CHUNK:
        return CleanChunks((b"".join([piece if isinstance(piece, bytes) else bytes(piece) for piece in pieces]),))
    chunks: list[Piece] = []
    pending: list[bytes] = []
    size = 0
    for piece in pieces:
        if pending and (size + len(piece) > _CHUNK or not isinstance(piece, bytes)):
            chunks.append(pending[0] if len(pending) == 1 else b"".join(pending))
            pending, size = [], 0
        if isinstance(piece, bytes):
            pending.append(piece)
            size += len(piece)
        else:
            chunks.append(piece)
    chunks.append(b"".join(pending))
    return Content(chunks)


def _parts(message: PreparedMessage) -> list[tuple[int, str]]:
    """Return the least encoded size of each part, with its name."""
    parts = [
        (
            attachment.size if _is_message(attachment) else base64_length(attachment.size),
            f"attachment {shown(attachment.filename)}",
        )
        for attachment in message.attachments
    ]
    if message.text:
        parts.append((len(message.text), "text"))
    if message.html:
        parts.append((len(message.html), "html"))
    if message.calendar is not None:
        parts.append((len(message.calendar.text), "calendar"))
    return parts


def _least_size(message: PreparedMessage) -> int:
    if not message.attachments and message.calendar is None:
        return len(message.text or "") + len(message.html or "")
    return sum([size for size, _ in _parts(message)])


def _too_large(message: PreparedMessage, size: int, limit: int) -> InvalidMessage:
    largest, name = max([*_parts(message), (len(_header(message)), "the header")])
    return InvalidMessage(
        f'message: {size:,} bytes are more than EMAIL["max_message_bytes"] ({limit:,});'
        f" the largest part is {name} with {largest:,} bytes"
    )
