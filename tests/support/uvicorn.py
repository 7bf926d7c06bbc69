"""A real uvicorn or hypercorn in a process of its own, for what only a real server shows: signals, timing."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from support.patience import PATIENCE

__all__ = ["Hypercorn", "Uvicorn"]

_ADDRESS = re.compile(r"[Rr]unning on (http://127\.0\.0\.1:(\d+))")


class Uvicorn:
    """``with Uvicorn("module:app", folder) as server:`` serves at ``server.url``; ``server.stop()`` is SIGTERM.

    ``log`` collects what the process prints. It is ended by its process id, killed if SIGTERM does not end it.
    """

    program = "guarded_uvicorn.py"

    def __init__(self, app: str, folder: Path, env: Mapping[str, str] | None = None, *arguments: str) -> None:
        program = Path(__file__).with_name(self.program)
        self._command = [sys.executable, "-P", str(program), app, "--app-dir", str(folder), "--port", "0", *arguments]
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self._folder = folder
        self.log: list[str] = []
        self.url = ""
        self.port = 0
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command,
            cwd=self._folder,
            env=self._env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if not self._ready.wait(PATIENCE) or not self.url:
            self.__exit__(None, None, None)
            raise RuntimeError("the server did not start:\n" + "".join(self.log))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def read_until(self, words: str) -> None:
        """Wait until the process has printed ``words``."""
        deadline = time.monotonic() + PATIENCE
        while not any(words in line for line in tuple(self.log)):
            assert time.monotonic() < deadline, "".join(self.log)
            time.sleep(0.02)

    def stop(self, timeout: float = PATIENCE) -> bool:
        """SIGTERM, then wait. True when the application has shut down in order (uvicorn then re-raises the signal)."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._reader.join()
            assert self.process.stdout is not None
            self.process.stdout.close()
        return any("Finished server process" in line for line in self.log)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            if match := _ADDRESS.search(line):
                self.url, self.port = match[1], int(match[2])
                self._ready.set()
        self._ready.set()


class Hypercorn(Uvicorn):
    """The same with Hypercorn, which takes no further arguments and does not say whether it has shut down in order."""

    program = "guarded_hypercorn.py"
