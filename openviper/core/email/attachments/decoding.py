"""Decode content in bounded steps: HTTP's compression, and base64."""

import binascii
import zlib
from collections.abc import Iterator
from typing import Protocol

from openviper.core.email.attachments.bytelimit import ByteLimit
from openviper.core.email.errors import AttachmentRefused
from openviper.text import shown

__all__ = ["Decoder", "decode_base64", "decoder_for"]

_PIECE = 64 * 1024
_BASE64_SLICE = 4 * 64 * 1024
_WHITESPACE = b" \t\r\n\v\f"


class Decoder(Protocol):
    """Decodes a body as it arrives, in pieces of at most 64 kB."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Yield the pieces that ``data`` completes."""

    def finish(self) -> None:
        """End the body; AttachmentRefused if it is incomplete."""


def decoder_for(encoding: str, limit: ByteLimit) -> Decoder:
    """Return the decoder for a Content-Encoding in lower case; the empty string means none.

    Raises:
        AttachmentRefused: an encoding that was not asked for and is not common.
    """
    if encoding in ("", "identity"):
        return _Identity()
    if encoding in ("gzip", "x-gzip", "deflate"):
        return _Inflate(limit)
    raise AttachmentRefused(limit.filename, f"the server sent it with the content encoding {shown(encoding)}")


class _Identity:
    def decode(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        """Do nothing: HTTP itself notices what is missing."""


class _Inflate:
    """Inflates gzip or zlib, at most one piece ahead of its reader, so that a compression bomb stays small."""

    def __init__(self, limit: ByteLimit) -> None:
        self._filename = limit.filename
        # Compression never adds more than this to data that cannot be compressed; blocks without content would.
        self._wire_room = limit.max_bytes + limit.max_bytes // 1000 + _PIECE
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 32)  # takes gzip and zlib

    def decode(self, data: bytes) -> Iterator[bytes]:
        self._wire_room -= len(data)
        if self._wire_room < 0:
            raise AttachmentRefused(self._filename, "is above its limit when decompressed", too_large=True)
        while data:
            if self._zlib.eof:
                raise AttachmentRefused(self._filename, "has data after its compressed content")
            try:
                piece = self._zlib.decompress(data, _PIECE)
            except zlib.error as error:
                raise AttachmentRefused(self._filename, "is not compressed as the server says") from error
            if piece:
                yield piece
            data = self._zlib.unconsumed_tail or self._zlib.unused_data

    def finish(self) -> None:
        if not self._zlib.eof:
            raise AttachmentRefused(self._filename, "is compressed and was cut short")


def decode_base64(encoded: str | bytes, limit: ByteLimit, *, field: str = "content_b64") -> bytes:
    """Decode strictly (RFC 4648 section 4, padding required), ignoring white space; errors name ``field``.

    It works in slices, because ``binascii`` holds the interpreter's lock for a whole buffer.

    Raises:
        AttachmentRefused: not base64, or too large.
    """
    try:
        pieces = []
        for piece in _base64_pieces(encoded):
            limit.spend(len(piece))
            pieces.append(piece)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise AttachmentRefused(limit.filename, f"its {field} is not base64: {error}") from None
    return b"".join(pieces)


def _base64_pieces(encoded: str | bytes) -> Iterator[bytes]:
    rest, padded = b"", False
    for start in range(0, len(encoded), _BASE64_SLICE):
        part = encoded[start : start + _BASE64_SLICE]
        data = part.encode("ascii") if isinstance(part, str) else part
        digits = rest + data.translate(None, _WHITESPACE)
        if padded and digits:
            raise binascii.Error("data after the padding")
        whole = len(digits) // 4 * 4
        block, rest = digits[:whole], digits[whole:]
        padded = block.endswith(b"=")
        yield binascii.a2b_base64(block, strict_mode=True)
    if rest:
        raise binascii.Error("the padding is missing or the length is wrong")
