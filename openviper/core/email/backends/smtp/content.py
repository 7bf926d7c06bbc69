"""Check a message's content before it is sent, cut it into pieces, and dot-stuff them for DATA."""

import asyncio
from collections.abc import Iterator

from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message import Chunks, CleanChunks, Content, lengths

__all__ = ["YIELD_EVERY", "DotStuffer", "check_content", "checked_size", "pieces"]

YIELD_EVERY = 256 * 1024  # bytes between two yields to the event loop
_PIECE = 64 * 1024


async def check_content(content: Chunks) -> int:
    """Check that ``content`` has CRLF line ends only, and return its length in bytes.

    A lenient server could take a bare CR or LF for the end of the message (SMTP smuggling).

    Raises:
        InvalidMessage: it has a bare CR or LF, or its last line has no end.
    """
    size = checked_size(content)
    if size is not None:
        return size
    pairs = returns = feeds = checked = 0
    last = b"\n"
    for whole in content.literal() if isinstance(content, Content) else content:
        if whole is None:
            last = b""
            continue
        for chunk in _slices(whole):
            pairs += chunk.count(b"\r\n") + (last.endswith(b"\r") and chunk.startswith(b"\n"))
            returns += chunk.count(b"\r")
            feeds += chunk.count(b"\n")
            last = chunk
            checked += len(chunk)
            if checked >= YIELD_EVERY:
                checked = 0
                await asyncio.sleep(0)
    _check_line_ends(pairs, returns, feeds, last)
    return sum(lengths(content))


def checked_size(content: Chunks) -> int | None:
    """Check a single small chunk as ``check_content`` does, but at once; return None for other content."""
    if len(content) != 1 or len(chunk := content[0]) > YIELD_EVERY:
        return None
    if not isinstance(content, CleanChunks):
        _check_line_ends(chunk.count(b"\r\n"), chunk.count(b"\r"), chunk.count(b"\n"), chunk)
    return len(chunk)


def _check_line_ends(pairs: int, returns: int, feeds: int, last: bytes) -> None:
    if not pairs == returns == feeds:
        raise InvalidMessage("the content has a CR or LF that is not part of a CRLF line end")
    if last[-1:] != b"\n":
        raise InvalidMessage("the last line of the content has no line end")


def pieces(content: Chunks, begin: int, end: int) -> Iterator[bytes | memoryview]:
    """Yield ``content`` from byte ``begin`` to byte ``end``: small chunks joined, large ones cut without a copy."""
    small: list[bytes | memoryview] = []
    gathered = 0
    position = 0
    for number, length in enumerate(lengths(content)):
        first, last = max(begin - position, 0), min(end - position, length)
        position += length
        if first >= last:
            continue
        view = memoryview(content[number])[first:last]
        if gathered + len(view) > _PIECE and small:
            yield small[0] if len(small) == 1 else b"".join(small)
            small, gathered = [], 0
        while len(view) > _PIECE:
            yield view[:_PIECE]
            view = view[_PIECE:]
        small.append(view)
        gathered += len(view)
    if small:
        yield b"".join(small)


def _slices(chunk: bytes) -> Iterator[bytes]:
    if len(chunk) <= YIELD_EVERY:
        if chunk:
            yield chunk
    else:
        for begin in range(0, len(chunk), YIELD_EVERY):
            yield chunk[begin : begin + YIELD_EVERY]


class DotStuffer:
    """Incremental dot-stuffing for DATA: doubles each dot that begins a line (RFC 5321 section 4.5.2)."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b"\r\n"  # the end of the line before the first one

    def stuff(self, piece: bytes) -> bytes:
        """Return ``piece`` as it is sent; a line may end in one piece and begin in the next."""
        text = self._tail + piece
        kept = len(self._tail)
        self._tail = text[-2:]
        # The tail is too short to hold the pattern itself, so the replacement leaves it as it is.
        return text.replace(b"\r\n.", b"\r\n..")[kept:]

    def end(self) -> bytes:
        """Return the end of mail data, after a line end if the content lacks one."""
        return b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n"
