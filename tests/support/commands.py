"""Commands run as a user runs them: real processes of the installed programs."""

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

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
        """Run to the end; ``env`` is added to the environment."""
        return self.run_program([_program(program), *arguments], **env)

    def run_program(self, command: list[str | Path], **env: str) -> subprocess.CompletedProcess[str]:
        """Run any command to the end. It closes what it opened; at the end of the interpreter that can fail."""
        shown = {**os.environ, "PYTHONWARNINGS": "always::ResourceWarning", **env}
        done = subprocess.run(command, cwd=self._cwd, env=shown, capture_output=True, text=True, timeout=PATIENCE)
        assert "ResourceWarning" not in done.stderr, done.stderr
        return done

    @contextmanager
    def serve(self, *arguments: str | Path) -> Iterator[Served]:
        """``viperctl runserver``, started up, until the block ends; then it gets Ctrl+C."""
        process = subprocess.Popen(
            [_program("viperctl"), "runserver", *arguments],
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


def _program(name: str) -> Path:
    return Path(sys.executable).with_name(name)
