"""Load attachments of every documented form, concurrently and within limits."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from openviper.core.email.attachments import mediatypes
from openviper.core.email.attachments.bytelimit import ByteLimit, TotalLimit
from openviper.core.email.attachments.data import AttachmentData, LoadedAttachment
from openviper.core.email.attachments.dataurls import decode_data_url
from openviper.core.email.attachments.decoding import decode_base64
from openviper.core.email.attachments.localfile import read_file
from openviper.core.email.attachments.netguard import Resolver, resolve
from openviper.core.email.attachments.reading import call, read_message, read_pieces, read_stream
from openviper.core.email.attachments.sources import (
    Base64,
    DataUrl,
    Factory,
    File,
    Mail,
    Memory,
    Part,
    Pieces,
    Stream,
    Text,
    Url,
    is_content,
    parse_content,
    parse_item,
    with_source,
)
from openviper.core.email.attachments.temporary import FileContent
from openviper.core.email.errors import AttachmentRefused, InvalidMessage
from openviper.text import shown

if TYPE_CHECKING:
    from openviper.core.email.attachments.fetch import Fetched

__all__ = ["AttachmentContent", "AttachmentInput", "MailMessage", "Readable", "list_attachments", "resolve_attachments"]

T = TypeVar("T")

_AT_ONCE = 16
# Decoding and encoding less than this holds the event loop for less than a millisecond.
_IN_THREAD = 256 * 1024


class Readable(Protocol):
    """An upload or a file opened in binary mode; ``read`` may be a coroutine function."""

    def read(self, size: int = ..., /) -> bytes | Awaitable[bytes]:
        """Return at most ``size`` bytes; empty at the end."""


class MailMessage(Protocol):
    """A message of the standard library's ``email.message``."""

    def as_bytes(self, unixfrom: bool = ..., policy: Any = ...) -> bytes:
        """Return the message as bytes."""


AttachmentContent = (
    bytes
    | bytearray
    | memoryview
    | str
    | os.PathLike[str]
    | Readable
    | AsyncIterable[bytes]
    | MailMessage
    | Callable[[], Any]
)
"""The values that stand for one content: see :func:`resolve_attachments`."""

AttachmentInput = (
    AttachmentData
    | AttachmentContent
    | tuple[str | None, AttachmentContent]
    | tuple[str | None, AttachmentContent, str | None]
    | Mapping[str, Any]
)
"""The forms of an attachment: see :func:`resolve_attachments`."""


