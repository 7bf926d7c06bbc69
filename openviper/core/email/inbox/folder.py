"""The inbox as files, which several processes may write at the same time.

Each message is a folder named by its key: ``message.json`` (fields and envelope), ``message.eml`` (its bytes),
``part-0``, ... (attachments), ``footprint`` (its total size) and ``steps`` (lines of JSON, appended: one for each event
and for each mark as read or unread). A rename adds a complete folder, and another one removes it. The file ``changes``
has the keys of messages that were added, changed or removed, so that only those are looked at again.
"""

import logging
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from openviper.core.email.events import MessageEvent
from openviper.core.email.inbox.change_log import ChangeLog
from openviper.core.email.inbox.entries import Entry, Listing, TimelineStep, begins, footprint, key_of
from openviper.core.email.inbox.records import (
    parse_entry,
    parse_read_mark,
    parse_step,
    serialise_event,
    serialise_message_fields,
    serialise_read_mark,
)
from openviper.core.email.inbox.store import MAX_BYTES, MAX_MESSAGES
from openviper.core.email.message import OutgoingMessage

__all__ = ["Folder", "Unwritten"]

logger = logging.getLogger("openviper.email")

_KEY = re.compile("[0-9a-f]{16}")
_MAX_DELAY = 2.0  # seconds between an event and the moment at which its process writes it
_ROOM_EVERY = 50  # messages added, after which room is made
_COMPARE_EVERY = 60.0  # seconds after which all messages are compared: a process may have been killed before its note
_ARRIVED = attrgetter("arrived")
_ABANDONED_AFTER = 600.0  # seconds after which an unfinished folder, left by a killed process, is removed


class _Kept(NamedTuple):
    """When a message of the folder began, in Unix seconds, and its footprint in bytes."""

    began: float
    size: int


class Unwritten:
    """Events of one message that are to be written, the first of which is ``event``.

    ``message`` may be set to None where it need not be added if it is not in the folder.
    """

    __slots__ = ("began", "key", "lines", "message")

    def __init__(self, event: MessageEvent) -> None:
        self.key = key_of(event.message_id)
        self.message: OutgoingMessage | None = event.message
        self.began = begins(event)
        self.lines: list[bytes] = []
        self.add(event)

    def add(self, event: MessageEvent) -> None:
        """Add a further event of the same message."""
        self.lines.append(serialise_event(event).encode())


