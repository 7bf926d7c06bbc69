"""Load attachments of every documented form, concurrently and within limits."""

import asyncio
import os
import ssl
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openviper.core.email.attachments import mediatypes
from openviper.core.email.attachments.bytelimit import ByteLimit, TotalLimit
from openviper.core.email.attachments.data import AttachmentData
from openviper.core.email.attachments.decoding import decode_base64
from openviper.core.email.attachments.localfile import read_file
from openviper.core.email.attachments.netguard import Resolver, resolve
from openviper.core.email.attachments.sources import Base64, File, Memory, Part, Text, Url, parse_item
from openviper.core.email.errors import AttachmentRefused, InvalidMessage

if TYPE_CHECKING:
    from openviper.core.email.attachments.fetch import Fetched

__all__ = ["AttachmentInput", "resolve_attachments"]

_AT_ONCE = 16
# Decoding and encoding less than this holds the event loop for less than a millisecond.
_IN_THREAD = 256 * 1024


AttachmentInput = (
    AttachmentData
    | str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | tuple[str | None, bytes | bytearray | memoryview | str | os.PathLike[str]]
    | tuple[str | None, bytes | bytearray | memoryview | str | os.PathLike[str], str | None]
    | Mapping[str, Any]
)
"""The forms of an attachment: see :func:`resolve_attachments`."""


async def resolve_attachments(
    attachments: Iterable[AttachmentInput] | None,
    *,
    max_bytes: int = 25 * 1024 * 1024,
    max_total_bytes: int | None = None,
    dirs: Sequence[str | os.PathLike[str]] | None = None,
    allowed_hosts: Sequence[str] | None = None,
    url_timeout: float = 20.0,
    resolver: Resolver | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> list[AttachmentData]:
    """Load a list of attachments concurrently, and return them in the order given.

    An item is a path or an http(s) URL (a ``str`` with ``://`` is a URL), ``(filename, content)`` or ``(filename,
    content, mimetype)`` with bytes, a path or a URL as content (a ``str`` there is never text), bytes, a dict with
    exactly one of ``path``, ``url``, ``content`` (a ``str`` there is text, sent as UTF-8) and ``content_b64`` and
    optionally ``filename``, ``mimetype``, ``inline`` and ``content_id``, or an :class:`AttachmentData`, of which a copy
    is returned. An item without a name is called ``attachment-1.bin``, numbered by its position in the list. Without a
    MIME type, the suffix of the file name decides, then, for a URL, the server.

    ``max_bytes`` is for each one, ``max_total_bytes`` for all together (None: no limit). ``dirs``: the folders that
    paths may lead into, None for any. ``allowed_hosts``: hosts of URLs that may have internal addresses.
    ``url_timeout``: seconds for one URL from resolving to its last byte. ``resolver`` None asks the system.
    ``ssl_context`` None means the usual trust store.

    Raises:
        AttachmentRefused: the first item that cannot be attached; the loading of the others is cancelled.
        InvalidMessage: ``attachments`` is not a list of items.
    """
    if attachments is None:
        return []
    items = _items(attachments)
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


def _items(attachments: object) -> list[Any]:
    single = isinstance(attachments, str | bytes | bytearray | memoryview | os.PathLike | Mapping | AttachmentData)
    # A tuple that begins with a name is one attachment whose brackets were forgotten.
    single = single or (isinstance(attachments, tuple) and bool(attachments) and isinstance(attachments[0], str))
    if single or not isinstance(attachments, Iterable) or hasattr(attachments, "read"):
        kind = type(attachments).__name__
        raise InvalidMessage(f"attachments must be a list of attachments, not one {kind}: write attachments=[...]")
    return list(attachments)


def _several(value: Iterable[Any]) -> Iterable[Any]:
    """Return ``value`` as several items; a str alone is one item, not a list of its characters."""
    return [value] if isinstance(value, str | os.PathLike) else value


def _from_data(data: AttachmentData, index: int) -> Part:
    part = parse_item(
        {
            "filename": data.filename,
            "content": data.content,
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
        served_as = None
        match part.source:
            case Memory(content):
                pass
            case Text(text):
                content = await _off_loop(len(text), _encode, text, limit)
            case Base64(encoded):
                content = await _off_loop(len(encoded), decode_base64, encoded, limit)
            case File(path):
                async with self._slots:
                    content = await asyncio.to_thread(read_file, path, dirs=self._dirs, limit=limit)
            case Url(url):
                async with self._slots:
                    fetched = await self._fetch(url, limit)
                    content, served_as = fetched.content, fetched.mimetype
        mimetype = part.mimetype or mediatypes.guess(part.filename)
        if part.mimetype is None and mimetype == mediatypes.OCTET_STREAM and served_as:
            mimetype = served_as
        if isinstance(part.source, Text) and not content.isascii():
            mimetype = _with_charset(mimetype)
        return AttachmentData(part.filename, content, mimetype, part.inline, part.content_id)

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


async def _off_loop(size: int, work: Callable[..., bytes], *arguments: object) -> bytes:
    return await asyncio.to_thread(work, *arguments) if size > _IN_THREAD else work(*arguments)


def _encode(text: str, limit: ByteLimit) -> bytes:
    limit.announce(len(text))
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise AttachmentRefused(limit.filename, f"its content is not valid text: {error.reason}") from None
    limit.spend(len(content))
    return content
