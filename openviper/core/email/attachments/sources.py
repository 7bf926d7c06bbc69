"""Parse the documented forms of an attachment into one: its source and its properties.

Nothing is read here, so a mistake in one item is found before any file or URL is read.
"""

import inspect
import os
import re
import sys
from collections.abc import AsyncIterable, Callable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from openviper.core.email.attachments.mediatypes import declared_type, looks_like_type
from openviper.core.email.attachments.temporary import FileContent
from openviper.core.email.errors import AttachmentRefused
from openviper.text import control_character, shown, suggestion

if TYPE_CHECKING:
    from email.message import Message

__all__ = [
    "Base64",
    "DataUrl",
    "Factory",
    "File",
    "Mail",
    "Memory",
    "Part",
    "Pieces",
    "Source",
    "Stream",
    "Text",
    "Url",
    "is_content",
    "parse_content",
    "parse_item",
    "with_source",
]


class Memory(NamedTuple):
    """Bytes that are there already: in memory, or in a temporary file of ours."""

    content: bytes | FileContent


class Text(NamedTuple):
    """Text to be encoded as UTF-8."""

    content: str


class Base64(NamedTuple):
    """Bytes in base64."""

    content: str | bytes


class File(NamedTuple):
    """A local path."""

    path: str


class Url(NamedTuple):
    """An http or https URL, not checked further."""

    url: str


class DataUrl(NamedTuple):
    """A ``data:`` URL (RFC 2397), not checked further."""

    url: str


class Stream(NamedTuple):
    """An upload or an open file: ``read(size)``, plain or async.

    ``filename`` and ``declared``: the name and the media type that it has by itself, None without.
    """

    file: Any
    filename: str | None
    declared: str | None


class Pieces(NamedTuple):
    """An async iterable of bytes."""

    pieces: AsyncIterable[Any]


class Mail(NamedTuple):
    """A message, to be attached as message/rfc822."""

    message: "Message"


class Factory(NamedTuple):
    """A function, plain or async, that returns the content."""

    function: Callable[[], Any]


Source = Memory | Text | Base64 | File | Url | DataUrl | Stream | Pieces | Mail | Factory


class Part(NamedTuple):
    """One item of the list. ``mimetype`` None asks for the type that the file name suggests.

    ``place`` in the list counts from 0. ``named``: the file name was given, not derived from the source.
    """

    filename: str
    source: Source
    place: int
    mimetype: str | None = None
    inline: bool = False
    content_id: str | None = None
    named: bool = True