async def resolve_attachments(
    attachments: Iterable[AttachmentInput] | AttachmentInput | None,
    *,
    max_bytes: int = 25 * 1024 * 1024,
    max_total_bytes: int | None = None,
    dirs: Sequence[str | os.PathLike[str]] | None = None,
    allowed_hosts: Sequence[str] | None = None,
    url_timeout: float = 20.0,
    resolver: Resolver | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> list[AttachmentData]:
    """Load attachments concurrently, and return them in the order given.

    ``attachments`` is a list of items, or one item. An item is

    - a path or an http(s) or ``data:`` URL; a ``str`` with ``://`` is a URL,
    - bytes,
    - an upload or a file opened in binary mode: anything with ``read(size)``, plain or async, read from its beginning,
    - an async iterable of bytes,
    - a function without arguments, plain (called in a thread) or async, that returns one of the others,
    - a message of the standard library, attached as message/rfc822,
    - ``(filename, content)`` or ``(filename, content, mimetype)`` with one of these as content (a ``str`` there is
      never text),
    - a dict with exactly one of ``path``, ``url``, ``content`` (a ``str`` there is text, sent as UTF-8) and
      ``content_b64``, and optionally ``filename``, ``mimetype``, ``inline`` and ``content_id``,
    - an :class:`AttachmentData`, of which a copy is returned.

    An item without a name is called ``attachment-1.bin``; the number is its position in the list. Without a MIME type,
    the file name's suffix decides, then the type given by the URL's server or the uploading client. Content that was
    read and is larger than 1 MB is kept in a temporary file, which is deleted with the attachment; ``content`` reads
    that file, and blocks.

    ``max_bytes`` limits each attachment, ``max_total_bytes`` all of them together (None: no limit). ``dirs``: the
    folders that files may be in, None for any. ``allowed_hosts``: hosts of URLs that may have internal addresses.
    ``url_timeout``: seconds for one URL, from resolving its host to its last byte. ``resolver``: None uses the
    system's. ``ssl_context``: None uses the default trust store.

    Raises:
        AttachmentRefused: the first item that cannot be attached; the loading of the others is cancelled.
        InvalidMessage: ``attachments`` is neither a list of items nor an item.
    """
    items = list_attachments(attachments)
    if not items:
        return []
    total = TotalLimit(max_total_bytes)
    loader = _Loader(
        dirs=None if dirs is None else [os.fspath(directory) for directory in _several(dirs)],
        allowed_hosts=tuple(_several(allowed_hosts or ())),
        url_timeout=url_timeout,
        resolver=resolver or resolve,
        ssl_context=ssl_context,
    )
    jobs = []
    for index, item in enumerate(items):
        part = _from_data(item, index) if isinstance(item, AttachmentData) else parse_item(item, index)
        limit = ByteLimit(part.filename, max_bytes, total)
        jobs.append((part, limit))
    for part, limit in jobs:
        if isinstance(part.source, Memory):
            limit.spend(len(part.source.content))
    return await loader.load_all(jobs)


def list_attachments(attachments: Any) -> list[Any]:
    """Return ``attachments``, a list of items or one item or None, as a new list of items; nothing is read.

    Raises:
        InvalidMessage: it is neither, or it may be one file with its name or two files.
    """
    if attachments is None:
        return []
    if isinstance(attachments, tuple) and len(attachments) in (2, 3) and isinstance(attachments[0], str | None):
        if isinstance(attachments[1], str | os.PathLike):
            raise InvalidMessage(
                f"attachments: ({shown(attachments[0])}, ...) may be one file with its name or two files: write "
                "[(filename, path)] or [path, path]"
            )
        return [attachments]
    # A coroutine is refused as an item, with the remedy.
    if isinstance(attachments, Mapping | AttachmentData | Coroutine) or is_content(attachments):
        return [attachments]
    if not isinstance(attachments, Iterable):
        raise InvalidMessage(f"attachments: must be an attachment or a list of them, not {type(attachments).__name__}")
    return list(attachments)


def _several(value: Iterable[Any]) -> Iterable[Any]:
    """Return ``value`` as several items; a str alone is one item, not a list of its characters."""
    return [value] if isinstance(value, str | os.PathLike) else value


def _from_data(data: AttachmentData, index: int) -> Part:
    part = parse_item(
        {
            "filename": data.filename,
            "content": data.stored,
            "mimetype": data.mimetype,
            "inline": data.inline,
            "content_id": data.content_id,
        },
        index,
    )
    if not isinstance(part.source, Memory):
        raise AttachmentRefused(part.filename, "the content of an AttachmentData must be bytes")
    return part


Job = tuple[Part, ByteLimit]


class _Loader:
    def __init__(
        self,
        *,
        dirs: list[str] | None,
        allowed_hosts: tuple[str, ...],
        url_timeout: float,
        resolver: Resolver,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self._dirs = dirs
        self._allowed_hosts = allowed_hosts
        self._url_timeout = url_timeout
        self._resolver = resolver
        self._ssl_context = ssl_context
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def load_all(self, jobs: Sequence[Job]) -> list[AttachmentData]:
        if any(part.mimetype is None for part, _ in jobs):
            await asyncio.to_thread(mediatypes.load)
        if all(isinstance(part.source, Memory) for part, _ in jobs):
            return [await self._load(part, limit) for part, limit in jobs]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._load(part, limit)) for part, limit in jobs]
        except BaseExceptionGroup as failures:
            first = failures.exceptions[0]
        else:
            return [task.result() for task in tasks]
        raise first

    async def _load(self, part: Part, limit: ByteLimit) -> AttachmentData:
        called = isinstance(part.source, Factory)
        if isinstance(part.source, Factory):
            async with self._slots:
                source = parse_content(await call(part.source.function, part.filename), part.filename)
            part = with_source(part, source)
            limit.filename = part.filename
            if isinstance(source, Memory):
                limit.spend(len(source.content))
        content, declared = await self._content(part, limit, close=called)
        filename = part.filename
        mimetype = part.mimetype
        if mimetype is None:
            guessed = mediatypes.guess(filename)
            sure = isinstance(part.source, Mail) or guessed == mediatypes.OCTET_STREAM
            mimetype = declared if sure and declared else guessed
        if isinstance(part.source, Text) and isinstance(content, bytes) and not content.isascii():
            mimetype = _with_charset(mimetype)
        if isinstance(part.source, DataUrl) and not part.named:
            filename += mediatypes.suffix(mimetype.partition(";")[0].lower())
        kind = LoadedAttachment if isinstance(content, FileContent) else AttachmentData
        return kind(filename, content, mimetype, part.inline, part.content_id)  # type: ignore[arg-type]

    async def _content(self, part: Part, limit: ByteLimit, *, close: bool) -> tuple[bytes | FileContent, str | None]:
        """Return the content, and the media type that its source declares; ``close`` a file after it was read."""
        match part.source:
            case Memory(content):
                return content, None
            case Text(text):
                return await _off_loop(len(text), _encode, text, limit), None
            case Base64(encoded):
                return await _off_loop(len(encoded), decode_base64, encoded, limit), None
            case DataUrl(url):
                return await _off_loop(len(url), decode_data_url, url, limit)
        async with self._slots:
            match part.source:
                case File(path):
                    return await asyncio.to_thread(read_file, path, dirs=self._dirs, limit=limit), None
                case Url(url):
                    fetched = await self._fetch(url, limit)
                    return fetched.content, fetched.mimetype
                case Stream(file, _, declared):
                    return await read_stream(file, limit, close=close), declared
                case Pieces(pieces):
                    return await read_pieces(pieces, limit), None
                case Mail(message):
                    return await asyncio.to_thread(read_message, message, limit), "message/rfc822"
        raise AssertionError("a function has been called already")

    async def _fetch(self, url: str, limit: ByteLimit) -> "Fetched":
        fetch = await asyncio.to_thread(_import_fetch)
        return await fetch(
            url,
            limit=limit,
            allowed_hosts=self._allowed_hosts,
            timeout=self._url_timeout,
            resolver=self._resolver,
            ssl_context=self._ssl_context,
        )


def _import_fetch() -> "Callable[..., Coroutine[Any, Any, Fetched]]":
    """Import ``fetch`` in a thread, because its module imports httpx, which takes long."""
    from openviper.core.email.attachments.fetch import fetch

    return fetch


def _with_charset(mimetype: str) -> str:
    """Add the charset to a text type: without one it means ASCII (RFC 2046 section 4.1.2)."""
    lower = mimetype.lower()
    return f"{mimetype}; charset=utf-8" if lower.startswith("text/") and "charset=" not in lower else mimetype


async def _off_loop(size: int, work: Callable[..., T], *arguments: object) -> T:
    return await asyncio.to_thread(work, *arguments) if size > _IN_THREAD else work(*arguments)


def _encode(text: str, limit: ByteLimit) -> bytes:
    limit.announce(len(text))
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise AttachmentRefused(limit.filename, f"its content is not valid text: {error.reason}") from None
    limit.spend(len(content))
    return content
