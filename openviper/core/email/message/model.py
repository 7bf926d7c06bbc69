"""The values of a message: as the application gives it, as checked, and with its bytes and envelope.

Those that every send makes are named tuples: a frozen dataclass sets each field by a call, a tenth of a whole send.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Never

from openviper.core.email.addresses import Address, Addresses, AddressLike
from openviper.core.email.attachments import AttachmentData
from openviper.core.email.events import NOTHING
from openviper.core.email.message.calendar import Calendar, CalendarInput
from openviper.core.email.message.keywords import with_keyword_hints
from openviper.core.email.message.transfer_encodings import Base64Slice, FileSlice

__all__ = [
    "MUST_KEY",
    "MUST_MAILER",
    "MUST_REDIRECT",
    "MUST_SENSITIVE",
    "MUST_STREAM",
    "REPEATED_HEADERS",
    "Chunks",
    "CleanChunks",
    "Content",
    "DsnRequest",
    "EmailMessageData",
    "Envelope",
    "LateContent",
    "OutgoingMessage",
    "PreparedMessage",
    "ReadOnlyDict",
    "fill_data",
    "lengths",
    "read_only",
]


_BODIES = frozenset({"text", "html", "attachments", "calendar"})


def _described(value: Any, names: Iterable[str], hidden: Collection[str]) -> str:
    """Return what a dataclass's ``repr`` would, without the values of those ``hidden``."""
    fields = [f"{name}={'<hidden>' if name in hidden else repr(getattr(value, name))}" for name in names]
    return f"{type(value).__name__}({', '.join(fields)})"


@dataclass(slots=True)
class EmailMessageData:
    """A message as the application gives it, bodies rendered and attachments resolved."""

    recipients: Addresses
    subject: str
    text: str | None = None
    html: str | None = None
    cc: Addresses = field(default_factory=list)
    bcc: Addresses = field(default_factory=list)
    attachments: list[AttachmentData] = field(default_factory=list)
    sender: AddressLike | None = None
    reply_to: Addresses = field(default_factory=list)
    headers: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    envelope_sender: str | Address | None = None
    date: datetime | None = None
    in_reply_to: str | Sequence[str] | None = None
    references: str | Sequence[str] | None = None
    calendar: CalendarInput | None = None
    calendar_attachment: bool = False
    tags: Sequence[str] = ()
    ref: str | None = None
    metadata: Mapping[str, str] = NOTHING
    stream: str | None = None
    mailer: str | None = None
    sensitive: bool = False
    key: str | None = None
    unsubscribe: bool = False
    recipient_id: str | int | None = None
    dsn: str | Sequence[str] | None = None

    def __repr__(self) -> str:
        hidden = _BODIES if self.sensitive else ()
        return _described(self, EmailMessageData.__slots__, hidden)


fill_data = EmailMessageData.__init__
"""Set the fields of an ``EmailMessageData``: its constructor without the hints, which each send would pay for."""

if not TYPE_CHECKING:
    EmailMessageData.__init__ = with_keyword_hints(EmailMessageData.__init__, "EmailMessageData")


MUST_REDIRECT = "redirect"
"""The key of ``must`` in a message that was accepted under ``EMAIL["redirect_to"]``."""

MUST_STREAM = "stream"
"""The key of ``must`` for what a reader can opt out of."""

MUST_MAILER = "mailer"
"""The key of ``must`` for the name of the mailer that was asked for, if it is not the default one."""

MUST_KEY = "key"
"""The key of ``must`` for an idempotency key: an object with its ``name`` and the ``fingerprint`` of the call."""

MUST_SENSITIVE = "sensitive"
"""The key of ``must`` in a message whose bodies and attachments are kept and shown only where sending needs them."""

REPEATED_HEADERS = "repeated_headers"
"""Key in ``must`` of a message with several headers of one name: an earlier version would keep only the last."""


class ReadOnlyDict(dict[str, Any]):
    """A dict of JSON values that refuses changes: listeners get the same message that is sent."""

    __slots__ = ()

    def _refuse(self, *_given: object, **_named: object) -> Never:
        raise TypeError("the message is prepared, and read-only")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


def read_only(value: Any) -> Any:
    """Return a JSON value whose objects and arrays refuse changes; arrays become tuples."""
    if isinstance(value, Mapping):
        return ReadOnlyDict({name: read_only(each) for name, each in value.items()})
    return tuple(map(read_only, value)) if isinstance(value, list | tuple) else value


class PreparedMessage(NamedTuple):
    """A checked and completed message.

    The serialiser still checks two things: that the bodies can be encoded, and that the message is not too large.

    ``message_id`` includes the angle brackets; it and ``date`` are made once and kept through every retry.

    ``extra`` and ``must`` are JSON values that travel with the message and appear in none of its bytes. A worker that
    does not know a key of ``extra`` delivers the message all the same; one that does not know a key of ``must`` leaves
    the message to workers that do.
    """

    message_id: str
    date: datetime
    sender: Address
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]
    reply_to: tuple[Address, ...]
    subject: str
    text: str | None
    html: str | None
    attachments: tuple[AttachmentData, ...]
    headers: tuple[tuple[str, str], ...]
    envelope_sender: str
    extra: Mapping[str, Any] = NOTHING
    must: Mapping[str, Any] = NOTHING
    calendar: Calendar | None = None

    @property
    def mailer(self) -> str:
        """Return the name of the mailer that was asked for."""
        return str(self.must.get(MUST_MAILER, "default"))

    def __repr__(self) -> str:
        return _described(self, self._fields, _BODIES if MUST_SENSITIVE in self.must else ())

    @property
    def recipients(self) -> tuple[str, ...]:
        """Return every address of to, cc and bcc once, in that order, as the envelope has them."""
        if not self.cc and not self.bcc and len(self.to) == 1:
            return (self.to[0].addr_spec,)
        once: dict[tuple[str, str], str] = {}
        for address in (*self.to, *self.cc, *self.bcc):
            once.setdefault(address.key, address.addr_spec)
        return tuple(once.values())


