"""Writes messages as ``.eml`` files, which mail programs open."""

import asyncio
import errno
import itertools
import json
import os
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.errors import DeliveryError
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured
from openviper.text import shown

__all__ = ["FileBackend"]

_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR, errno.ENOMEM})

_numbers = itertools.count()


class FileBackend(EmailBackend):
    """Writes each message to a file of its own in the folder ``EMAIL["file_dir"]``, readable by its owner only.

    The names sort by time and hold nothing of the message. Beside ``NAME.eml``, which has exactly the message's bytes,
    lies ``NAME.json`` with the envelope, since Bcc recipients are nowhere else. A file that bears its name is complete
    and on the disk.
    """

    def __init__(self, settings: EmailSettings) -> None:
        super().__init__(settings)
        self.folder = settings.file_dir

    async def open(self) -> None:
        """Make the folder where it is missing.

        Raises:
            ImproperlyConfigured: it cannot be made.
        """
        try:
            self.folder = await asyncio.to_thread(_make, self.folder)
        except OSError as error:
            raise ImproperlyConfigured(
                f'EMAIL["file_dir"]: cannot make the folder {shown(str(self.folder), whole=200)}: '
                f"{error.strerror or error}; give a folder that this process may write to"
            ) from error

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Write ``message``.

        Raises:
            DeliveryError: the files cannot be written; temporary when the disk is full or descriptors are short.
        """
        name = _new_name()
        try:
            await asyncio.to_thread(_write, self.folder, name, message)
        except OSError as error:
            raise DeliveryError(
                f'EMAIL["file_dir"]: cannot write to {shown(str(self.folder), whole=200)}: {error.strerror or error}',
                temporary=error.errno in _PASSING,
            ) from error
        return DeliveryReport(accepted=message.envelope.recipients, response=f"written to {name}.eml")


def _new_name() -> str:
    # The number keeps the order within a microsecond, the random part keeps processes and machines apart.
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{next(_numbers):06d}-{secrets.token_hex(4)}"


def _make(folder: Path) -> Path:
    # Absolute from here on: the working directory may change, where mail goes may not.
    absolute = folder.absolute()
    absolute.mkdir(parents=True, exist_ok=True)
    return absolute


def _write(folder: Path, name: str, message: OutgoingMessage) -> None:
    _make(folder)
    envelope = {
        "message_id": message.message_id,
        "sender": message.envelope.sender,
        "recipients": message.envelope.recipients,
    }
    # The message gets its name last, so that whoever sees it finds the envelope.
    beside = folder / f"{name}.json"
    _write_file(beside, (json.dumps(envelope, indent=1).encode(), b"\n"))
    try:
        _write_file(folder / f"{name}.eml", message.content)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(folder)


def _write_file(path: Path, content: Iterable[bytes]) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
