"""Encode bodies and attachments for transfer (RFC 2045 section 6): lines of at most 76 octets, ASCII only.

Large ones are encoded in slices, because ``binascii`` holds the interpreter for as long as one call lasts; those of
attachments are made when they are asked for, so that nobody need keep all of them.
"""

import binascii
import struct
from typing import Literal

from openviper.core.email.attachments import FileContent

__all__ = ["Base64Slice", "FileSlice", "base64_length", "base64_slices", "encode_text", "file_slices", "seven_bit"]

TextEncoding = Literal["quoted-printable", "base64"]

_LINE = 76
_BASE64_LINE_INPUT = 57
_SLICE_LINES = 512
_BASE64_SLICE = _BASE64_LINE_INPUT * _SLICE_LINES
# Read and encoded in one go, in a thread.
_FILE_SLICE = 8 * _BASE64_SLICE
_split_slice = struct.Struct(f"{_LINE}s" * _SLICE_LINES).unpack
_TEXT_SLICE = 128 * 1024
# Quoted-printable leaves these as they are: printable ASCII but '=', and tab and LF.
_QUOTED_PLAIN = bytes(byte for byte in range(32, 127) if byte != 0x3D) + b"\t\n"
_MAX_LINE = 998


def encode_text(text: str) -> tuple[TextEncoding, list[bytes]]:
    """Encode ``text`` as UTF-8; returns the Content-Transfer-Encoding and the slices that join to the body.

    Every line end (CRLF, lone CR, lone LF) becomes CRLF, and the last line is ended unless there is none.
    Quoted-printable while it is not longer (soft line breaks apart), because people and filters can read it.

    Raises:
        UnicodeEncodeError: ``text`` has a lone surrogate.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text and text[-1] != "\n":
        text += "\n"
    if len(text) > _TEXT_SLICE:
        return _shorter(_text_slices(text))
    data = text.encode()
    # Most texts are mostly ASCII, and need not be looked at twice. base64 makes four octets of three.
    quoted = _quoted(data) if 6 * (len(data) - len(text)) <= len(data) else None
    if quoted is not None and 3 * len(quoted) <= 4 * len(data):
        return "quoted-printable", [quoted]
    return _shorter([data], quoted)


def _shorter(slices: list[bytes], quoted: bytes | None = None) -> tuple[TextEncoding, list[bytes]]:
    """Return the shorter of quoted-printable and base64; ``quoted`` is the only slice in quoted-printable, if known."""
    escapes = sum([len(each.translate(None, _QUOTED_PLAIN)) for each in slices])
    length = sum([len(each) + each.count(b"\n") for each in slices])
    if length + 2 * escapes > base64_length(length) + 2:
        data = b"".join([each.replace(b"\n", b"\r\n") for each in slices])
        return "base64", [*map(bytes, base64_slices(data)), b"\r\n"]
    return "quoted-printable", [*map(_quoted, slices)] if quoted is None else [quoted]


class Base64Slice:
    """A part of ``base64_slices``: ``bytes()`` encodes it anew each time, ``len()`` is known without that.

    It consists of whole lines; only the ``last`` one of the last slice is not ended.
    """

    __slots__ = ("_data", "_last")

    def __init__(self, data: memoryview, *, last: bool) -> None:
        self._data = data
        self._last = last

    def __len__(self) -> int:
        return base64_length(len(self._data)) + (0 if self._last else 2)

    def __bytes__(self) -> bytes:
        encoded = binascii.b2a_base64(self._data, newline=False)
        if not self._last:
            return b"\r\n".join((*_split_slice(encoded), b""))
        return b"\r\n".join([encoded[start : start + _LINE] for start in range(0, len(encoded), _LINE)])


class FileSlice:
    """A part of ``base64_slices`` whose data is in a file: ``bytes()`` reads and encodes it, and blocks."""

    __slots__ = ("_content", "_last", "_size", "_start")

    def __init__(self, content: FileContent, start: int, size: int) -> None:
        self._content = content
        self._start = start
        self._size = size
        self._last = start + size == len(content)

    def __len__(self) -> int:
        return base64_length(self._size) + (0 if self._last else 2)

    def __bytes__(self) -> bytes:
        return b"".join(map(bytes, self.load()))

    def load(self) -> list[Base64Slice]:
        """Read the data and return it in slices, which are not encoded yet; blocks."""
        return base64_slices(self._content.read(self._start, self._size), last=self._last)


def file_slices(content: FileContent) -> list[FileSlice]:
    """Return what ``base64_slices`` returns of the bytes in a file that is not empty, in larger slices."""
    size = len(content)
    starts = range(0, size, _FILE_SLICE)
    return [FileSlice(content, start, min(_FILE_SLICE, size - start)) for start in starts]


def base64_slices(data: bytes, *, last: bool = True) -> list[Base64Slice]:
    """Return ``data`` as base64 lines of 76 characters, in slices of at most 40 kB.

    The last line of the ``last`` data is not ended; other data must consist of whole slices.
    """
    view = memoryview(data)
    end = max(0, len(data) - 1) // _BASE64_SLICE * _BASE64_SLICE
    slices = [Base64Slice(view[start : start + _BASE64_SLICE], last=False) for start in range(0, end, _BASE64_SLICE)]
    return [*slices, Base64Slice(view[end:], last=last)]


def base64_length(size: int) -> int:
    """Return the length of ``size`` octets in base64, including the breaks between its lines."""
    encoded = 4 * -(-size // 3)
    return encoded + 2 * ((encoded - 1) // _LINE) if size else 0


def seven_bit(data: bytes) -> list[bytes] | None:
    """Return ``data`` in slices with every line end as CRLF, or None when it needs an encoding.

    That is when it has octets beyond ASCII, NUL, or a line of more than 998 octets (RFC 2045 section 2.7).
    """
    slices: list[bytes] = []
    start = 0
    while len(data) - start > _TEXT_SLICE:
        end = data.rfind(b"\n", start, start + _TEXT_SLICE) + 1
        if not end:
            return None
        slices.append(data[start:end])
        start = end
    slices.append(data[start:])
    for index, each in enumerate(slices):
        lines = each.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if not each.isascii() or b"\x00" in each or max(map(len, lines)) > _MAX_LINE:
            return None
        slices[index] = b"\r\n".join(lines)
    return slices


def _text_slices(text: str) -> list[bytes]:
    """Return ``text`` as UTF-8 in slices, which end at line ends as far as lines are short enough."""
    slices: list[bytes] = []
    start = 0
    while len(text) - start > _TEXT_SLICE:
        end = text.rfind("\n", start, start + _TEXT_SLICE) + 1 or start + _TEXT_SLICE
        slices.append(text[start:end].encode())
        start = end
    slices.append(text[start:].encode())
    return slices


def _quoted(data: bytes) -> bytes:
    """Encode a slice with LF line ends into one with CRLF; where it stops inside a line, a soft line break ends it."""
    encoded = binascii.b2a_qp(data, istext=True)
    # find(), because "in" tries its left side as a number first, which costs as much as the search.
    # mbox files put '>' before a line that begins so; encoded, it arrives as it was (RFC 2049 section 3).
    begins_so = encoded.find(b"From ") >= 0
    if begins_so:
        encoded = _at_line_start(encoded)
    if data and data[-1] != 0x0A:
        encoded = _long_lines_broken(encoded + b"=\n")
    # A trailing space that binascii encodes, or the step before the last, may have made a line too long.
    elif begins_so or encoded.find(b"=20\n") >= 0 or (data.find(b"\t") >= 0 and encoded.find(b"=09\n") >= 0):
        encoded = _long_lines_broken(encoded)
    return encoded.replace(b"\n", b"\r\n")


def _long_lines_broken(encoded: bytes) -> bytes:
    return b"\n".join([_shortened(line) if len(line) > _LINE else line for line in encoded.split(b"\n")])


def _at_line_start(encoded: bytes) -> bytes:
    if encoded.startswith(b"From "):
        encoded = b"=46" + encoded[1:]
    return encoded.replace(b"\nFrom ", b"\n=46rom ")


def _shortened(line: bytes) -> bytes:
    """Break an encoded line softly, not inside an escape."""
    cut = _LINE - 1
    if line[cut - 1 : cut] == b"=":
        cut -= 1
    elif line[cut - 2 : cut - 1] == b"=":
        cut -= 2
    return line[:cut] + b"=\n" + line[cut:]