_DATA = re.compile("data:", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# The part between the slashes and the path. A password with an unescaped slash must not be taken for a path, whose
# last part would become the file name.
_AUTHORITY = re.compile(r"(?:[^/?#@]*@)?(?:\[[^\]/?#@]*\]|[^/?#@:\[\]]+)(?::[0-9]*)?(?=[/?#]|$)")
_MIMETYPE = re.compile(r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}( *;[\x20-\x7e]*)?", re.ASCII)

_SOURCE_KEYS = ("path", "url", "content", "content_b64")
_KEYS = (*_SOURCE_KEYS, "filename", "mimetype", "inline", "content_id")
_OTHER_NAMES = {
    "base64": "content_b64",
    "cid": "content_id",
    "body": "content",
    "content-type": "mimetype",
    "content_type": "mimetype",
    "contenttype": "mimetype",
    "data": "content",
    "file": "path",
    "href": "url",
    "mime_type": "mimetype",
    "name": "filename",
    "raw": "content",
    "type": "mimetype",
}


def parse_item(item: object, index: int) -> Part:
    """Read one item; ``index`` counts from 0 and names it in errors and, counted from 1, where it has no file name.

    Raises:
        AttachmentRefused: not one of the documented forms.
    """
    place = f"attachments[{index}]"
    match item:
        case tuple():
            part = _from_tuple(item, index, place)
        case Mapping():
            part = _from_mapping(item, index, place)
        case _:
            source = _from_value(item, place)
            if source is None:
                raise AttachmentRefused(
                    place,
                    f"is of the type {type(item).__name__}; give a path, a URL, bytes, an upload, a file opened in "
                    "binary mode, an async iterator, a function, a message, (filename, content), (filename, content, "
                    "mimetype), a dict or an AttachmentData",
                )
            part = _named(None, source, index)
    return part


def is_content(value: object) -> bool:
    """True for a value that stands for one content by itself, as it may stand in a tuple or alone."""
    return (
        isinstance(value, str | os.PathLike | bytes | bytearray | memoryview | BytesIO | AsyncIterable)
        or _is_mail(value)
        or _readable(value) is not None
        or (callable(value) and not isinstance(value, type))
    )


def parse_content(value: object, filename: str) -> Source:
    """Return the source of a value that a function has returned; ``filename`` is for errors.

    Raises:
        AttachmentRefused: it is no content, or another function.
    """
    source = _from_value(value, filename)
    if source is None or isinstance(source, Factory):
        raise AttachmentRefused(
            filename,
            f"its function returned {type(value).__name__}; return bytes, a path, a URL, a file opened in binary mode, "
            "an async iterator or a message",
        )
    return source


def with_source(part: Part, source: Source) -> Part:
    """Return ``part`` with its content from ``source``, and with the name that the source has if none was given.

    Raises:
        AttachmentRefused: the source's own name cannot be sent.
    """
    filename = part.filename if part.named else None
    return _named(filename, source, part.place, mimetype=part.mimetype, inline=part.inline, content_id=part.content_id)


def _from_value(value: Any, place: str) -> Source | None:
    """Return the source of a value that stands for the content; None if it is no such value."""
    source: Source | None = None
    if isinstance(value, str | os.PathLike):
        source = _located(value, place)
    elif isinstance(value, bytes | bytearray | memoryview):
        source = Memory(bytes(value))
    elif isinstance(value, BytesIO):
        if value.closed:
            raise AttachmentRefused(place, "is closed; give it while it is open")
        source = Memory(value.getvalue())  # wherever its position is; shares the memory
    elif _is_mail(value):
        source = _mail(value, place)
    elif (file := _readable(value)) is not None:
        source = Stream(file, _own_name(value), _own_type(value))
    elif isinstance(value, AsyncIterable):
        source = Pieces(value)
    elif inspect.iscoroutine(value):
        value.close()
        raise AttachmentRefused(place, "is a coroutine; await it, or give the function itself without calling it")
    elif callable(value) and not isinstance(value, type):
        source = Factory(value)
    return source


def _is_mail(value: object) -> bool:
    module = sys.modules.get("email.message")  # imported, if there is such a message
    return module is not None and isinstance(value, module.Message)


def _mail(value: Any, place: str) -> Mail:
    if not any(name in value for name in ("From", "To", "Subject", "Date")):
        raise AttachmentRefused(
            place, "is a MIME part, not a message; give (filename, part.get_payload(decode=True), mimetype)"
        )
    return Mail(value)


def _readable(value: Any) -> Any:
    """Return the object with ``read`` of an upload or file; None for another value."""
    if isinstance(value, type):
        return None
    if callable(getattr(value, "read", None)):
        return value
    # aiohttp's uploads have no read() of their own.
    file = getattr(value, "file", None)
    return file if isinstance(getattr(value, "filename", None), str) and callable(getattr(file, "read", None)) else None


def _own_name(value: Any) -> str | None:
    """Return the last part of the name of an upload or file; browsers and clients may send a whole path."""
    for name in (getattr(value, "filename", None), getattr(value, "name", None)):
        # Of "<stdin>" and the like there is no name; a file opened by its number has that.
        if isinstance(name, str) and not (name.startswith("<") and name.endswith(">")):
            return re.split(r"[/\\]", name)[-1] or None
    return None


def _own_type(value: Any) -> str | None:
    declared = getattr(value, "content_type", None)
    if declared is None and isinstance(headers := getattr(value, "headers", None), Mapping):
        declared = headers.get("content-type") or headers.get("Content-Type")
    return declared_type(declared) if isinstance(declared, str) else None


def _from_tuple(item: tuple[Any, ...], index: int, place: str) -> Part:
    if len(item) not in (2, 3):
        raise AttachmentRefused(
            place, f"is a tuple of {len(item)}; write (filename, content) or (filename, content, mimetype)"
        )
    filename, content, mimetype = (*item, None)[:3]
    source = _from_value(content, place)
    if source is None:
        raise AttachmentRefused(
            place,
            f"its content is of the type {type(content).__name__}; give bytes, a path, a URL, an upload, a file opened "
            "in binary mode, an async iterator, a function or a message",
        )
    return _named(_filename(filename, place), source, index, mimetype=_mimetype(mimetype, place))


def _from_mapping(item: Mapping[Any, Any], index: int, place: str) -> Part:
    for key in item:
        if key not in _KEYS:
            raise AttachmentRefused(place, f"unknown key {shown(key)}{_suggestion(key)}")
    given = [key for key in _SOURCE_KEYS if item.get(key) is not None]
    if len(given) != 1:
        raise AttachmentRefused(
            place, f"needs exactly one of {', '.join(_SOURCE_KEYS)}; it has {' and '.join(given) or 'none'}"
        )
    inline, content_id = item.get("inline", False), item.get("content_id")
    if not isinstance(inline, bool):
        raise AttachmentRefused(place, f"inline must be True or False, not {shown(inline)}")
    if content_id is not None and not isinstance(content_id, str):
        raise AttachmentRefused(place, f"content_id must be a str, not {type(content_id).__name__}")
    return _named(
        _filename(item.get("filename"), place),
        _source(given[0], item[given[0]], place),
        index,
        mimetype=_mimetype(item.get("mimetype"), place),
        inline=inline,
        content_id=content_id,
    )


def _suggestion(key: object) -> str:
    name = key.lower() if isinstance(key, str) else key
    return suggestion(name, _KEYS, aliases=_OTHER_NAMES, otherwise=f"the keys are {', '.join(_KEYS)}")


def _source(key: str, value: object, place: str) -> Source:
    match key, value:
        case "path", str() | os.PathLike():
            return File(_path(value, place))
        case "url", str():
            return _url(value, place)
        case "content", str():
            return Text(value)
        case "content", FileContent():
            return Memory(value)
        case "content", _ if not isinstance(value, os.PathLike) and (source := _from_value(value, place)) is not None:
            return source
        case "content_b64", str():
            return Base64(value)
        case "content_b64", bytes() | bytearray():
            return Base64(bytes(value))
    raise AttachmentRefused(place, f"its {key} cannot be of the type {type(value).__name__}")


def _located(value: str | os.PathLike[Any], place: str) -> Source:
    """Return the source of a str or path: a URL if it has a scheme, else a path; never the content itself."""
    if isinstance(value, str) and (_SCHEME.match(value) or (_DATA.match(value) and "," in value)):
        return _url(value, place)
    return File(_path(value, place))


def _url(value: str, place: str) -> Url | DataUrl:
    if _DATA.match(value):
        return DataUrl(value)
    found = _SCHEME.match(value)
    if found is None:
        raise AttachmentRefused(place, "the URL must begin with http://, https:// or data:")
    if found[1].lower() not in ("http", "https"):
        raise AttachmentRefused(place, f"the scheme {shown(found[1].lower())} is not allowed; use http or https")
    if not _AUTHORITY.match(value, found.end()):
        raise AttachmentRefused(place, "the URL has no valid host and port")
    return Url(value)


def _path(value: str | os.PathLike[Any], place: str) -> str:
    path = os.fspath(value)
    if not isinstance(path, str):
        raise AttachmentRefused(place, "its path is not text")
    if not path or "\0" in path:
        raise AttachmentRefused(place, "its path is empty" if not path else "its path has a NUL character")
    return path


def _filename(value: object, place: str) -> str | None:
    if value is None or isinstance(value, str):
        if value == "":
            raise AttachmentRefused(place, "its filename is empty; leave it out to have one chosen")
        if value is not None and looks_like_type(value):
            raise AttachmentRefused(
                place, f"its filename {shown(value)} is a media type; write (filename, content, mimetype)"
            )
        return value
    remedy = "; write (filename, content)" if isinstance(value, bytes | bytearray) else ""
    raise AttachmentRefused(place, f"its filename must be a str, not {type(value).__name__}{remedy}")


def _mimetype(value: object, place: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _MIMETYPE.fullmatch(value):
        raise AttachmentRefused(
            place, f"its mimetype {shown(value)} is not of the form type/subtype, such as application/pdf"
        )
    if value.lower().startswith("multipart/"):
        raise AttachmentRefused(place, f"its mimetype {shown(value)} is for multipart messages, not for a file")
    return value


def _named(
    filename: str | None,
    source: Source,
    index: int,
    *,
    mimetype: str | None = None,
    inline: bool = False,
    content_id: str | None = None,
) -> Part:
    name = filename or _implied_name(source, index)
    if control_character(name):
        raise AttachmentRefused(f"attachments[{index}]", f"its filename {shown(name)} has a control character")
    return Part(name, source, index, mimetype, inline, content_id, named=filename is not None)


def _implied_name(source: Source, index: int) -> str:
    match source:
        case File(path):
            return os.path.basename(path) or path  # noqa: PTH119 as written, not as normalised
        case Url(url):
            after_authority = re.split(r"[?#]", url.partition("://")[2], maxsplit=1)[0].partition("/")[2]
            return re.split(r"[/\\]", unquote(after_authority).rstrip("/"))[-1] or f"attachment-{index + 1}"
        case Mail():
            return f"attachment-{index + 1}.eml"
        case Stream(filename=str(name)):
            return name
        case DataUrl():
            return f"attachment-{index + 1}"  # its type gives the suffix
    return f"attachment-{index + 1}.bin"
