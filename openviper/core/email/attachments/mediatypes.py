"""Guess the MIME type from a file name, the same on every machine, whatever its mime.types say."""

import functools
import mimetypes
import os.path
import re

__all__ = ["OCTET_STREAM", "declared_type", "guess", "load", "looks_like_type", "suffix"]

OCTET_STREAM = "application/octet-stream"

# IANA's top-level types; a dot in the subtype belongs to a registration tree, or it begins a file's suffix.
_TYPE = re.compile(
    r"(?:application|audio|font|haptics|image|message|model|multipart|text|video)"
    r"/(?:(?:vnd|prs|x)\.[\w.+-]+|[\w+-]+) *+(?:;.*+)?+",
    re.ASCII | re.IGNORECASE | re.DOTALL,
)
_PLAIN = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}", re.ASCII)
_OFFICE = "application/vnd.openxmlformats-officedocument"
_OASIS = "application/vnd.oasis.opendocument"

# Types that people attach and that some supported Python lacks, or knows only as an encoding of something else.
_ADDED = {
    ".7z": "application/x-7z-compressed",
    ".avif": "image/avif",
    ".bz2": "application/x-bzip2",
    ".docx": f"{_OFFICE}.wordprocessingml.document",
    ".eml": "message/rfc822",
    ".epub": "application/epub+zip",
    ".gz": "application/gzip",
    ".heic": "image/heic",
    ".ics": "text/calendar",
    ".m4a": "audio/mp4",
    ".md": "text/markdown",
    ".odp": f"{_OASIS}.presentation",
    ".ods": f"{_OASIS}.spreadsheet",
    ".odt": f"{_OASIS}.text",
    ".pptx": f"{_OFFICE}.presentationml.presentation",
    ".rar": "application/vnd.rar",
    ".rtf": "application/rtf",
    ".svgz": "application/gzip",
    ".tgz": "application/gzip",
    ".webp": "image/webp",
    ".xlsx": f"{_OFFICE}.spreadsheetml.sheet",
    ".xml": "application/xml",
    ".xz": "application/x-xz",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zip": "application/zip",
    ".zst": "application/zstd",
}


@functools.cache
def load() -> dict[str, str]:
    """Return the MIME types by suffix; the first call may read files, so make it off the event loop."""
    known = mimetypes.MimeTypes()  # an instance starts from Python's own table, not from the machine's
    registered, common = known.types_map[True], known.types_map[False]
    return {**common, **registered, **_ADDED}


def looks_like_type(filename: str) -> bool:
    """True for a media type in the place of a file name; ``image/logo.png`` is a name with a folder."""
    return _TYPE.fullmatch(filename) is not None


def guess(filename: str) -> str:
    """Return the type of the last suffix of ``filename``; ``application/octet-stream`` for an unknown one."""
    return load().get(os.path.splitext(filename)[1].lower(), OCTET_STREAM)  # noqa: PTH122 a name, not a path


def suffix(mimetype: str) -> str:
    """Return the usual suffix of a file of this type, ``.bin`` for an unknown one."""
    return next((known for known, each in load().items() if each == mimetype), ".bin")


def declared_type(header: str) -> str | None:
    """Return the type that a Content-Type names, without parameters; None for one that no file can have."""
    value = header.partition(";")[0].strip().lower()
    if not _PLAIN.fullmatch(value) or value.startswith(("multipart/", "message/")):
        return None
    return value
