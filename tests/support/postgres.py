"""A real PostgreSQL from Debian's packages, on a free loopback port, in a folder of its own."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.patience import PATIENCE

__all__ = [
    "PostgresServer",
    "create_cluster",
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


class PostgresServer:
    """A server in a folder of its own, on a port that it keeps when it is started again."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._password = secrets.token_urlsafe(16)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        create_cluster(programs, folder, self._password)

    @property
    def url(self) -> str:
        """A URL for asyncpg."""
        return f"postgresql+asyncpg://{_USER}:{self._password}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start, also again, and wait until it takes connections."""
        self._process, self._port = _start(self._programs, self._folder, self._port)

    def stop(self) -> None:
        """Stop without waiting for clients to leave: the fast shutdown."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """Stop as ``pg_ctl stop -m immediate`` does: nothing that is in memory is written."""
        self._end(signal.SIGQUIT)

    def _end(self, way: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(way)
            self._process.wait(PATIENCE)
            self._process = None


@contextmanager
def running_postgres(programs: Path | None = None) -> Iterator[str]:
    """Run a server for a block; its URL is for asyncpg."""
    with running_server(programs) as server:
        yield server.url


@contextmanager
def running_server(programs: Path | None = None) -> Iterator[PostgresServer]:
    """Run a server for a block, which may crash it and start it again."""
    programs = programs or postgres_programs()
    assert programs is not None, "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    folder = Path(tempfile.mkdtemp(prefix="openviper-postgres-"))
    try:
        server = PostgresServer(programs, folder)
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


def create_cluster(programs: Path, folder: Path, password: str) -> None:
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


def _start(programs: Path, folder: Path, before: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start on the port ``before``, or on a free one if it is 0."""
    log = folder / "log"
    for _ in range(3):  # another process may take the port between the question and the answer
        port = before or _free_port()
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(folder),
            "fsync": "off",
            "max_connections": "50",
        }
        with log.open("wb") as output:
            server = subprocess.Popen(
                [
                    programs / "postgres",
                    "-D",
                    folder / "data",
                    *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                **_as_server_user(),
            )
        if _is_ready(server, programs, folder, port):
            return server, port
    raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_ready(server: subprocess.Popen[bytes], programs: Path, folder: Path, port: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    ask: list[str | Path] = [programs / "pg_isready", "-q", "-h", str(folder), "-p", str(port)]
    try:
        while server.poll() is None and time.monotonic() < deadline:
            if subprocess.run(ask, check=False, timeout=PATIENCE).returncode == 0:
                return True
            time.sleep(0.05)
    except BaseException:
        server.kill()
        server.wait()
        raise
    server.kill()
    server.wait()
    return False
