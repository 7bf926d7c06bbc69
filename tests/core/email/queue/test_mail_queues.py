"""Mail of each further mailer has a broker queue of its own, so that no other mail waits for it."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.broker_server import BrokerServer
from support.brokers import until_available
from support.patience import PATIENCE
from support.rabbitmq import RabbitmqServer
from support.redis import RedisServer
from support.smtpd import SmtpServer
from support.workers import Worker, viperctl, write_project

from openviper.conf import override
from openviper.core.email import send_email, send_many, submit_email
from openviper.core.email.message import EmailMessageData, check_message
from openviper.core.email.message.storage import encode
from openviper.core.email.queue import close_queue, queue_service
from openviper.core.email.queue.job import NewJob, Progress
from openviper.core.email.queue.redis_store import RedisJobStore
from openviper.tasks import TaskSettings


class Mailers:
    """A project with two mail servers, for the default mailer and for ``bulk``; this process has its settings too."""

    def __init__(self, folder: Path, broker: BrokerServer, main: SmtpServer, bulk: SmtpServer) -> None:
        self.broker, self.main, self.bulk = broker, main, bulk
        self.tasks = broker.tasks()
        own = {"host": bulk.host, "port": bulk.port, "default_sender": "news@example.com", "pool_size": 8}
        self.email = {**main.settings(default_sender="shop@example.com"), "mailers": {"bulk": own}}
        self.folder = write_project(folder, tasks=self.tasks, email=self.email)

    def email_command(self, *words: str) -> str:
        return viperctl("email", *words, "--project", self.folder).stdout

    def waiting(self) -> tuple[int, int]:
        """Count the messages in the queues of both mailers."""
        service = queue_service()
        assert service is not None
        return service.store.stats("emails").waiting, service.store.stats("emails_bulk").waiting


@pytest.fixture(params=["redis", "rabbitmq", pytest.param("quorum", marks=pytest.mark.long)])
def mailers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mailers]:
    broker: BrokerServer = request.getfixturevalue("redis_server" if request.param == "redis" else "rabbitmq_server")
    if request.param == "quorum":
        assert isinstance(broker, RabbitmqServer)
        broker.declare_quorum_queues()
    with SmtpServer() as main, SmtpServer() as bulk:
        made = Mailers(tmp_path / "project", broker, main, bulk)
        with override(TASKS=made.tasks, EMAIL=made.email):
            until_available()
            yield made
            close_queue()
    if isinstance(broker, RabbitmqServer):
        broker.restore()


def subjects(server: SmtpServer) -> list[str]:
    return sorted(str(message.parse()["Subject"]) for message in server.messages)


async def test_a_mailers_mail_has_its_own_queue_which_every_mail_worker_works(mailers: Mailers) -> None:
    await send_email("a@example.com", "One", "1")
    await send_email("a@example.com", "Two", "2", mailer="bulk")
    many: list[Any] = [
        {"recipients": "a@example.com", "subject": "Three", "text": "3"},
        {"recipients": "a@example.com", "subject": "Four", "text": "4", "mailer": "bulk"},
        {"recipients": "a@example.com", "subject": "Five", "text": "5"},
    ]
    assert [receipt.error async for receipt in send_many(many, background=True)] == [None] * 3
    assert await asyncio.to_thread(mailers.waiting) == (3, 2)
    later = await submit_email("a@example.com", "Six", "6", mailer="bulk", delay=0.5)
    assert later.mode == "queued"
    worker = Worker(mailers.folder, "--queues", "emails")
    await asyncio.to_thread(worker.start)
    await mailers.bulk.arrive(3)
    await mailers.main.arrive(3)
    assert await asyncio.to_thread(worker.terminate) == 0
    assert subjects(mailers.main) == ["Five", "One", "Three"]
    assert subjects(mailers.bulk) == ["Four", "Six", "Two"]
    assert "emails, emails_bulk" in worker.output
    assert await asyncio.to_thread(mailers.waiting) == (0, 0)


async def test_mail_that_hangs_leaves_threads_to_the_default_mailers(mailers: Mailers) -> None:
    gate = mailers.bulk.hold("body")
    for number in range(12):
        await send_email("a@example.com", f"Bulk {number}", "Hi", mailer="bulk")
    worker = Worker(mailers.folder, threads=4)
    await asyncio.to_thread(worker.start)
    await gate.reached()
    await send_email("a@example.com", "Reset", "Hi")
    await mailers.main.arrive(1)
    assert not mailers.bulk.messages
    assert mailers.bulk.connections <= 2, "half of the threads"
    gate.release()
    await mailers.bulk.arrive(12)
    assert await asyncio.to_thread(worker.terminate) == 0


async def test_failed_mail_goes_back_to_its_mailers_queue(mailers: Mailers) -> None:
    mailers.bulk.refuse("gone@example.com", 550)
    await send_email("gone@example.com", "One", "1", mailer="bulk")
    with_log = Worker(mailers.folder)
    await asyncio.to_thread(with_log.start)
    await asyncio.to_thread(with_log.wait_for, "was not delivered")
    assert await asyncio.to_thread(with_log.terminate) == 0
    listed = await asyncio.to_thread(mailers.email_command, "failed", "list")
    message_id = listed.split()[2]
    assert "Mailer      bulk" in await asyncio.to_thread(mailers.email_command, "failed", "show", message_id)
    status = await asyncio.to_thread(mailers.email_command, "status")
    assert "Failed   1" in status
    assert "1 queued again" in await asyncio.to_thread(mailers.email_command, "failed", "retry", message_id)
    assert await asyncio.to_thread(mailers.waiting) == (0, 1)
    mailers.bulk.behave()
    worker = Worker(mailers.folder)
    await asyncio.to_thread(worker.start)
    await mailers.bulk.arrive(1)
    assert await asyncio.to_thread(worker.terminate) == 0
    assert not mailers.main.messages


async def test_status_tells_each_mailers_mail_and_workers(mailers: Mailers) -> None:
    await send_email("a@example.com", "One", "1", mailer="bulk")
    await send_email("a@example.com", "Two", "2", mailer="bulk")
    done = await asyncio.to_thread(viperctl, "email", "status", "--project", mailers.folder)
    assert done.returncode == 1
    assert "no worker consumes the queue emails_bulk" in done.stderr
    assert "Waiting  2" in done.stdout
    assert "  bulk     2 waiting, no workers" in done.stdout
    own = await asyncio.to_thread(viperctl, "email", "status", "--mailer", "bulk", "--project", mailers.folder)
    assert (own.returncode, "Waiting  2" in own.stdout) == (1, True)
    default = await asyncio.to_thread(viperctl, "email", "status", "--mailer", "default", "--project", mailers.folder)
    assert (default.returncode, "Waiting  0" in default.stdout) == (0, True)
    unknown = await asyncio.to_thread(viperctl, "email", "status", "--mailer", "bluk", "--project", mailers.folder)
    assert unknown.returncode == 2
    assert "there is no mailer 'bluk'; did you mean 'bulk'?" in unknown.stderr
    checked = await asyncio.to_thread(mailers.email_command, "check", "--mailer", "bulk", "--json")
    results = {check["check"]: check for check in json.loads(checked)["checks"]}
    assert results["worker"]["found"] == "no worker consumes the queue emails_bulk"


def test_redis_remembers_a_queue_that_the_settings_name_no_more(redis_server: RedisServer) -> None:
    store = RedisJobStore(TaskSettings(broker="redis", broker_url=redis_server.url))
    message = check_message(EmailMessageData("a@example.com", "One", "1", sender="s@example.com"), default_sender=None)
    job = NewJob("1@example.com/0123456789ab", message.message_id, encode(message), Progress(time.time()), 3600)
    with override(TASKS=redis_server.tasks(), EMAIL={}):
        store.add(job._replace(queue="emails_news"), deadline=time.monotonic() + PATIENCE)
        redis_server.client().zadd("dramatiq:mail:queues", {"emails_Bad name": 0, "emails.failed": 0})
        assert store.queues() == ("emails", "emails_news")
        # A ticket that no worker could process is listed, and retried to the queue that it came from.
        client = redis_server.client()
        name = client.lpop("dramatiq:emails_news")
        assert isinstance(name, bytes)
        ticket = client.hget("dramatiq:emails_news.msgs", name)
        assert isinstance(ticket, bytes)
        client.hdel("dramatiq:emails_news.msgs", name.decode())
        client.zadd("dramatiq:emails_news.XQ", {name: 1000 * time.time()})
        client.hset("dramatiq:emails_news.XQ.msgs", name.decode(), ticket)
        (dead,) = store.failed(10)
        assert (dead.message_id, dead.queue) == ("<1@example.com>", "emails_news")
        assert store.retry_failed(frozenset([dead.message_id])) == 1
        assert (client.llen("dramatiq:emails_news"), client.zcard("dramatiq:emails_news.XQ")) == (1, 0)
    store.close()


async def test_dead_letters_of_a_mailers_queue_on_rabbitmq_go_back_to_it(
    rabbitmq_server: RabbitmqServer, tmp_path: Path
) -> None:
    with SmtpServer() as main, SmtpServer() as bulk:
        mailers = Mailers(tmp_path / "project", rabbitmq_server, main, bulk)
        with override(TASKS=mailers.tasks, EMAIL=mailers.email):
            await asyncio.to_thread(until_available)
            receipt = await submit_email("a@example.com", "One", "1", mailer="bulk")
            assert receipt.mode == "queued"

            def reject() -> None:
                with rabbitmq_server.connect() as connection:
                    channel = connection.channel()
                    method, _, _ = channel.basic_get("emails_bulk")
                    assert method is not None
                    channel.basic_nack(method.delivery_tag, requeue=False)

            await asyncio.to_thread(reject)
            service = queue_service()
            assert service is not None
            (failed,) = await asyncio.to_thread(service.store.failed, 10)
            assert (failed.message_id, failed.queue, failed.uncertain) == (receipt.message_id, "emails_bulk", True)
            assert await asyncio.to_thread(service.store.retry_failed, None) == 1
            assert await asyncio.to_thread(mailers.waiting) == (0, 1)
            await asyncio.to_thread(close_queue)
    rabbitmq_server.restore()
