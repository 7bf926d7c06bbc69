"""Terminals: a stream that is one, and programs that run on one."""

import os
import pty
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import TextIO

from support.patience import PATIENCE

__all__ = ["on_a_terminal", "terminal"]


@contextmanager
def terminal() -> Iterator[tuple[TextIO, list[bytes]]]:
    """A stream that is a terminal, and what was written to it once the block has ended."""
    ours, theirs = pty.openpty()
    written: list[bytes] = []
    reader = Thread(target=_read, args=(ours, written))
    reader.start()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        yield stream, written
    reader.join(PATIENCE)
    os.close(ours)


def on_a_terminal(command: list[str], **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a command whose output is a terminal; standard error is read there, too."""
    environment = {**os.environ, "TERM": "xterm-256color", **env}
    with terminal() as (stream, written):
        done = subprocess.run(command, stdout=stream, stderr=stream, env=environment, timeout=PATIENCE)
    printed = b"".join(written).decode().replace("\r\n", "\n")
    return subprocess.CompletedProcess(command, done.returncode, printed)


def _read(side: int, written: list[bytes]) -> None:
    try:
        while more := os.read(side, 4096):
            written.append(more)
    except OSError:
        pass  # Linux says so when the other side has ended
