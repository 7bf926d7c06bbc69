"""The bytes of a message, to be read: its header fields and its source."""

from collections.abc import Iterable
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.parser import BytesHeaderParser

__all__ = ["header_fields", "source_text"]

_SHOWN = 2_000_000  # characters of the source; the rest is in the download


def header_fields(content: Iterable[bytes]) -> list[tuple[str, str]]:
    """Name and value of each header field, unfolded and decoded."""
    head, _, _ = b"".join(content).partition(b"\r\n\r\n")
    return [(name, _decoded(str(value))) for name, value in BytesHeaderParser().parsebytes(head + b"\r\n\r\n").items()]


def source_text(content: Iterable[bytes]) -> tuple[str, bool]:
    """The beginning of the source, and whether that is all of it."""
    source = b"".join(content)
    return source[:_SHOWN].decode("utf-8", "replace"), len(source) <= _SHOWN


def _decoded(value: str) -> str:
    unfolded = " ".join(line.strip() for line in value.splitlines())
    try:
        return str(make_header(decode_header(unfolded)))
    except (HeaderParseError, LookupError, ValueError):
        return unfolded
