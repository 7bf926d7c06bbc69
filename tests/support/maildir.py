"""Messages as servers keep them, compared with what was sent."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from support.patience import PATIENCE

__all__ = ["Maildir", "StoredMessage"]

_ADDED = re.compile(
    rb"(?P<name>return-path|received|delivered-to|envelope-to|x-original-to):(?P<value>.*(?:\n[ \t].*)*)\n",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class StoredMessage:
    """A message as a server keeps it: ``content`` has LF and is without the header fields that the server added."""

    recipients: tuple[str, ...]
    content: bytes

    @classmethod
    def of(cls, content: bytes, recipients: Sequence[str] = ()) -> Self:
        """Split what the server put on top; ``recipients`` where no field there names them."""
        content = content.replace(b"\r\n", b"\n")
        found = list(recipients)
        while (match := _ADDED.match(content)) is not None:
            if match["name"].lower() in (b"delivered-to", b"envelope-to"):
                found += match["value"].decode().replace(",", " ").split()
            content = content[match.end() :]
        return cls(tuple(found), content)


class Maildir:
    """A folder with a file for each message."""

    def __init__(self, folder: Path, log: Callable[[], str]) -> None:
        self._folder = folder
        self._log = log
        self._seen: set[str] = set()

    def take(self, deliveries: int) -> list[StoredMessage]:
        """Wait until the messages that nobody has taken yet are for so many recipients, and return them."""
        end = time.monotonic() + PATIENCE
        while True:
            messages = {name: self._read(name) for name in self._names() - self._seen}
            if sum(len(message.recipients) for message in messages.values()) >= deliveries:
                self._seen |= messages.keys()
                return list(messages.values())
            assert time.monotonic() < end, f"{messages.values()} and no more:\n{self._log()[-3000:]}"
            time.sleep(0.05)

    def _read(self, name: str) -> StoredMessage:
        return StoredMessage.of((self._folder / "new" / name).read_bytes())

    def _names(self) -> set[str]:
        folder = self._folder / "new"
        return {file.name for file in folder.iterdir()} if folder.is_dir() else set()
