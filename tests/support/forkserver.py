"""Run Python programs by forking a process that has their libraries loaded, instead of an interpreter for each.

::

    done = run([PROGRAMS / "viperctl", "email", "status"], cwd=folder)
    assert done.returncode == 0, done.stderr

A fresh interpreter needs most of a second of computing to import the libraries of a command. A fork server imports
them once for each test process and forks for each program, which then runs as in an interpreter of its own: with its
arguments, environment, folder, files, session, signals and exit status, and with the interpreter's finalisation at its
end. A program that would notice a difference gets an interpreter of its own; see ``_forkable``.
"""

import atexit
import functools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from support.patience import PATIENCE

__all__ = ["PROGRAMS", "ForkedProcess", "Process", "run", "start"]

PROGRAMS = Path(sys.executable).parent

# Not here: what reads the environment when it is imported (dramatiq), what a command looks for among the loaded
# modules (openviper.core.email.asgi), and a library that a test's project hides (dns).
_LIBRARIES = [
    "aiosmtplib", "aiosqlite", "argparse", "asyncpg", "cryptography.x509", "httpx", "jinja2",
    "markdown", "multiprocessing.connection", "multiprocessing.popen_fork", "multiprocessing.sharedctypes",
    "openviper.cli", "openviper.core.email", "openviper.core.email.inbox.app", "pika", "pydantic", "redis",
    "selectolax.lexbor", "sqlalchemy.ext.asyncio", "starlette.applications", "uvicorn", "watchdog.observers",
]  # fmt: skip

# Variables that an interpreter or a library reads once, when it starts or is imported.
_READ_AT_START = re.compile(r"(PYTHON(?!WARNINGS$|UNBUFFERED$)|LC_|LANG|LD_|OPENSSL_|SSL_|COVERAGE_)")
_PATH = "PYTHONPATH"


class ForkedProcess:
    """The part of ``subprocess.Popen`` that tests use, for a process of the fork server.

    As there, its process id is not given to another process before ``poll`` or ``wait`` has returned its exit status.
    """

    def __init__(self, server: "_ForkServer", request: dict[str, Any], files: Sequence[int]) -> None:
        self.returncode: int | None = None
        self._reading = threading.Lock()
        self._status, theirs = socket.socketpair()
        with theirs:
            server.fork(request, [*files, theirs.fileno()])
        self._lines = self._status.makefile()
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """Return the exit status, or the negative number of the signal that ended it; None while it runs."""
        self._read_status(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait at most ``timeout`` seconds for its end.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        self._read_status(timeout)
        if self.returncode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def _read_status(self, timeout: float | None) -> None:
        if self.returncode is not None:
            return
        ready = select.poll()
        ready.register(self._status, select.POLLIN)
        if not ready.poll(None if timeout is None else timeout * 1000):
            return
        with self._reading:
            if self.returncode is None:
                self.returncode = int(self._lines.readline())
                self._lines.close()
                self._status.close()  # the server takes it off the system's list of processes


Process = subprocess.Popen[Any] | ForkedProcess


class _ForkServer:
    """The server of this test process; ``fork_server_program`` says what it does."""

    def __init__(self) -> None:
        self._sending = threading.Lock()
        self._connection, theirs = socket.socketpair()
        program = Path(__file__).with_name("fork_server_program.py")
        environment = {name: value for name, value in os.environ.items() if name not in (_PATH, "PYTHONWARNINGS")}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, program, str(theirs.fileno()), *_LIBRARIES],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self._close)

    def fork(self, request: dict[str, Any], files: Sequence[int]) -> None:
        content = json.dumps(request).encode()
        with self._sending:
            socket.send_fds(self._connection, [len(content).to_bytes(4, "big")], files)
            self._connection.sendall(content)

    def _close(self) -> None:
        self._connection.close()
        self._process.wait(PATIENCE)


@functools.cache
def _fork_server() -> _ForkServer:
    return _ForkServer()


def start(
    command: Sequence[str | Path],
    *,
    stdout: IO[Any] | int,
    stderr: IO[Any] | int,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    start_new_session: bool = False,
) -> Process:
    """Start a program, with the meaning of ``subprocess.Popen``'s arguments."""
    environment = dict(os.environ if env is None else env)
    if not _forkable(command, environment):
        return subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=stdout, stderr=stderr, start_new_session=start_new_session
        )
    request = {
        "command": list(map(str, command)),
        "environment": environment,
        "folder": os.fspath(cwd or Path.cwd()),
        "new_session": start_new_session,
    }
    files = [0, *(file if isinstance(file, int) else file.fileno() for file in (stdout, stderr))]
    return ForkedProcess(_fork_server(), request, files)


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end and capture its output; it is killed after ``timeout`` seconds."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = start(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
        try:
            process.wait(timeout)
        finally:
            process.kill()
            process.wait()
        for file in (stdout, stderr):
            file.seek(0)
        return subprocess.CompletedProcess(command, process.wait(), stdout.read(), stderr.read())


def _forkable(command: Sequence[str | Path], environment: Mapping[str, str]) -> bool:
    """Return whether the command is a program of the distribution in the environment that the server has started in."""
    if Path(command[0]).parent != PROGRAMS or Path(command[0]).name not in ("viperctl", "openviper"):
        return False
    if environment.get(_PATH) or environment.get("PYTHONWARNINGS", _RESOURCES) != _RESOURCES:
        return False
    # With coverage an interpreter measures from its start.
    names = {name for name in {*environment, *os.environ} if _READ_AT_START.match(name)} - {_PATH}
    return not any(name.startswith("COVERAGE_") or environment.get(name) != os.environ.get(name) for name in names)


_RESOURCES = "always::ResourceWarning"
