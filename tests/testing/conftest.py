"""Settings with a mail server and a broker that nobody may ask: both listen, and count who connects."""

import socket
from collections.abc import Iterator

import pytest

from openviper.conf import override

collect_ignore = ["sample_project"]  # run by test_plugin.py, in an environment of its own


class Untouched:
    """A port on loopback that accepts nobody; ``asked`` says whether anybody has tried."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    @property
    def asked(self) -> bool:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return False
        connection.close()
        return True

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def mail_server() -> Iterator[Untouched]:
    server = Untouched()
    yield server
    asked = server.asked
    server.close()
    assert not asked, "the mail server was asked"


@pytest.fixture
def broker() -> Iterator[Untouched]:
    server = Untouched()
    yield server
    asked = server.asked
    server.close()
    assert not asked, "the broker was asked"


@pytest.fixture(autouse=True)
def project(mail_server: Untouched) -> Iterator[None]:
    email = {
        "host": "127.0.0.1",
        "port": mail_server.port,
        "default_sender": "orders@shop.example",
        "pool_warm": True,
        "timeout": 2.0,
    }
    with override(EMAIL=email):
        yield


@pytest.fixture
def redis_project(project: None, broker: Untouched) -> Iterator[None]:
    with override(TASKS={"broker": "redis", "broker_url": f"redis://127.0.0.1:{broker.port}/0"}):
        yield
