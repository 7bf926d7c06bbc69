"""One inbox for the application and a worker in a process of its own."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
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
def worker(
    request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer, smtp: SmtpServer
) -> Iterator[Worker]:
    """A worker with the settings of mail that are given as its parameter."""
    settings = {"default_sender": "shop@example.test", "inbox": "always", "inbox_dir": str(tmp_path / "inbox")}
    email = smtp.settings(**settings, **getattr(request, "param", {}))
    project = write_project(tmp_path / "project", tasks=redis_server.tasks(), email=email)
    with override(TASKS=redis_server.tasks(), EMAIL=email), Worker(project) as running:
        yield running
        close_queue()


def kinds(message: dict[str, Any]) -> list[str]:
    return [step["kind"] for step in message["timeline"]]


async def test_what_a_worker_delivers_is_seen_on_the_page(inboxes: Inboxes, worker: Worker) -> None:
    async with inboxes.open(backend="SMTPBackend") as client:
        assert await send_email("a@example.test", "Queued", text="By a worker")
        answer = await client.get("/_mail/api/messages/wait?state=delivered&timeout=60")
    assert answer.status_code == 200, worker.output
    message = answer.json()
    assert (message["subject"], message["mode"]) == ("Queued", "queued")
    assert kinds(message) == ["queued", "sending", "delivered"]


async def test_who_is_refused_by_a_workers_server_for_now_is_seen_until_the_next_attempt(
    inboxes: Inboxes, worker: Worker, smtp: SmtpServer
) -> None:
    smtp.refuse("busy@example.test", 450)
    async with inboxes.open(backend="SMTPBackend") as client:
        assert await send_email(["a@example.test", "busy@example.test"], "Queued", text="By a worker")
        answer = await client.get("/_mail/api/messages/wait?state=retrying&timeout=60")
        assert answer.status_code == 200, worker.output
        message = answer.json()
        assert message["refused"] == ["busy@example.test"]
        smtp.behave()
        assert kinds(message)[:4] == ["queued", "sending", "delivered", "retrying"]
        assert "busy@example.test (450" in message["timeline"][2]["detail"]
        answer = await client.get("/_mail/api/messages/wait?state=delivered&timeout=60")
    assert answer.status_code == 200, worker.output
    assert answer.json()["refused"] == []
    assert [one.recipients for one in smtp.messages] == [["a@example.test"], ["busy@example.test"]]


@pytest.mark.parametrize("worker", [{"retry_max_age": 0}], indirect=True)
async def test_what_the_queue_gives_up_waits_for_no_other_attempt_on_the_page(
    inboxes: Inboxes, worker: Worker, smtp: SmtpServer
) -> None:
    smtp.refuse("busy@example.test", 450)
    async with inboxes.open(backend="SMTPBackend") as client:
        assert await send_email("busy@example.test", "Queued", text="By a worker")
        answer = await client.get("/_mail/api/messages/wait?state=failed&timeout=60")
    assert answer.status_code == 200, worker.output
    assert kinds(answer.json()) == ["queued", "sending", "failed"]


async def test_what_expires_in_the_queue_is_seen_as_failed(inboxes: Inboxes, worker: Worker, smtp: SmtpServer) -> None:
    smtp.refuse("busy@example.test", 450)
    async with inboxes.open(backend="SMTPBackend") as client:
        end = datetime.now(UTC) + timedelta(seconds=1)
        assert await send_email("busy@example.test", "Queued", text="By a worker", expires_at=end)
        answer = await client.get("/_mail/api/messages/wait?state=failed&timeout=60")
    assert answer.status_code == 200, worker.output
    assert kinds(answer.json())[-1] == "failed"
    assert answer.json()["timeline"][-1]["detail"] == "expired before it could be delivered"


@pytest.mark.parametrize("worker", [{"on_uncertain": "hold", "max_recipients_per_message": 2}], indirect=True)
async def test_who_may_have_it_is_seen_as_failed_when_the_others_have_got_it(
    inboxes: Inboxes, worker: Worker, smtp: SmtpServer
) -> None:
    """The first envelope is cut and held, the second one delivered afterwards."""
    people = [f"r{number}@example.test" for number in range(3)]
    smtp.fault("body", "drop", nth=1)
    async with inboxes.open(backend="SMTPBackend") as client:
        assert await send_email(people, "Queued", text="By a worker")
        answer = await client.get("/_mail/api/messages/wait?state=failed&timeout=60")
    assert answer.status_code == 200, worker.output
    assert kinds(answer.json()) == ["queued", "sending", "retrying", "sending", "delivered", "failed"]
    assert answer.json()["timeline"][-1]["detail"].startswith("2 recipients perhaps have it: 451 ")
    assert [one.recipients for one in smtp.messages] == [people[2:]]
