"""Parse the documented forms of an attachment into one: its source and its properties.

Nothing is read here, so a mistake in one item is found before any file or URL is read.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from openviper.core.email.attachments.mediatypes import looks_like_type
from openviper.core.email.errors import AttachmentRefused
from openviper.text import control_character, shown, suggestion

__all__ = ["Base64", "File", "Memory", "Part", "Source", "Text", "Url", "parse_item"]


class Memory(NamedTuple):
    """Bytes in memory."""

    content: bytes


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


Source = Memory | Text | Base64 | File | Url


class Part(NamedTuple):
    """One item of the list. ``mimetype`` None asks for the type that the file name suggests."""

    filename: str
    source: Source
    mimetype: str | None = None
    inline: bool = False
    content_id: str | None = None


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
    "content_type": "mimetype",
    "data": "content",
    "file": "path",
    "mime_type": "mimetype",
    "name": "filename",
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
        case str() | os.PathLike():
            part = _named(None, _located(item, place), index)
        case bytes() | bytearray() | memoryview():
            part = _named(None, Memory(bytes(item)), index)
        case _:
            raise AttachmentRefused(
                place,
                f"is of the type {type(item).__name__}; give a path, a URL, bytes, (filename, content), "
                "(filename, content, mimetype), a dict or an AttachmentData",
            )
    return part


def _from_tuple(item: tuple[Any, ...], index: int, place: str) -> Part:
    if len(item) not in (2, 3):
        raise AttachmentRefused(
            place, f"is a tuple of {len(item)}; write (filename, content) or (filename, content, mimetype)"
        )
    filename, content, mimetype = (*item, None)[:3]
    source: Source
    match content:
        case bytes() | bytearray() | memoryview():
            source = Memory(bytes(content))
        case str() | os.PathLike():
            source = _located(content, place)
        case _:
            raise AttachmentRefused(
                place, f"its content is of the type {type(content).__name__}; give bytes, a path or a URL"
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
    return suggestion(key, _KEYS, aliases=_OTHER_NAMES, otherwise=f"the keys are {', '.join(_KEYS)}")


def _source(key: str, value: object, place: str) -> Source:
    match key, value:
        case "path", str() | os.PathLike():
            return File(_path(value, place))
        case "url", str():
            return _url(value, place)
        case "content", str():
            return Text(value)
        case "content", bytes() | bytearray() | memoryview():
            return Memory(bytes(value))
        case "content_b64", str():
            return Base64(value)
        case "content_b64", bytes() | bytearray():
            return Base64(bytes(value))
    raise AttachmentRefused(place, f"its {key} cannot be of the type {type(value).__name__}")


def _located(value: str | os.PathLike[Any], place: str) -> Source:
    """Return the source of a str or path: a URL if it has a scheme, else a path; never the content itself."""
    if isinstance(value, str) and _SCHEME.match(value):
        return _url(value, place)
    return File(_path(value, place))


def _url(value: str, place: str) -> Url:
    found = _SCHEME.match(value)
    if found is None:
        raise AttachmentRefused(place, "the URL must begin with http:// or https://")
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
    raise AttachmentRefused(place, f"its filename must be a str, not {type(value).__name__}")


def _mimetype(value: object, place: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _MIMETYPE.fullmatch(value):
        raise AttachmentRefused(place, f"its mimetype {shown(value)} is not of the form type/subtype")
    if value.lower().startswith("multipart/"):
        raise AttachmentRefused(place, f"its mimetype {shown(value)} is for messages of several parts, not for a file")
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
    return Part(name, source, mimetype, inline, content_id)


def _implied_name(source: Source, index: int) -> str:
    match source:
        case File(path):
            return os.path.basename(path) or path  # noqa: PTH119 as written, not as normalised
        case Url(url):
            after_authority = re.split(r"[?#]", url.partition("://")[2], maxsplit=1)[0].partition("/")[2]
            return re.split(r"[/\\]", unquote(after_authority).rstrip("/"))[-1] or f"attachment-{index + 1}"
    return f"attachment-{index + 1}.bin"
