"""Both brokers as real servers, and a project that uses one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.broker_server import BrokerServer
from support.brokers import broker, rabbitmq_server, redis_server, until_available
from support.smtpd import SmtpServer
from support.workers import Worker, write_project

from openviper.conf import override
from openviper.core.email.queue import close_queue

__all__ = ["broker", "rabbitmq_server", "redis_server"]


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


class Scene:
    """A broker, a mail server, a project folder that names both, and the same settings in this process."""

    def __init__(self, folder: Path, broker: BrokerServer, smtp: SmtpServer) -> None:
        self.broker = broker
        self.smtp = smtp
        self.tasks = broker.tasks()
        self.email = smtp.settings(default_sender="shop@example.com")
        self.folder = write_project(folder / "project", tasks=self.tasks, email=self.email)

    def worker(self, *options: str, **more: Any) -> Worker:
        return Worker(self.folder, *options, **more)


@pytest.fixture
def scene(tmp_path: Path, broker: BrokerServer, smtp: SmtpServer) -> Iterator[Scene]:
    made = Scene(tmp_path, broker, smtp)
    with override(TASKS=made.tasks, EMAIL=made.email):
        until_available()
        yield made
        close_queue()


@pytest.fixture
def redis_scene(tmp_path: Path, redis_server: BrokerServer, smtp: SmtpServer) -> Iterator[Scene]:
    made = Scene(tmp_path, redis_server, smtp)
    with override(TASKS=made.tasks, EMAIL=made.email):
        until_available()
        yield made
        close_queue()
