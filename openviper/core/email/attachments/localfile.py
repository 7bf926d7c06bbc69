"""Read a local file as an attachment: regular files only, inside the allowed folders, within the limit."""

import errno
import os
import stat
import sys
from collections.abc import Sequence

from openviper.core.email.attachments.bytelimit import ByteLimit
from openviper.core.email.attachments.temporary import ContentWriter, FileContent
from openviper.core.email.errors import AttachmentRefused
from openviper.text import shown

__all__ = ["read_file"]

_CHUNK = 1024 * 1024

# O_NONBLOCK: opening a FIFO without a writer must not hang; the check of the kind comes after the opening, because
# what a path names can change in between. Windows lacks these flags, and has O_BINARY.
_FLAGS = os.O_RDONLY
for _name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_file(path: str, *, dirs: Sequence[str] | None, limit: ByteLimit) -> bytes | FileContent:
    """Read ``path``, a large one into a temporary file; blocking, so call it in a thread.

    Symbolic links are followed; ``~`` is not expanded. ``dirs`` are the folders that may be read from, after all
    links are resolved: None for no limit, empty for none at all. At most one byte more than ``limit`` is read.

    Raises:
        AttachmentRefused: missing, not readable, not a regular file, outside ``dirs``, or too large.
    """
    roots = None if dirs is None else [os.path.realpath(directory) for directory in dirs]
    try:
        if roots is not None:
            # Before anything else: whether a file outside exists must not show in the error.
            _check_inside(os.path.realpath(path), roots, path, limit)
        _check_regular(os.stat(path).st_mode, path, limit)  # noqa: PTH116 first, as opening a device may act on it
        descriptor = os.open(path, _FLAGS)
        try:
            opened = os.fstat(descriptor)
            _check_regular(opened.st_mode, path, limit)
            if roots is not None:
                _check_inside(_real_path(descriptor), roots, path, limit)
            limit.announce(opened.st_size)
            return _read(descriptor, limit)
        finally:
            os.close(descriptor)
    except AttachmentRefused:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            place = "" if os.path.isabs(path) else f" in the working directory {_shown(os.getcwd())}"  # noqa: PTH109, PTH117
            reason = f"there is no file {_shown(path)}{place}; a str is a path or a URL, "
            reason += 'text is given as {"content": ...}'
            raise AttachmentRefused(limit.filename, reason) from None
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise AttachmentRefused(limit.filename, f"cannot read {_shown(path)}: {reason}") from error


def _shown(path: str) -> str:
    # Longer ones are content that was given as a path by mistake.
    return shown(path, whole=200)


def _check_regular(mode: int, path: str, limit: ByteLimit) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for matches, name in _KINDS if matches(mode)), "something special")
    raise AttachmentRefused(limit.filename, f"{_shown(path)} is {kind}; only regular files can be attached")


def _check_inside(real_path: str, roots: Sequence[str], path: str, limit: ByteLimit) -> None:
    if any(os.path.commonpath((root, real_path)) == root for root in roots):
        return
    raise AttachmentRefused(limit.filename, f"""{_shown(path)} is outside the folders of EMAIL["attachment_dirs"]""")


def _real_path(descriptor: int) -> str:
    """Return the path of the opened file, which no later change of a link can alter."""
    if sys.platform == "darwin":
        import fcntl

        return os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 a text of the kernel, not a path to follow


def _read(descriptor: int, limit: ByteLimit) -> bytes | FileContent:
    writer = ContentWriter(limit.filename)
    while chunk := os.read(descriptor, min(_CHUNK, limit.room + 1)):
        limit.spend(len(chunk))
        if writer.add(chunk):
            writer.flush()
    return writer.finish()
