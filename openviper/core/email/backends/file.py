"""Write messages as ``.eml`` files, which mail clients open."""

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

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_TEMPORARY_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR, errno.ENOMEM}
)

_numbers = itertools.count()


class FileBackend(EmailBackend):
    """Backend that writes each message to a file in the folder ``EMAIL["file_dir"]``, readable by its owner only.

    The names sort by time and contain nothing of the message. ``NAME.eml`` has exactly the message's bytes, and
    ``NAME.json`` the envelope, because Bcc recipients are nowhere else. A file with its final name is complete and on
    the disk.
    """

    keeps_mail = True

    def __init__(self, settings: EmailSettings) -> None:
        super().__init__(settings)
        self.folder = settings.file_dir

    async def open(self) -> None:
        """Create the folder if it is missing.

        Raises:
            ImproperlyConfigured: it cannot be created.
        """
        try:
            self.folder = await asyncio.to_thread(_make_folder, self.folder)
        except OSError as error:
            raise ImproperlyConfigured(
                f'EMAIL["file_dir"]: cannot create the folder {shown(str(self.folder), whole=200)}: '
                f"{error.strerror or error}; give a folder that this process may write to"
            ) from error

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Write ``message``.

        Raises:
            DeliveryError: the files cannot be written; temporary if the disk is full or descriptors are short.
        """
        name = _new_name()
        try:
            await asyncio.to_thread(_write_message, self.folder, name, message)
        except OSError as error:
            text = f'EMAIL["file_dir"]: cannot write to {shown(str(self.folder), whole=200)}: {error.strerror or error}'
            raise DeliveryError(text, temporary=error.errno in _TEMPORARY_ERRNOS, summary=text) from error
        return DeliveryReport(accepted=message.envelope.recipients, response=f"written to {name}.eml")


def _new_name() -> str:
    # The number keeps the order within a microsecond; the random part differs between processes and machines.
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{next(_numbers):06d}-{secrets.token_hex(4)}"


def _make_folder(folder: Path) -> Path:
    # Absolute from here on, because the working directory may change.
    absolute = folder.absolute()
    absolute.mkdir(parents=True, exist_ok=True)
    return absolute


def _write_message(folder: Path, name: str, message: OutgoingMessage) -> None:
    _make_folder(folder)
    envelope = {
        "message_id": message.message_id,
        "sender": message.envelope.sender,
        "recipients": message.envelope.recipients,
    }
    # The message gets its final name last, so that a reader who sees it also finds the envelope.
    envelope_path = folder / f"{name}.json"
    _write_file(envelope_path, (json.dumps(envelope, indent=1).encode(), b"\n"))
    try:
        _write_file(folder / f"{name}.eml", message.content)
    except BaseException:
        envelope_path.unlink(missing_ok=True)
        raise
    _sync_folder(folder)


def _write_file(path: Path, content: Iterable[bytes]) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    try:
        descriptor = os.open(unfinished, _NEW_FILE, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
