"""The content on its way to the wire: checked once, then cut into pieces of a size that suits the event loop."""

import asyncio
from collections.abc import Iterator, Sequence

from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message import Content

__all__ = ["BREATH", "check_content", "pieces"]

BREATH = 256 * 1024  # bytes after which other tasks get their turn
_PIECE = 64 * 1024


async def check_content(content: Sequence[bytes]) -> int:
    """The length of ``content`` in bytes, each CR and LF of which belongs to a CRLF.

    A bare one could end the message early at a lenient server (SMTP smuggling).

    Raises:
        InvalidMessage: it has a bare CR or LF, or its last line has no end.
    """
    size = pairs = returns = feeds = checked = 0
    last = b"\n"
    known = content.whole_lines if isinstance(content, Content) else frozenset()
    for number, whole in enumerate(content):
        if number in known:
            size += len(whole)
            last = whole
            continue
        for chunk in _bounded(whole):
            size += len(chunk)
            pairs += chunk.count(b"\r\n") + (last.endswith(b"\r") and chunk.startswith(b"\n"))
            returns += chunk.count(b"\r")
            feeds += chunk.count(b"\n")
            last = chunk
            checked += len(chunk)
            if checked >= BREATH:
                checked = 0
                await asyncio.sleep(0)
    if not pairs == returns == feeds:
        raise InvalidMessage("the content has a CR or LF that is not part of a CRLF line end")
    if not last.endswith(b"\n"):
        raise InvalidMessage("the last line of the content has no line end")
    return size


def pieces(content: Sequence[bytes], begin: int, end: int) -> Iterator[bytes | memoryview]:
    """``content`` from byte ``begin`` to byte ``end``: small chunks put together, large ones cut without a copy."""
    small: list[bytes | memoryview] = []
    gathered = 0
    position = 0
    for chunk in content:
        first, last = max(begin - position, 0), min(end - position, len(chunk))
        position += len(chunk)
        if first >= last:
            continue
        view = memoryview(chunk)[first:last]
        if gathered + len(view) > _PIECE and small:
            yield b"".join(small)
            small, gathered = [], 0
        while len(view) > _PIECE:
            yield view[:_PIECE]
            view = view[_PIECE:]
        small.append(view)
        gathered += len(view)
    if small:
        yield b"".join(small)


def _bounded(chunk: bytes) -> Iterator[bytes]:
    if len(chunk) <= BREATH:
        if chunk:
            yield chunk
    else:
        for begin in range(0, len(chunk), BREATH):
            yield chunk[begin : begin + BREATH]
