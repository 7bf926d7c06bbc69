"""Restart the worker when the project's source changes (``runworker --watch``)."""

import contextlib
import logging
import os
import signal
import threading
import time
from pathlib import Path

__all__ = ["hang_up_on_change"]

logger = logging.getLogger("openviper.tasks")

_INTERVAL = 0.5  # seconds between two checks
_NOT_SOURCE = {"__pycache__", "node_modules"}

Sources = dict[Path, tuple[int, int]]


def hang_up_on_change(folder: Path) -> None:
    """Send this process one SIGHUP after a ``.py`` file below ``folder`` changed and no further change followed.

    Only one, because a second SIGHUP makes Dramatiq's runner kill its workers, and editors write a file in several
    steps. Call this before any module of the project is loaded. The signal is blocked until the runner, which handles
    it, unblocks it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    watching = threading.Thread(target=_watch, args=(folder, _sources(folder)), name="source-watch", daemon=True)
    watching.start()


def _watch(folder: Path, before: Sources) -> None:
    while (now := _sources(folder)) == before:
        time.sleep(_INTERVAL)
    changed = sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))
    while now != before:
        time.sleep(_INTERVAL)
        before, now = now, _sources(folder)
    logger.info("%s has changed; restarting the worker", ", ".join(map(str, changed)))
    os.kill(os.getpid(), signal.SIGHUP)


def _sources(folder: Path) -> Sources:
    """Return modification time and size of each source file, except in hidden folders and virtual environments."""
    found: Sources = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _NOT_SOURCE]
        if "pyvenv.cfg" in files:
            folders.clear()
        for name in files:
            if name.endswith(".py"):
                file = Path(place, name)
                with contextlib.suppress(FileNotFoundError):
                    status = file.stat()
                    found[file] = status.st_mtime_ns, status.st_size
    return found