class DsnRequest(NamedTuple):
    """The delivery status notifications that the server is asked for (RFC 3461).

    ``conditions``: ``("never",)``, or some of ``success``, ``failure`` and ``delay``. ``full``: a notice of a failure
    returns the whole message, not its header alone. ``envelope_id`` comes back in each notice; it is the Message-ID
    without its angle brackets.
    """

    conditions: tuple[str, ...]
    full: bool
    envelope_id: str


class Envelope(NamedTuple):
    """The SMTP envelope (RFC 5321 section 2.3.1); ``sender`` is empty for the null reverse-path.

    ``dsn`` None leaves it to the servers when to send a notice.
    """

    sender: str
    recipients: tuple[str, ...]
    smtputf8: bool = False
    dsn: DsnRequest | None = None


class Content:
    """The chunks of a message; those of attachments are encoded whenever one is asked for, always to the same bytes.

    So a message takes little more memory than its attachments do, and they are encoded while it is being sent.
    ``lengths`` of the chunks are known without encoding. ``in_file``: chunks are read from temporary files, so that
    asking for one blocks.
    """

    __slots__ = ("_chunks", "in_file", "lengths")

    def __init__(self, chunks: Iterable[bytes | Base64Slice | FileSlice]) -> None:
        self._chunks = tuple(chunks)
        self.lengths = tuple(map(len, self._chunks))
        self.in_file = any(isinstance(chunk, FileSlice) for chunk in self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, number: int) -> bytes:
        return bytes(self._chunks[number])

    def __iter__(self) -> Iterator[bytes]:
        return map(bytes, self._chunks)

    def load(self, begin: int, end: int) -> tuple["Content", int]:
        """Return the chunks in which the bytes from ``begin`` to ``end`` are, and the position of the first one.

        Those in files are read, which blocks, and are encoded when they are asked for.
        """
        chunks: list[bytes | Base64Slice | FileSlice] = []
        first = position = 0
        for chunk, length in zip(self._chunks, self.lengths, strict=True):
            if position + length <= begin:
                first = position + length
            elif position < end:
                chunks += chunk.load() if isinstance(chunk, FileSlice) else [chunk]
            position += length
        return Content(chunks), first

    def with_header_lines(self, lines: bytes) -> "Content":
        """Return the same content with further header lines in front."""
        first = self._chunks[0]
        assert isinstance(first, bytes)  # the header, as the serialiser makes it
        return Content((lines + first, *self._chunks[1:]))

    def literal(self) -> Iterator[bytes | None]:
        """Return the chunks that may hold a bare CR or LF, and None for each encoded one, which cannot."""
        return (chunk if isinstance(chunk, bytes) else None for chunk in self._chunks)


class LateContent(Content):
    """Content that is made by ``serialise`` when it is first read, of a message whose bytes may not be needed here."""

    __slots__ = ("_serialise",)

    def __init__(self, serialise: Callable[[], Iterable[bytes]]) -> None:
        self._serialise = serialise

    def __getattr__(self, name: str) -> Any:
        """Fill the attributes of ``Content``, of which one is read for the first time."""
        if name not in Content.__slots__:
            raise AttributeError(name)
        super().__init__(self._serialise())
        return object.__getattribute__(self, name)


class CleanChunks(tuple[bytes, ...]):
    """Chunks as the serialiser makes them: every CR and LF ends a line, and the last line is ended."""

    __slots__ = ()


Chunks = Sequence[bytes] | Content


def lengths(content: Chunks) -> Iterable[int]:
    """Return the length of each chunk in bytes."""
    return content.lengths if isinstance(content, Content) else map(len, content)


class OutgoingMessage(NamedTuple):
    """A prepared message with its envelope and its bytes.

    ``content`` are the chunks of the RFC 5322 message, ``size`` bytes together: CRLF line ends only, not dot-stuffed,
    the last line ended. It can be iterated many times.
    """

    prepared: PreparedMessage
    envelope: Envelope
    content: Chunks
    size: int

    def __repr__(self) -> str:
        return _described(self, self._fields, ("content",) if MUST_SENSITIVE in self.prepared.must else ())

    @property
    def message_id(self) -> str:
        """Return the Message-ID with its angle brackets."""
        return self.prepared.message_id

    @property
    def mailer(self) -> str:
        """Return the name of the mailer that was asked for."""
        return self.prepared.mailer

    def for_recipients(self, recipients: tuple[str, ...]) -> "OutgoingMessage":
        """Return the same message addressed to ``recipients``, as a further attempt needs it."""
        return self._replace(envelope=self.envelope._replace(recipients=recipients))
