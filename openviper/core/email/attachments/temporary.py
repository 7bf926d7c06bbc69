"""Keep content that was read for a message: in memory while it is small, in an unlinked temporary file above that."""

import _thread
import os
import tempfile
from collections.abc import Iterator
from typing import Self
from weakref import finalize

from openviper.core.email.errors import AttachmentRefused

__all__ = ["IN_MEMORY", "ContentWriter", "FileContent"]

IN_MEMORY = 1024 * 1024
"""Bytes up to which content stays in memory."""

_PIECE = 1024 * 1024
# Freeing the blocks of a larger file takes milliseconds, during which an event loop would stand still.
_CLOSE_AT_ONCE = 8 * 1024 * 1024


class FileContent:
    """Bytes in a file without a name, which the system removes after the last reference to this object is gone.

    Any thread may read at any time; reading blocks.
    """

    __slots__ = ("__weakref__", "_descriptor", "_size")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = 0
        # By reference counting and not by a method: a thread may still read or write when its task is cancelled.
        finalize(self, _close, descriptor).atexit = False  # the end of the process closes it

    @classmethod
    def make(cls) -> Self:
        """Make an empty one; blocks.

        Raises:
            OSError: there is no folder for temporary files, or it is full.
        """
        with tempfile.TemporaryFile(prefix="openviper-", buffering=0) as file:
            return cls(os.dup(file.fileno()))

    def __len__(self) -> int:
        return self._size

    def append(self, piece: bytes) -> None:
        """Write ``piece`` behind the rest; blocks.

        Raises:
            OSError: there is no room for it.
        """
        view = memoryview(piece)
        while view:
            count = os.pwrite(self._descriptor, view, self._size)
            self._size += count
            view = view[count:]

    def read(self, start: int = 0, size: int | None = None) -> bytes:
        """Return ``size`` bytes from ``start`` on, fewer at the end; None: all up to the end. Blocks.

        Raises:
            OSError: the file cannot be read.
        """
        end = self._size if size is None else min(start + size, self._size)
        pieces = []
        while start < end:
            piece = os.pread(self._descriptor, end - start, start)
            if not piece:
                raise OSError("the temporary file of an attachment is truncated")
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the content in pieces of a megabyte; blocks."""
        return (self.read(start, _PIECE) for start in range(0, self._size, _PIECE))

    def __repr__(self) -> str:
        return f"<FileContent {self._size} bytes>"


class ContentWriter:
    """Collects the pieces of one content, of which at most ``IN_MEMORY`` bytes and one piece are in memory.

    ``filename`` is for errors.
    """

    def __init__(self, filename: str) -> None:
        self._filename = filename
        self._pieces: list[bytes] = []
        self._pending = 0  # bytes of _pieces
        self._file: FileContent | None = None

    def add(self, piece: bytes) -> bool:
        """Keep ``piece`` in memory; True when it is time for ``flush``."""
        self._pieces.append(piece)
        self._pending += len(piece)
        return self._pending > IN_MEMORY

    def flush(self) -> None:
        """Write what is in memory to a temporary file; blocks.

        Raises:
            AttachmentRefused: it cannot be written.
        """
        pieces, self._pieces, self._pending = self._pieces, [], 0
        try:
            if self._file is None:
                self._file = FileContent.make()
            for piece in pieces:
                self._file.append(piece)
        except OSError as error:
            raise AttachmentRefused(
                self._filename,
                f"is larger than {IN_MEMORY:,} bytes and cannot be kept in a temporary file: "
                f"{error.strerror or error}; set TMPDIR to a folder with enough space",
            ) from error

    @property
    def in_file(self) -> bool:
        """True when a part is in the file already, so that ``finish`` blocks."""
        return self._file is not None

    def finish(self) -> bytes | FileContent:
        """Return the content; blocks if ``in_file``.

        Raises:
            AttachmentRefused: it cannot be written.
        """
        if self._file is None:
            return b"".join(self._pieces)
        self.flush()
        return self._file


def _close(descriptor: int) -> None:
    """Close ``descriptor``; a large file's in a thread."""
    if os.fstat(descriptor).st_size > _CLOSE_AT_ONCE:
        try:
            # Not threading.Thread: this may run inside the garbage collector, while one of its locks is held.
            _thread.start_new_thread(os.close, (descriptor,))
        except RuntimeError:  # the interpreter ends
            pass
        else:
            return
    os.close(descriptor)
