"""One inbox for the application and a worker in a process of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.inbox import Inboxes
from support.redis import RedisServer, redis_server
from support.smtpd import SmtpServer
from support.workers import Worker, write_project

from openviper.conf import override
from openviper.core.email import send_email
from openviper.core.email.queue import close_queue

__all__ = ["redis_server"]


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def worker(tmp_path: Path, redis_server: RedisServer, smtp: SmtpServer) -> Iterator[Worker]:
    email = smtp.settings(default_sender="shop@example.test", inbox="always", inbox_dir=str(tmp_path / "inbox"))
    project = write_project(tmp_path / "project", tasks=redis_server.tasks(), email=email)
    with override(TASKS=redis_server.tasks(), EMAIL=email), Worker(project) as running:
        yield running
        close_queue()


def kinds(message: dict[str, Any]) -> list[str]:
    return [step["kind"] for step in message["timeline"]]


async def test_what_a_worker_delivers_is_seen_on_the_page(inboxes: Inboxes, worker: Worker) -> None:
    async with inboxes.open(backend="SMTPBackend") as client:
        assert await send_email("a@example.test", "Queued", text="By a worker")
        answer = await client.get("/_mail/api/messages/wait?state=delivered&timeout=20")
    assert answer.status_code == 200, worker.output
    message = answer.json()
    assert (message["subject"], message["way"]) == ("Queued", "queued")
    assert kinds(message) == ["queued", "sending", "delivered"]


async def test_who_is_refused_by_a_workers_server_for_now_is_seen_until_the_next_attempt(
    inboxes: Inboxes, worker: Worker, smtp: SmtpServer
) -> None:
    smtp.refuse("busy@example.test", 450, nth=1)
    async with inboxes.open(backend="SMTPBackend") as client:
        assert await send_email(["a@example.test", "busy@example.test"], "Queued", text="By a worker")
        answer = await client.get("/_mail/api/messages/wait?state=retrying&timeout=20")
        assert answer.status_code == 200, worker.output
        message = answer.json()
        assert message["refused"] == ["busy@example.test"]
        assert kinds(message) == ["queued", "sending", "delivered", "retrying"]
        assert "busy@example.test (450" in message["timeline"][2]["detail"]
        answer = await client.get("/_mail/api/messages/wait?state=delivered&timeout=20")
    assert answer.status_code == 200, worker.output
    assert answer.json()["refused"] == []
    assert [one.recipients for one in smtp.messages] == [["a@example.test"], ["busy@example.test"]]
