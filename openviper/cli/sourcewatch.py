"""``runworker --watch``: start the worker again when the project's source has changed."""

import contextlib
import logging
import os
import signal
import threading
import time
from pathlib import Path

__all__ = ["hang_up_on_change"]

logger = logging.getLogger("openviper.tasks")

_EVERY = 0.5  # seconds between two looks
_NOT_SOURCE = {"__pycache__", "node_modules"}

Sources = dict[Path, tuple[int, int]]


def hang_up_on_change(folder: Path) -> None:
    """Send this process one SIGHUP when a ``.py`` file below ``folder`` has changed and all are still for a moment.

    One, since a second makes Dramatiq's runner kill its workers, and editors write a file in several steps. Call this
    before anything of the project is loaded. The signal waits until the runner, which handles it, lets it through.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    watching = threading.Thread(target=_watch, args=(folder, _sources(folder)), name="source-watch", daemon=True)
    watching.start()


def _watch(folder: Path, before: Sources) -> None:
    while (now := _sources(folder)) == before:
        time.sleep(_EVERY)
    changed = sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))
    while now != before:
        time.sleep(_EVERY)
        before, now = now, _sources(folder)
    logger.info("%s has changed; the worker starts again", ", ".join(map(str, changed)))
    os.kill(os.getpid(), signal.SIGHUP)


def _sources(folder: Path) -> Sources:
    """Time of change and size of each source file; hidden folders and virtual environments are left out."""
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
