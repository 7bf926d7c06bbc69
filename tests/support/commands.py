"""Commands run as a user runs them: the installed programs, in processes of their own."""

import os
import re
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support import forkserver
from support.forkserver import PROGRAMS
from support.patience import PATIENCE

__all__ = ["Cli", "Served"]


@dataclass
class Served:
    """A running ``viperctl runserver``; ``printed`` grows to everything it said once it has ended."""

    process: subprocess.Popen[str]
    printed: str = field(default="")

    @property
    def address(self) -> str:
        found = re.search(r"served at (http://\S+)", self.printed)
        assert found, self.printed
        return found[1]

    def get(self, path: str = "") -> str:
        with urllib.request.urlopen(self.address + path, timeout=PATIENCE) as response:
            return str(response.read().decode())

    def read_until(self, words: str) -> None:
        """Take in what it prints up to the line with ``words``; fails when it ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line
            if words in line:
                return
        raise AssertionError(f"{words!r} was never printed, but:\n{self.printed}")


class Cli:
    """Runs the programs of the distribution from the folder ``cwd``."""

    def __init__(self, cwd: Path) -> None:
        self._cwd = cwd

    def run(self, *arguments: str | Path, program: str = "viperctl", **env: str) -> subprocess.CompletedProcess[str]:
        """Run to the end, see ``support.forkserver``; ``env`` is added to the environment."""
        command = [PROGRAMS / program, *arguments]
        return _checked(forkserver.run(command, cwd=self._cwd, env=_environment(env)))

    def run_program(self, command: list[str | Path], **env: str) -> subprocess.CompletedProcess[str]:
        """Run any command to the end, in an interpreter that was started for it."""
        environment = _environment(env)
        return _checked(
            subprocess.run(command, cwd=self._cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        )

    @contextmanager
    def serve(self, *arguments: str | Path) -> Iterator[Served]:
        """``viperctl runserver``, started up, until the block ends; then it gets Ctrl+C."""
        process = subprocess.Popen(
            [PROGRAMS / "viperctl", "runserver", *arguments],
            cwd=self._cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        served = Served(process)
        # A server that says nothing fails the test instead of hanging it; with --reload it is two processes.
        watchdog = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
        watchdog.start()
        try:
            served.read_until("Application startup complete")
            yield served
        finally:
            process.send_signal(signal.SIGINT)
            watchdog.cancel()
            served.printed += process.communicate(timeout=PATIENCE)[0]


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "always::ResourceWarning", **more}


def _checked(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    # A command closes what it opened; at the end of the interpreter that can fail.
    assert "ResourceWarning" not in done.stderr, done.stderr
    return done
