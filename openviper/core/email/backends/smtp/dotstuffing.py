"""Dot-stuffing (RFC 5321 section 4.5.2), piece by piece, for DATA only."""

__all__ = ["DotStuffer"]


class DotStuffer:
    """Doubles the dot that begins a line, also where the line end lies in an earlier piece."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b"\r\n"  # the first line begins at once

    def stuff(self, piece: bytes) -> bytes:
        """``piece`` as it is transmitted."""
        text = self._tail + piece
        kept = len(self._tail)
        self._tail = text[-2:]
        # The tail is too short to hold the pattern itself, so the replacement leaves it as it is.
        return text.replace(b"\r\n.", b"\r\n..")[kept:]

    def end(self) -> bytes:
        """The end of data."""
        return b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n"
