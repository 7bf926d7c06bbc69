"""Keep the pause flag in a file of the folder ``EMAIL["state_dir"]``."""

import os
import secrets
import stat
import time
from contextlib import suppress
from pathlib import Path

from openviper.core.email.delivery.pause.store import FlagUnreadable, StoredFlag
from openviper.core.email.errors import QueueUnavailable
from openviper.exceptions import ImproperlyConfigured
from openviper.text import shown

__all__ = ["FolderPauseStore"]

_NAME = "paused.json"
_LARGEST = 1024 * 1024
_FLAGS = {"read": os.O_RDONLY, "write": os.O_WRONLY | os.O_CREAT | os.O_EXCL}
# O_NONBLOCK: opening a FIFO must not hang. Windows lacks these flags, and has O_BINARY.
_ALWAYS = 0
for _name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
    _ALWAYS |= getattr(os, _name, 0)


class FolderPauseStore:
    """Keeps the flag in ``folder``, for the processes of one user on this machine.

    The folder is created with mode 0700. It and the file must belong to this process's user and be no symbolic links,
    so that no other user of the machine can stop mail, or let it go on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._file = self._folder / _NAME

    @property
    def identity(self) -> object:
        """Return what two stores of the same flag have in common."""
        return "folder", self._folder

    @property
    def address(self) -> str:
        """Return the file's path."""
        return str(self._file)

    def open(self) -> None:
        """Create the folder, or check it.

        Raises:
            ImproperlyConfigured: it cannot be created, or is not a folder of this process's user alone.
        """
        try:
            with suppress(FileExistsError):
                self._folder.mkdir(mode=0o700)
            fault = self._fault()
        except OSError as error:
            fault = f"cannot be used: {error.strerror or error}"
        if fault is not None:
            raise ImproperlyConfigured(f'EMAIL["state_dir"]: {shown(str(self._folder), whole=200)} {fault}')

    def read(self) -> StoredFlag:
        """Return the content of the file; the time is this machine's.

        Raises:
            FlagUnreadable: the folder or the file cannot be read, or belongs to somebody else.
        """
        now = time.time()
        try:
            fault = self._fault()
            data = None if fault is not None else self._read_file()
        except FileNotFoundError:
            return StoredFlag(None, now)
        except OSError as error:
            raise FlagUnreadable(f"{self._file} cannot be read: {error.strerror or error}", now) from error
        if fault is not None:
            raise FlagUnreadable(f"{self._folder} {fault}", now)
        return StoredFlag(data, now)

    def write(self, data: bytes, *, expected: bytes | None) -> bool:
        """Replace the file in one step.

        Raises:
            QueueUnavailable: it cannot be written.
        """
        self.open()
        unfinished = self._folder / f".{_NAME}.{secrets.token_hex(8)}"
        try:
            descriptor = os.open(unfinished, _FLAGS["write"] | _ALWAYS, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                if expected is not None and not self._holds(expected):
                    return False
                unfinished.replace(self._file)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise QueueUnavailable(
                f'EMAIL["state_dir"]: {self._file} cannot be written: {error.strerror or error}'
            ) from error
        return True

    def close(self) -> None:
        """Do nothing: nothing is kept open."""

    def _holds(self, expected: bytes) -> bool:
        try:
            return (self.read().data or b"") == expected
        except FlagUnreadable:
            return False

    def _fault(self) -> str | None:
        """Return what keeps the folder from being used, with the remedy; None if nothing does."""
        found = self._folder.lstat()
        if stat.S_ISLNK(found.st_mode):
            return "is a symbolic link; name the folder itself"
        if not stat.S_ISDIR(found.st_mode):
            return "is not a folder"
        if not hasattr(os, "geteuid"):
            return None  # Windows, where the folder above decides who may use it
        if found.st_uid != os.geteuid():
            return (
                f"belongs to user {found.st_uid}, and this process runs as user {os.geteuid()}; run web processes, "
                "workers and commands as the same user"
            )
        if found.st_mode & 0o077:
            return f"may be used by other users; chmod 700 {self._folder}"
        return None

    def _read_file(self) -> bytes:
        descriptor = os.open(self._file, _FLAGS["read"] | _ALWAYS)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise OSError("it is not a regular file")
            if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
                raise OSError(f"it belongs to user {found.st_uid}")
            data = file.read(_LARGEST + 1)
            if len(data) > _LARGEST:
                raise OSError("it is too large")
            return data
