"""A real PostgreSQL from Debian's packages, on a free loopback port, in a folder of its own."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.broker_server import BrokerServer
from support.patience import PATIENCE

__all__ = [
    "PostgresServer",
    "postgres_programs",
    "postgres_url",
    "running_postgres",
    "running_server",
]

# The server refuses to run as root; Debian's package brings this user.
_USER = "postgres"
_NEEDED = ("initdb", "postgres", "pg_isready")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A URL for asyncpg, of a server that lives as long as the test session."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with running_postgres(programs) as url:
        yield url


class PostgresServer(BrokerServer):
    """A server in a folder of its own, on a port that it keeps when it is started again."""

    kind = "postgresql"

    def __init__(self, folder: Path, programs: Path | None = None) -> None:
        super().__init__(folder)
        found = programs or postgres_programs()
        assert found is not None, "PostgreSQL is not installed (Debian: apt-get install postgresql)"
        self._programs = found
        self._password = secrets.token_urlsafe(16)
        _create_cluster(found, folder, self._password)

    @property
    def url(self) -> str:
        """A URL for asyncpg."""
        return f"postgresql+asyncpg://{_USER}:{self._password}@127.0.0.1:{self.port}/postgres"

    def crash(self) -> None:
        """Stop as ``pg_ctl stop -m immediate`` does: nothing that is in memory is written."""
        super()._end(signal.SIGQUIT)

    def _command(self) -> list[str]:
        options = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.folder}
        options |= {"fsync": "off", "max_connections": 100}
        words = [str(self._programs / "postgres"), "-D", str(self.folder / "data")]
        words += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        if os.geteuid() == 0:
            words = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups", *words]
        return words

    def _answers(self) -> bool:
        ask = [str(self._programs / "pg_isready"), "-q", "-h", str(self.folder), "-p", str(self.port)]
        return subprocess.run(ask, check=False, timeout=PATIENCE).returncode == 0

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        for process in (self._process.pid, *self._children()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def _end(self, number: signal.Signals) -> None:
        if number == signal.SIGKILL and self._process is not None:
            os.kill(self._process.pid, signal.SIGSTOP)  # starts no more children
            children = self._children()
            self._signal(signal.SIGKILL)
            deadline = time.monotonic() + PATIENCE
            while any(map(_runs, children)):  # with their memory no other server would start
                assert time.monotonic() < deadline, children
                time.sleep(0.05)
        super()._end(signal.SIGINT if number == signal.SIGTERM else number)  # which waits for no client

    def _children(self) -> list[int]:
        """Those of the server, each of which has a session of its own."""
        assert self._process is not None
        numbers = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
        return [number for number in numbers if (found := _state(number)) and found[1] == self._process.pid]


def _state(process: int) -> tuple[str, int] | None:
    """Return a process's state letter and its parent; None if there is no such process."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1])


def _runs(process: int) -> bool:
    state = _state(process)
    return state is not None and state[0] not in "ZX"


@contextmanager
def running_postgres(programs: Path | None = None) -> Iterator[str]:
    """Run a server for a block; its URL is for asyncpg."""
    with running_server(programs) as server:
        yield server.url


@contextmanager
def running_server(programs: Path | None = None) -> Iterator[PostgresServer]:
    """Run a server for a block, which may crash it and start it again."""
    folder = Path(tempfile.mkdtemp(prefix="openviper-postgres-"))
    try:
        server = PostgresServer(folder, programs)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def postgres_programs() -> Path | None:
    """The folder with the server's programs, of the newest version; Debian keeps them out of PATH."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    folders.sort(key=lambda folder: float(folder.parent.name))
    on_path = shutil.which("postgres")
    if on_path is not None:
        folders.insert(0, Path(on_path).resolve().parent)
    complete = [folder for folder in folders if all((folder / name).exists() for name in _NEEDED)]
    return complete[-1] if complete else None


def _as_server_user() -> dict[str, Any]:
    return {"user": _USER, "group": _USER, "extra_groups": []} if os.geteuid() == 0 else {}


def _create_cluster(programs: Path, folder: Path, password: str) -> None:
    password_file = folder / "password"
    password_file.write_text(password)
    if os.geteuid() == 0:
        shutil.chown(folder, _USER, _USER)
        shutil.chown(password_file, _USER, _USER)
    subprocess.run(
        [
            programs / "initdb",
            f"--pgdata={folder / 'data'}",
            f"--username={_USER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ],
        check=True,
        capture_output=True,
        cwd=folder,
        timeout=PATIENCE,
        **_as_server_user(),
    )
