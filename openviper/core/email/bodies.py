"""Bodies and attachments in their transfer encodings (RFC 2045 section 6): lines of at most 76 octets, ASCII only.

Large ones are encoded in slices, because ``binascii`` holds the interpreter for as long as one call lasts.
"""

import binascii
import struct
from typing import Literal

__all__ = ["base64_length", "encode_base64", "encode_text", "normalised", "seven_bit"]

TextEncoding = Literal["quoted-printable", "base64"]

_LINE = 76
_BASE64_LINE_INPUT = 57
_SLICE_LINES = 4096
_BASE64_SLICE = _BASE64_LINE_INPUT * _SLICE_LINES
_split_slice = struct.Struct(f"{_LINE}s" * _SLICE_LINES).unpack
_TEXT_SLICE = 128 * 1024
# What quoted-printable leaves as it is: printable ASCII but '=', and tab, LF, CR.
_QUOTED_PLAIN = bytes(byte for byte in range(32, 127) if byte != 0x3D) + b"\t\n\r"
_MAX_LINE = 998


def normalised(text: str) -> str:
    """``text`` with every line end (CRLF, lone CR, lone LF) as CRLF, and the last line ended unless there is none."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text and text[-1] != "\n":
        text += "\n"
    return text.replace("\n", "\r\n")


def encode_text(text: str) -> tuple[TextEncoding, list[bytes]]:
    """Encode ``text`` as UTF-8; returns the Content-Transfer-Encoding and the slices, which end with CRLF.

    Quoted-printable while it is not longer (soft line breaks apart), because people and filters can read it.
    """
    data = normalised(text).encode()
    escapes = len(data.translate(None, _QUOTED_PLAIN))
    if len(data) + 2 * escapes > base64_length(len(data)) + 2:
        return "base64", [*encode_base64(data), b"\r\n"]
    return "quoted-printable", _encode_quoted(data)


def encode_base64(data: bytes) -> list[bytes]:
    """Encode ``data`` in lines of 76 characters; the last line is not ended. The slices join to the whole."""
    if len(data) <= _BASE64_LINE_INPUT:
        return [binascii.b2a_base64(data, newline=False)]
    slices: list[bytes] = []
    view = memoryview(data)
    last = (len(data) - 1) // _BASE64_SLICE * _BASE64_SLICE
    for start in range(0, last, _BASE64_SLICE):
        encoded = binascii.b2a_base64(view[start : start + _BASE64_SLICE], newline=False)
        slices.append(b"\r\n".join((*_split_slice(encoded), b"")))
    encoded = binascii.b2a_base64(view[last:], newline=False)
    slices.append(b"\r\n".join([encoded[start : start + _LINE] for start in range(0, len(encoded), _LINE)]))
    return slices


def base64_length(size: int) -> int:
    """The length of :func:`encode_base64` for ``size`` octets, line breaks included."""
    encoded = 4 * -(-size // 3)
    return encoded + 2 * ((encoded - 1) // _LINE) if size else 0


def seven_bit(data: bytes) -> list[bytes] | None:
    """``data`` in slices with every line end as CRLF; None when it cannot travel unencoded.

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


def _encode_quoted(data: bytes) -> list[bytes]:
    slices: list[bytes] = []
    start = 0
    while len(data) - start > _TEXT_SLICE:
        end = data.rfind(b"\n", start, start + _TEXT_SLICE) + 1
        if end:
            slices.append(_quoted(data[start:end]))
        else:
            end = start + _TEXT_SLICE
            if data[end - 1] == 0x0D:
                end -= 1
            slices.append(_continued(_quoted(data[start:end])))
        start = end
    slices.append(_quoted(data[start:]))
    return slices


def _continued(encoded: bytes) -> bytes:
    """End a slice that stops inside a line with a soft line break."""
    ended, line_end, last = encoded.rpartition(b"\r\n")
    last += b"="
    return ended + line_end + (_shortened(last) if len(last) > _LINE else last) + b"\r\n"


def _quoted(data: bytes) -> bytes:
    encoded = binascii.b2a_qp(data, istext=True)
    if b"\r\n" not in data:
        # binascii takes the kind of its soft line breaks from the first line end, and there is none.
        encoded = encoded.replace(b"\n", b"\r\n")
    # mbox files put '>' before a line that begins so; encoded, it arrives as it was (RFC 2049 section 3).
    if b"From " in encoded:
        encoded = _at_line_start(encoded)
    # A trailing space that binascii encodes, or the step above, may have made a line too long.
    if b"=20\r\n" in encoded or b"=09\r\n" in encoded or b"=46rom " in encoded:
        encoded = b"\r\n".join([_shortened(line) if len(line) > _LINE else line for line in encoded.split(b"\r\n")])
    return encoded


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
    return line[:cut] + b"=\r\n" + line[cut:]
