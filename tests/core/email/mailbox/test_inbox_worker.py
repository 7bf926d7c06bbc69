"""One inbox for the application and a worker in a process of its own."""

from collections.abc import Iterator
from pathlib import Path

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
def worker(tmp_path: Path, redis_server: RedisServer) -> Iterator[Worker]:
    with SmtpServer() as smtp:
        email = smtp.settings(default_sender="shop@example.test", inbox="always", inbox_dir=str(tmp_path / "inbox"))
        project = write_project(tmp_path / "project", tasks=redis_server.tasks(), email=email)
        with override(TASKS=redis_server.tasks(), EMAIL=email), Worker(project) as running:
            yield running
            close_queue()


async def test_what_a_worker_delivers_is_seen_on_the_page(inboxes: Inboxes, worker: Worker) -> None:
    async with inboxes.open(backend="SMTPBackend") as client:
        assert await send_email("a@example.test", "Queued", text="By a worker")
        answer = await client.get("/_mail/api/messages/wait?state=delivered&timeout=20")
    assert answer.status_code == 200, worker.output
    message = answer.json()
    assert (message["subject"], message["way"]) == ("Queued", "queued")
    assert [step["kind"] for step in message["timeline"]] == ["queued", "sending", "delivered"]
