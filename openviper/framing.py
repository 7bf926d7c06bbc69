"""Frame a head and binary parts as one piece: the head's length (4 bytes, big-endian), the head, then the parts."""

from collections.abc import Iterable

__all__ = ["frame", "read_head", "read_parts"]

_LENGTH = 4


def frame(head: bytes, parts: Iterable[bytes], *, prefix: bytes = b"") -> bytes:
    """Return head and parts in one piece behind ``prefix``; the head must say how long each part is."""
    return b"".join((prefix, len(head).to_bytes(_LENGTH, "big"), head, *parts))


def read_head(framed: bytes, begin: int = 0) -> tuple[bytes, int]:
    """Return the head of a frame that begins at ``begin``, and where the parts begin.

    The head of a damaged frame is shorter than it says, or empty.
    """
    begin += _LENGTH
    end = begin + int.from_bytes(framed[begin - _LENGTH : begin], "big")
    return bytes(framed[begin:end]), end


def read_parts(framed: bytes, begin: int, sizes: Iterable[int]) -> list[bytes]:
    """Return the parts from ``begin`` on, of ``sizes`` bytes each.

    Raises:
        ValueError: the frame ends before.
    """
    parts = []
    for size in sizes:
        parts.append(bytes(framed[begin : begin + size]))
        if len(parts[-1]) != size:
            raise ValueError("the frame is cut short")
        begin += size
    return parts
