"""Projects with a broker, and ``viperctl runworker`` in processes of its own on them."""

import itertools
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from types import TracebackType
from typing import Any, Self

from support import forkserver
from support.forkserver import PROGRAMS, Process
from support.patience import PATIENCE

__all__ = ["NamedRelay", "NamedWorker", "Worker", "viperctl", "write_project"]

_numbers = itertools.count(1)  # of log files; Python gives the id of an object that is gone to another one


def write_project(folder: Path, *, tasks: Mapping[str, Any], email: Mapping[str, Any], **more: Any) -> Path:
    """A project folder of settings alone; ``more`` are those besides ``TASKS`` and ``EMAIL``."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"TASKS": dict(tasks), "EMAIL": {"default_sender": "shop@example.com", **email}, **more}
    (folder / "settings.py").write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    return folder


def viperctl(*arguments: str | Path, **env: str) -> CompletedProcess[str]:
    """Run a command to its end."""
    return forkserver.run([PROGRAMS / "viperctl", *arguments], env={**os.environ, **env})


class Worker:
    """A worker on a project; it is ready when the ``with`` block begins, and stopped at its end."""

    ready_words = "ready for action"

    def __init__(
        self,
        project: Path,
        *options: str,
        processes: int = 1,
        threads: int = 4,
        log_folder: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._command: list[str | Path] = [PROGRAMS / "viperctl", "runworker", project]
        self._command += ["--processes", str(processes), "--threads", str(threads), *options]
        self._log = (log_folder or project) / f"worker-{next(_numbers)}.log"
        self._env = {**os.environ, **(env or {})}
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """Of the runner, and of the process group of all."""
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def ended(self) -> bool:
        """True when it runs no more, or was never started."""
        return self._process is None or self._process.poll() is not None

    @property
    def ready(self) -> bool:
        """True once it works."""
        return self.ready_words in self.output

    @property
    def session(self) -> int:
        """The process group of the runner and its processes."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, ready: bool = True) -> None:
        """Start; a session of its own, so that the runner and its processes can be killed together."""
        already = self.output.count(self.ready_words)
        with self._log.open("ab") as log:
            self._process = forkserver.start(
                self._command, stdout=log, stderr=log, env=self._env, start_new_session=True
            )
        if ready:
            self.wait_for(self.ready_words, times=already + 1)

    def wait_for(self, words: str, *, times: int = 1) -> None:
        """Until it has logged these words so often."""
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE
        while self.output.count(words) < times:
            assert self._process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to the runner and all its processes at once."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE)

    def signal_end(self) -> None:
        """One SIGTERM to the runner."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def terminate(self, timeout: float = PATIENCE) -> int:
        """One SIGTERM to the runner; returns how it ended."""
        self.signal_end()
        return self.wait(timeout)

    def wait(self, timeout: float = PATIENCE) -> int:
        """How it ended by itself."""
        assert self._process is not None
        return self._process.wait(timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        try:
            self.signal_end()
            self._wait_until_idle()
        finally:
            self.kill()

    def _wait_until_idle(self) -> None:
        """Until every process has handed its messages back; the programs then take seconds more to end."""
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            output = self.output
            if output.count("Worker has been shut down") >= output.count("ready for action"):
                return
            assert time.monotonic() < deadline, output
            time.sleep(0.05)


class NamedWorker(Worker):
    """Says its name to the mail server."""

    def __init__(self, project: Path, name: str, *, env: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(project, env={**(env or {}), "EMAIL_LOCAL_HOSTNAME": name}, **options)
        self.name = name


class NamedRelay(NamedWorker):
    """``viperctl email relay``, which says its name to the mail server."""

    ready_words = "Relay of "

    def __init__(self, project: Path, name: str, *, env: Mapping[str, str] | None = None) -> None:
        super().__init__(project, name, env=env)
        self._command = [PROGRAMS / "viperctl", "email", "relay", "--project", project]