class Folder:
    """Messages in ``path``, created if missing. All methods block; use it from one thread at a time."""

    def __init__(self, path: Path, *, max_messages: int = MAX_MESSAGES, max_bytes: int = MAX_BYTES) -> None:
        self._folder = path
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._changes = ChangeLog(path / "changes")
        self._compared = -math.inf  # time.monotonic() of the last comparison of all messages
        self._version = 0  # of all messages
        self._sizes: dict[str, int] = {}  # of the files ``steps``, as last seen
        self._stale: set[str] = set()  # keys of messages that entries() has to read
        self._entries: dict[str, Entry] = {}  # as read, oldest first if they are in order
        self._read_sizes: dict[str, int] = {}  # of the files ``steps`` from which these were read
        self._in_order = True
        self._newest = 0  # the greatest ``arrived`` of all that were read
        self._listed: Listing | None = None
        self._kept: dict[str, _Kept] = {}
        self._unweighed: set[str] = set()  # keys of messages that are not among those kept yet
        self._bytes = 0
        self._failing = False

    def write(self, event: MessageEvent) -> None:
        """Write one event; see :meth:`write_all`."""
        self.write_all([Unwritten(event)])

    def write_all(self, unwritten: Iterable[Unwritten]) -> None:
        """Write events, and with a message's first event the message. Logs once that the folder is not writable.

        A message that is older than all of a full folder is left out: it was removed for newer ones.
        """
        self._weigh()
        written, added = [], 0
        for each in unwritten:
            with self._logged_failure():
                added += self._append(each)
                written.append(each.key)
            if added >= _ROOM_EVERY:
                self._note(written)
                self._make_room()
                written, added = [], 0
        self._note(written)
        if added:
            self._make_room()

    @contextmanager
    def _logged_failure(self) -> Iterator[None]:
        """Log the first of several failures in a row, and continue after the block."""
        try:
            yield
            self._failing = False
        except OSError as error:
            if not self._failing:
                logger.error(
                    'EMAIL["inbox_dir"]: cannot write to %s: %s; make it writable for this process',
                    self._folder,
                    error,
                )
            self._failing = True

    def _note(self, keys: Sequence[str]) -> None:
        """Let all processes look again at messages that were added, changed or removed."""
        if keys:
            with self._logged_failure():
                self._changes.append(keys)

    def _append(self, unwritten: Unwritten) -> bool:
        """Return True if it has added a message."""
        steps = self._folder / unwritten.key / "steps"
        lines = b"".join(unwritten.lines)
        try:
            _append_line(steps, lines)
        except FileNotFoundError:
            message = unwritten.message
            if message is None or self._has_outlived(unwritten.began, footprint(message)):
                return False
            self._add(unwritten.key, message, lines, unwritten.began)
            return True
        return False

    def _has_outlived(self, began: float, size: int) -> bool:
        if len(self._kept) < self._max_messages and self._bytes + size <= self._max_bytes:
            return False
        # Where the oldest is of the future, the clock was set back.
        return began < min(kept.began for kept in self._kept.values()) <= time.time()

    def _add(self, key: str, message: OutgoingMessage, line: bytes, began: float) -> None:
        size = footprint(message)
        unfinished = self._folder / f".new-{secrets.token_hex(8)}"
        unfinished.mkdir(parents=True, mode=0o700)
        try:
            (unfinished / "message.json").write_text(serialise_message_fields(message), encoding="utf-8")
            with (unfinished / "message.eml").open("wb") as file:
                file.writelines(message.content)
            for index, part in enumerate(message.prepared.attachments):
                with (unfinished / f"part-{index}").open("wb") as file:
                    file.writelines((part.stored,) if isinstance(part.stored, bytes) else part.stored)
            (unfinished / "footprint").write_text(str(size), encoding="ascii")
            os.utime(unfinished / "footprint", (began, began))
            (unfinished / "steps").write_bytes(line)
            unfinished.rename(self._folder / key)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            # Another process may have added the same message first.
            if not (self._folder / key / "steps").is_file():
                raise
            with (self._folder / key / "steps").open("ab") as file:
                file.write(line)
        self._keep(key, _Kept(began, size))

    def _keep(self, key: str, kept: _Kept) -> None:
        self._forget(key)
        self._kept[key] = kept
        self._bytes += kept.size

    def _forget(self, key: str) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self._bytes -= kept.size

    def _follow(self) -> None:
        """Learn which messages were added, changed and removed since the last call, by this process or another."""
        changed = self._changes.read()
        if changed is not None and time.monotonic() - self._compared < _COMPARE_EVERY:
            for key in filter(_is_key, changed):
                self._look_at(key)
            return
        self._compared = time.monotonic()
        names = self._names()
        for key in {*self._sizes, *self._kept}.difference(names):
            self._drop(key)
        for name in names:
            if _is_key(name):
                self._look_at(name)
            elif name.startswith(".") and "-" in name:
                with suppress(OSError):
                    if time.time() - (self._folder / name).stat().st_mtime > _ABANDONED_AFTER:
                        shutil.rmtree(self._folder / name, ignore_errors=True)

    def _look_at(self, key: str) -> None:
        try:
            size = self._steps_size(key)
        except OSError:
            self._drop(key)
            return
        if self._sizes.get(key) != size:
            self._sizes[key] = size
            self._version += 1
        if self._read_sizes.get(key) != size:
            self._stale.add(key)
        if key not in self._kept:
            self._unweighed.add(key)

    def _drop(self, key: str) -> None:
        """Forget a message that is not in the folder any more."""
        self._forget(key)
        self._unweighed.discard(key)
        self._stale.discard(key)
        if self._sizes.pop(key, None) is not None:
            self._version += 1
        self._forget_entry(key)

    def _forget_entry(self, key: str) -> None:
        if self._entries.pop(key, None) is not None:
            del self._read_sizes[key]
            self._listed = None

    def _weigh(self) -> None:
        """Learn when the messages of other processes began, and their sizes."""
        self._follow()
        for key in self._unweighed:
            path = self._folder / key / "footprint"
            with suppress(OSError, ValueError):
                self._keep(key, _Kept(path.stat().st_mtime, int(path.read_text(encoding="ascii"))))
        self._unweighed.clear()

    def _make_room(self) -> None:
        """Remove the oldest messages beyond the limits; one always stays."""
        self._weigh()
        if self._fits():
            return
        removed = []
        for key in sorted(self._kept, key=lambda key: self._kept[key].began)[:-1]:
            if self._remove(key):
                removed.append(key)
            if self._fits():
                break
        self._note(removed)

    def _fits(self) -> bool:
        return len(self._kept) <= self._max_messages and self._bytes <= self._max_bytes

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._folder)  # noqa: PTH208 - names are wanted, not paths
        except OSError:  # does not exist yet; write_all() logs a folder that is not writable
            return []

    def all_keys(self) -> list[str]:
        """Return the keys of all messages, in any order."""
        return [name for name in self._names() if _is_key(name)]

    def entries(self) -> Listing:
        """Return all messages, newest first; the same object until one of them changes."""
        self._follow()
        for key in self._stale:
            self.entry(key)
        self._stale.clear()
        if self._listed is None:
            if not self._in_order:
                self._entries = {entry.key: entry for entry in sorted(self._entries.values(), key=_ARRIVED)}
                self._in_order = True
            self._listed = Listing(reversed(self._entries.values()))
            if self._listed:
                self._listed.newest_arrival = self._listed[0].arrived
        return self._listed

    def entry(self, key: str) -> Entry | None:
        """Return the message without the contents of its attachments; None if there is none."""
        if not _is_key(key):
            return None
        entry = self._entries.get(key)
        path = self._folder / key
        try:
            if entry is not None and self._read_sizes[key] == self._steps_size(key):
                return entry
            lines = (path / "steps").read_bytes()
            steps, read = _read_steps(lines)
            arrived = None if entry is None else entry.arrived
            if entry is None:
                record = (path / "message.json").read_text(encoding="utf-8")
                entry = parse_entry(key, record, steps, read=read)
            else:
                entry = replace(entry, steps=steps, read=read)
        except (OSError, ValueError, LookupError, TypeError) as error:
            if not isinstance(error, FileNotFoundError):  # another process has removed it
                logger.warning('EMAIL["inbox_dir"]: cannot read %s as a message: %s', path, error)
            self._forget_entry(key)
            return None
        if entry.arrived < self._newest if arrived is None else entry.arrived != arrived:
            self._in_order = False
        self._newest = max(self._newest, entry.arrived)
        self._entries[key] = entry
        self._read_sizes[key] = len(lines)
        self._listed = None
        return entry

    def _steps_size(self, key: str) -> int:
        # Without a Path: making one takes longer than the call to the system, and there may be thousands.
        return os.stat(f"{self._folder}/{key}/steps").st_size  # noqa: PTH116

    def load(self, key: str) -> OutgoingMessage | None:
        """Return the whole message; None if there is none."""
        entry = self.entry(key)
        if entry is None:
            return None
        path = self._folder / key
        try:
            content = (path / "message.eml").read_bytes()
            parts = tuple(
                replace(part, content=(path / f"part-{index}").read_bytes())
                for index, part in enumerate(entry.prepared.attachments)
            )
        except FileNotFoundError:
            return None
        envelope = entry.envelope._replace(recipients=entry.steps[-1].recipients)
        return OutgoingMessage(entry.prepared._replace(attachments=parts), envelope, (content,), entry.size)

    def mark_read(self, key: str, *, read: bool) -> bool:
        """Mark the message as read or unread; return False if it is already, or does not exist."""
        entry = self.entry(key)
        if entry is None or entry.read is read:
            return False
        with suppress(FileNotFoundError):  # another process has removed it
            _append_line(self._folder / key / "steps", serialise_read_mark(read=read))
        self._note([key])
        return True

    def remove(self, key: str) -> None:
        """Remove one message."""
        if _is_key(key) and self._remove(key):
            self._note([key])

    def remove_all(self) -> None:
        """Remove all messages."""
        self._note([key for key in self.all_keys() if self._remove(key)])

    def _remove(self, key: str) -> bool:
        """Return False if another process has removed the message."""
        self._forget(key)
        removed = self._folder / f".old-{secrets.token_hex(8)}"
        with suppress(OSError):
            (self._folder / key).rename(removed)
            shutil.rmtree(removed, ignore_errors=True)
            return True
        return False

    def version(self) -> int:
        """Return a number that differs after each change, other processes' changes included."""
        self._follow()
        return self._version


def _is_key(name: str) -> bool:
    return _KEY.fullmatch(name) is not None


def _append_line(path: Path, lines: bytes) -> None:
    # A single append, so that lines from two processes do not mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, lines)
    finally:
        os.close(descriptor)


def _read_steps(content: bytes) -> tuple[tuple[TimelineStep, ...], bool]:
    """Return the steps in the order in which they happened, whatever the order of writing, and the last read mark."""
    lines = content.decode("utf-8").splitlines()
    marks = [mark for line in lines if (mark := parse_read_mark(line)) is not None]
    steps = sorted((step for line in lines if (step := parse_step(line)) is not None), key=lambda step: step.at)
    if not steps:
        raise ValueError("its file 'steps' has no valid line")
    # A worker may start sending before the process that queued the message has recorded "queued".
    start = next((index for index, step in enumerate(steps) if step.kind == "sending"), len(steps))
    for index in range(start + 1, len(steps)):
        if steps[index].kind == "queued" and steps[index].at - steps[start].at < _MAX_DELAY:
            steps.insert(start, steps.pop(index))
            break
    return tuple(steps), bool(marks) and marks[-1]
