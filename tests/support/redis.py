"""A real Redis on a free loopback port, in a folder of its own; it can be stopped, killed, paused and started again."""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from support.ports import lasting_port

__all__ = ["RedisServer", "redis_server"]


class RedisServer:
    """Keeps everything on disk before it answers, unless ``appendfsync`` is another than "always"."""

    def __init__(self, folder: Path, *, appendfsync: str = "always") -> None:
        self._appendfsync = appendfsync
        self._folder = folder
        self.port = lasting_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def tasks(self, **more: object) -> dict[str, object]:
        """``TASKS`` for this server."""
        return {"broker": "redis", "broker_url": self.url, **more}

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, socket_timeout=5)

    def start(self) -> None:
        """Start, also again, and wait until it answers."""
        program = shutil.which("redis-server")
        assert program is not None
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "save": "",
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "daemonize": "no",
        }
        arguments = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
        with self.client() as client:
            deadline = time.monotonic() + 20
            while True:
                try:
                    client.ping()
                except (redis.ConnectionError, redis.TimeoutError):
                    assert time.monotonic() < deadline, (self._folder / "log").read_text()
                    time.sleep(0.05)
                else:
                    return

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it. May be called again."""
        self._end(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(number)
        self._process.wait(20)
        self._process = None


@contextmanager
def _new_server() -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed (Debian: apt-get install redis-server)")
    folder = Path(tempfile.mkdtemp(prefix="openviper-redis-"))
    server = RedisServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of its own for each test."""
    with _new_server() as server:
        yield server
