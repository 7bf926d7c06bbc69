"""Either broker for a test, and waiting until an application has found it again."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from openviper.core.email.queue import worker_available
from support.broker_server import BrokerServer
from support.patience import PATIENCE
from support.rabbitmq import RabbitmqServer, rabbitmq_server
from support.redis import redis_server

__all__ = ["broker", "queueing_again", "rabbitmq_server", "redis_server", "until_available", "usual_broker"]


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> Iterator[BrokerServer]:
    """Each test runs on either; it begins running and with empty queues."""
    yield from _either(request)


@pytest.fixture(params=["redis", pytest.param("rabbitmq", marks=pytest.mark.long)])
def usual_broker(request: pytest.FixtureRequest) -> Iterator[BrokerServer]:
    """As ``broker``, but on RabbitMQ with ``--long`` only: for what depends little on the broker."""
    yield from _either(request)


def _either(request: pytest.FixtureRequest) -> Iterator[BrokerServer]:
    server: BrokerServer = request.getfixturevalue(f"{request.param}_server")
    yield server
    if isinstance(server, RabbitmqServer):
        server.restore()


def until_available() -> None:
    """Wait until this process has found its broker: the first import of a client library can take long."""
    deadline = time.monotonic() + PATIENCE
    while not worker_available():
        assert time.monotonic() < deadline, "the broker was not found"
        time.sleep(0.1)


async def queueing_again() -> None:
    """Wait until the application has found out by itself that its broker is back."""
    await asyncio.to_thread(until_available)
