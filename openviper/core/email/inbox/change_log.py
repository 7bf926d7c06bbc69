"""The names of what has changed in a folder, appended to a file by all processes that use it.

Readers learn from the file's end what they have to read again. Its first line is random and identifies the file, so
that readers notice a new one, with which a file that has become long is replaced.
"""

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["ChangeLog"]

_LINE = 17  # bytes: a name of 16 characters, and the line end
_LONGEST = 2**20  # bytes, above which the file is replaced


class ChangeLog:
    """The log in ``path``. Its methods block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = b""
        self._read = 0  # bytes

    def append(self, names: Iterable[str]) -> None:
        """Add names of 16 characters, after the changes themselves have been made.

        Raises:
            OSError: the file cannot be written.
        """
        lines = "".join([f"{name}\n" for name in names]).encode()
        while not self._append(lines):
            pass

    def _append(self, lines: bytes) -> bool:
        """Return False if the file was replaced meanwhile, or has to be."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            opened = os.fstat(descriptor)
            if opened.st_size > _LONGEST:
                with suppress(FileNotFoundError):
                    self._path.unlink()
                return False
            first_line = b"" if opened.st_size else f"{secrets.token_hex(8)}\n".encode()
            os.write(descriptor, first_line + lines)
            # While the file is open, no other one can have its number.
            with suppress(FileNotFoundError):
                return self._path.stat().st_ino == opened.st_ino
            return False
        finally:
            os.close(descriptor)

    def read(self) -> set[str] | None:
        """Return the names that were added since the last call; None if any may have changed, as before the first."""
        try:
            with self._path.open("rb") as file:
                identity = file.read(_LINE)
                same = identity == self._identity != b""
                file.seek(self._read if same else 0)
                lines = file.read()
        except OSError:
            identity, same, lines = b"", False, b""
        lines = lines[: len(lines) - len(lines) % _LINE]  # the rest is being written
        self._identity = identity
        self._read = len(lines) + (self._read if same else 0)
        return set(lines.decode("ascii", "replace").split()) if same else None
