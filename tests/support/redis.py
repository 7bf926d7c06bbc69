"""A real Redis on a free loopback port."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from support.broker_server import BrokerServer, running
from support.patience import PATIENCE

__all__ = ["RedisServer", "redis_server"]


class RedisServer(BrokerServer):
    """Keeps everything on disk before it answers, unless ``appendfsync`` is another than "always"."""

    kind = "redis"

    def __init__(self, folder: Path, *, appendfsync: str = "always") -> None:
        super().__init__(folder)
        self._appendfsync = appendfsync

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, socket_timeout=PATIENCE)

    def _command(self) -> list[str]:
        program = shutil.which("redis-server")
        assert program is not None
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.folder,
            "save": "",
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "daemonize": "no",
        }
        return [program, *(str(word) for name, value in options.items() for word in (f"--{name}", value))]

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.TimeoutError):
                return False


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of its own for each test."""
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed (Debian: apt-get install redis-server)")
    with running(RedisServer) as server:
        yield server
