"""A worker's death counts as an attempt on RabbitMQ: what kills its worker ends as failed, and is shown."""

import asyncio
import re
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.patience import PATIENCE
from support.rabbitmq import RabbitmqServer
from support.smtpd import SmtpServer
from support.workers import Worker, viperctl, write_project

from openviper.conf import override
from openviper.core.email import send_email
from openviper.core.email.queue import close_queue, queue_service
from openviper.core.email.queue.job import FailedJob
from openviper.core.email.queue.rabbitmq_claims import Claims

DEAD = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "emails.XQ"}
DEADLY = """
import os, signal, time
from openviper.core.email.backends.smtp import SMTPBackend

class Deadly(SMTPBackend):
    async def send(self, message):
        if message.prepared.subject == "Killing":
            time.sleep(1)  # until the broker knows that the message before was delivered: else that one comes again
            os.kill(os.getpid(), signal.SIGKILL)
        if message.prepared.subject == "Greedy":
            import resource
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
            os.environ["PYTHONMALLOC"] = "malloc"
            try:
                held = [bytearray(1 << 26) for _ in range(1000)]
            except MemoryError:
                os.kill(os.getpid(), signal.SIGKILL)  # as the kernel's out-of-memory killer does
        return await super().send(message)
"""


@pytest.fixture(params=["classic", "quorum", "quorum with a delivery limit"])
def rabbitmq(rabbitmq_server: RabbitmqServer, request: pytest.FixtureRequest) -> Iterator[RabbitmqServer]:
    rabbitmq_server.restore()
    if request.param != "classic":
        with rabbitmq_server.connect() as connection:
            for name in ("emails", "emails.DQ"):
                arguments = {"x-queue-type": "quorum", **DEAD}
                connection.channel().queue_declare(name, durable=True, arguments=arguments)
    if request.param == "quorum with a delivery limit":
        rabbitmq_server.limit_deliveries(5)
    with override(TASKS=rabbitmq_server.tasks()):
        yield rabbitmq_server
        close_queue()
    if request.param == "quorum with a delivery limit":
        rabbitmq_server.lift_limit()
    rabbitmq_server.restore()


def failed() -> list[FailedJob]:
    service = queue_service()
    assert service is not None
    return service.store.failed(100)


def begun(smtp: SmtpServer, count: int) -> None:
    smtp.wait_until(lambda: smtp.verbs.count("MAIL") == count)


def claim_queues(server: RabbitmqServer) -> list[str]:
    return re.findall(r"emails\.claim\.[^\">]*", server.evaluate("rabbit_amqqueue:list_names()"))


@pytest.mark.parametrize("subject", ["Killing", pytest.param("Greedy", marks=pytest.mark.long)])
async def test_a_message_that_kills_its_worker_ends_as_failed(
    rabbitmq: RabbitmqServer, smtp: SmtpServer, tmp_path: Path, subject: str
) -> None:
    """Its neighbours, which the same workers had fetched, are each delivered once."""
    email = smtp.settings(default_sender="shop@example.com", retry_max_age=10)
    project = write_project(tmp_path / "shop", tasks=rabbitmq.tasks(), email={**email, "backend": "deadly.Deadly"})
    (project / "deadly.py").write_text(textwrap.dedent(DEADLY))
    with override(EMAIL=email):
        for number in range(6):
            name = subject if number == 2 else f"Order {number}"
            await send_email(f"to{number}@example.com", name, text="Hi", background=True)

    def supervise() -> list[FailedJob]:
        deadline = time.monotonic() + PATIENCE
        worker = Worker(project, threads=1)
        worker.start()
        while not (jobs := failed()):
            assert time.monotonic() < deadline, worker.output
            if worker.ended:
                worker.start()
            time.sleep(0.2)
        assert worker.terminate() == 0
        return jobs

    (job,) = await asyncio.to_thread(supervise)
    assert job.uncertain
    assert "died" in job.reason
    assert job.progress.attempts >= 1
    listed = await asyncio.to_thread(viperctl, "email", "failed", "list", "--project", project)
    assert job.message_id.strip("<>") in listed.stdout
    with Worker(project):
        await smtp.arrive(5)
    assert Counter(message.recipients[0] for message in smtp.messages) == {
        f"to{number}@example.com": 1 for number in range(6) if number != 2
    }
    assert await asyncio.to_thread(claim_queues, rabbitmq) == []


async def test_mail_that_dead_workers_had_only_fetched_has_no_death_of_its_own(
    rabbitmq: RabbitmqServer, smtp: SmtpServer, tmp_path: Path
) -> None:
    """With on_uncertain = "hold" it would be kept as failed."""
    email = smtp.settings(default_sender="shop@example.com", on_uncertain="hold")
    project = write_project(tmp_path / "shop", tasks=rabbitmq.tasks(), email=email)
    smtp.fault("MAIL", "silence")
    with override(EMAIL=email):
        for number in range(3):
            await send_email(f"to{number}@example.com", "Order", text="Hi")
    for count in (1, 2):  # the first one's death leaves no record
        worker = Worker(project, threads=1)
        await asyncio.to_thread(worker.start)
        await asyncio.to_thread(begun, smtp, count)
        await asyncio.to_thread(worker.kill)
    smtp.behave()
    with Worker(project, threads=1):
        await smtp.arrive(2)
        jobs = await asyncio.to_thread(failed)
    assert len(jobs) == 1, "the one that was begun with and not ended"
    assert len({message.recipients[0] for message in smtp.messages}) == len(smtp.messages) == 2


def test_attempts_that_never_ended_are_counted(rabbitmq: RabbitmqServer) -> None:
    claims = Claims(rabbitmq.connect)
    assert [claims.begin("a/1") for _ in range(3)] == [0, 1, 2]
    assert claims.begin("b/1") == 0
    claims.end("a/1")
    assert claims.begin("a/1") == 0
    claims.end("a/1")
    claims.end("b/1")
    claims.end("b/1")
    assert claim_queues(rabbitmq) == []
