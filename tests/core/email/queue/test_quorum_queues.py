"""Quorum queues with a delivery limit: no look at failed mail, no killed reader and no dead worker loses a message."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from support.patience import PATIENCE
from support.rabbitmq import RabbitmqServer
from support.smtpd import SmtpServer
from support.workers import Worker, viperctl, write_project

from openviper.conf import override
from openviper.core.email import EmailMessageData, QueueUnavailable, send_email
from openviper.core.email.message import check_message
from openviper.core.email.message.storage import encode, join
from openviper.core.email.queue import close_queue, queue_service
from openviper.core.email.queue.job import ClaimedJob, Progress
from openviper.core.email.queue.rabbitmq_store import RabbitmqJobStore
from openviper.tasks import TaskSettings
from openviper.tasks.encoder import Sealed

LIMIT = 5

_READER = """
import sys, time
from openviper.conf import settings
settings.configure(TASKS={"broker": "rabbitmq", "broker_url": sys.argv[1]})
from openviper.core.email.queue import queue_service
looks = 0
def looked_at():
    global looks
    looks += 1
    if looks == 30:
        print("half", flush=True)
        time.sleep(600)
queue_service().store.purge_failed(frozenset(), looked_at)
"""


@pytest.fixture(scope="module")
def limited(rabbitmq_server: RabbitmqServer) -> Iterator[None]:
    rabbitmq_server.limit_deliveries(LIMIT)
    yield
    rabbitmq_server.lift_limit()


@pytest.fixture
def quorum(rabbitmq_server: RabbitmqServer, limited: None) -> Iterator[RabbitmqServer]:
    """The operator has declared the queues before the application did."""
    rabbitmq_server.restore()
    rabbitmq_server.declare_quorum_queues()
    with override(TASKS=rabbitmq_server.tasks()):
        yield rabbitmq_server
        close_queue()
    rabbitmq_server.restore()


@pytest.fixture
def store(quorum: RabbitmqServer) -> RabbitmqJobStore:
    service = queue_service()
    assert service is not None
    assert isinstance(service.store, RabbitmqJobStore)
    return service.store


def fail(store: RabbitmqJobStore, count: int, *, keep: float = 3600, size: int = 0) -> list[str]:
    data = EmailMessageData(["a@example.com"], "Order", text="x" * size)
    token = Sealed(join(encode(check_message(data, default_sender="shop@example.com"))))
    message_ids = [f"<{number}@example.com>" for number in range(count)]
    for number, message_id in enumerate(message_ids):
        one = ClaimedJob(f"{number}@example.com/0", message_id, Progress(time.time(), 1), None, token=token)
        store.fail(one, one.progress, "550 no", keep=keep, uncertain=False)
    return message_ids


def shown(store: RabbitmqJobStore, limit: int = 1000) -> list[str]:
    return [job.message_id for job in store.failed(limit)]


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ready(server: RabbitmqServer, queue: str) -> tuple[int, int]:
    """Messages that nobody has in hand, and consumers."""
    with server.connect() as connection:
        declared = connection.channel().queue_declare(queue, passive=True).method
        return declared.message_count, declared.consumer_count


def take(server: RabbitmqServer, queue: str) -> list[tuple[Any, bytes]]:
    """Take everything; properties and bodies."""
    taken = []
    with server.connect() as connection:
        channel = connection.channel()
        while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
            taken.append((got[1], got[2]))
    return taken


def put(server: RabbitmqServer, queue: str, properties: Any, body: bytes) -> None:
    with server.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("", queue, body, properties, mandatory=True)


def test_thirty_looks_at_failed_mail_lose_none(store: RabbitmqJobStore) -> None:
    """Whether they are listed, or looked through for one to retry or to purge."""
    message_ids = fail(store, 12)
    nobody = frozenset({"<nobody@example.com>"})
    for _ in range(10):
        assert shown(store) == message_ids
        assert shown(store, 5) == message_ids[:5]
        assert store.retry_failed(nobody) == 0
        assert store.purge_failed(nobody) == 0
    assert store.stats().failed == 12
    assert shown(store) == message_ids


def test_more_than_fit_into_one_batch_are_all_looked_at(store: RabbitmqJobStore, quorum: RabbitmqServer) -> None:
    message_ids = fail(store, 50)
    for _ in range(LIMIT + 2):
        assert shown(store) == message_ids
    assert store.retry_failed(frozenset(message_ids[10:])) == 40
    assert shown(store) == message_ids[:10]
    assert store.purge_failed(None) == 10
    assert ready(quorum, "emails") == (40, 0)


def test_a_look_does_not_make_failed_mail_stay_longer(store: RabbitmqJobStore, quorum: RabbitmqServer) -> None:
    fail(store, 1, keep=3600)
    time.sleep(0.2)
    first, second = shown(store), shown(store)
    assert first == second == ["<0@example.com>"]
    ((properties, _),) = take(quorum, "emails.failed")
    assert 0 < int(properties.expiration) < 3600_000 - 200
    fail(store, 1, keep=2)
    eventually(lambda: shown(store) == [])


def test_copies_are_shown_once_retried_once_and_purged_together(
    store: RabbitmqJobStore, quorum: RabbitmqServer
) -> None:
    """A reader that dies between confirm and acknowledgement leaves them."""
    message_ids = fail(store, 3)
    for _ in range(3):
        for properties, body in take(quorum, "emails.failed"):
            put(quorum, "emails.failed", properties, body)
            put(quorum, "emails.failed", properties, body)
        assert shown(store) == message_ids
    for properties, body in take(quorum, "emails.failed"):
        put(quorum, "emails.failed", properties, body)
        put(quorum, "emails.failed", properties, body)
    assert store.purge_failed(frozenset(message_ids[:1])) == 1
    assert store.retry_failed(frozenset(message_ids[1:2])) == 1
    assert shown(store) == message_ids[2:]
    assert ready(quorum, "emails") == (1, 0)
    assert ready(quorum, "emails.failed") == (1, 0)


def test_of_two_failures_of_one_message_the_later_counts(store: RabbitmqJobStore, quorum: RabbitmqServer) -> None:
    """They stand together if a retry was killed before it took the first away."""
    fail(store, 1)
    ((properties, body),) = take(quorum, "emails.failed")
    key, _, sealed = dramatiq.Message.decode(body).args
    later = ClaimedJob(
        key, "<0@example.com>", replace(Progress(time.time(), 2), pending=("b@example.com",)), None, token=sealed
    )
    store.fail(later, later.progress, "551 no", keep=3600, uncertain=False)
    put(quorum, "emails.failed", properties, body)  # behind the later one
    assert [job.reason for job in store.failed(10)] == ["551 no"]
    store.purge_failed(None)
    put(quorum, "emails.failed", properties, body)  # before it
    store.fail(later, later.progress, "551 no", keep=3600, uncertain=False)
    assert [job.reason for job in store.failed(10)] == ["551 no"]
    assert store.retry_failed(None) == 1
    ((_, again),) = take(quorum, "emails")
    assert b"b@example.com" in dramatiq.Message.decode(again).args[1]
    assert shown(store) == []


def test_readers_killed_half_way_lose_nothing(store: RabbitmqJobStore, quorum: RabbitmqServer) -> None:
    """SIGKILL while a part of a batch is published again and nothing of it acknowledged."""
    message_ids = fail(store, 40)
    for _ in range(3):
        reader = subprocess.Popen([sys.executable, "-c", _READER, quorum.url], stdout=subprocess.PIPE)
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"half\n"
        os.kill(reader.pid, signal.SIGKILL)
        reader.wait(10)
        reader.stdout.close()
    assert shown(store) == message_ids
    assert store.retry_failed(None) == 40
    assert ready(quorum, "emails") == (40, 0)
    assert ready(quorum, "emails.failed") == (0, 0)


def test_readers_at_the_same_time_wait_for_each_other(store: RabbitmqJobStore, quorum: RabbitmqServer) -> None:
    message_ids = fail(store, 60)
    with override(TASKS=quorum.tasks()):
        others = [RabbitmqJobStore(TaskSettings.from_settings()) for _ in range(3)]
    with ThreadPoolExecutor(4) as threads:
        looks = [threads.submit(shown, other) for other in others for _ in range(2)]
        retried = threads.submit(store.retry_failed, None)
        assert retried.result(PATIENCE) == 60
        for look in looks:
            assert look.result(PATIENCE) in (message_ids, []), "before the retry, or after it"
    for other in others:
        other.close()
    assert ready(quorum, "emails") == (60, 0)


def test_while_rabbitmq_confirms_nothing_nothing_is_taken(store: RabbitmqJobStore, quorum: RabbitmqServer) -> None:
    message_ids = fail(store, 3)
    quorum.raise_alarm("memory")
    try:
        with pytest.raises(QueueUnavailable, match="alarm"):
            store.failed(10)
    finally:
        quorum.end_alarms()
    assert [properties.headers["x-delivery-count"] for properties, _ in take_and_put(quorum)] == [0, 0, 0]
    assert shown(store) == message_ids


def take_and_put(server: RabbitmqServer) -> list[tuple[Any, bytes]]:
    taken = take(server, "emails.failed")
    for properties, body in taken:
        put(server, "emails.failed", properties, body)
    return taken


def test_of_large_messages_a_list_keeps_the_heads_alone(store: RabbitmqJobStore) -> None:
    message_ids = fail(store, 3, size=5_000_000)
    jobs = store.failed(10)
    assert [job.message_id for job in jobs] == message_ids
    assert [job.payload.size < 1000 for job in jobs if job.payload is not None] == [True] * 3


async def test_mail_whose_workers_died_ten_times_is_failed_or_retried(
    quorum: RabbitmqServer, smtp: SmtpServer, tmp_path: Path
) -> None:
    """Scheduled mail that a worker kept until its time fails; mail that was being sent is retried, each death later."""
    email = smtp.settings(default_sender="shop@example.com")
    project = write_project(tmp_path / "shop", tasks=quorum.tasks(), email=email)
    gate = smtp.hold("MAIL")
    with override(EMAIL=email):
        for number in range(3):
            await send_email("later@example.com", f"Later {number}", text="", delay=7200)
        await send_email("now@example.com", "Now", text="")

    def die_ten_times() -> None:
        worker = Worker(project)
        for _ in range(10):
            worker.start()
            eventually(lambda: ready(quorum, "emails")[0] == ready(quorum, "emails.DQ")[0] == 0)
            time.sleep(3)  # not between publishing and acknowledging, also where a worker starts slowly
            worker.kill()
            eventually(lambda: ready(quorum, "emails")[1] == ready(quorum, "emails.DQ")[1] == 0)

    def run(*words: str) -> str:
        return viperctl("email", *words, "--project", str(project)).stdout

    await asyncio.to_thread(die_ten_times)
    gate.release()
    smtp.behave()
    assert "Failed   3" in await asyncio.to_thread(run, "status")
    for _ in range(LIMIT + 2):
        service = queue_service()
        assert service is not None
        jobs = await asyncio.to_thread(service.store.failed, 10)
        assert [job.uncertain for job in jobs] == [False, False, False]
        assert all("delivery limit" in job.reason for job in jobs)
    listed = await asyncio.to_thread(run, "failed", "list")
    assert len(listed.splitlines()) == 3
    assert "perhaps delivered" not in listed
    assert "3 queued again" in await asyncio.to_thread(run, "failed", "retry", "--all")
    assert ready(quorum, "emails")[0] + ready(quorum, "emails.DQ")[0] == 4, "scheduled mail keeps its time"
    with Worker(project):
        await smtp.arrive(1, PATIENCE)
    assert [message.recipients for message in smtp.messages] == [["now@example.com"]]


def test_dead_letters_that_are_not_mail_stay_where_they_are(store: RabbitmqJobStore, quorum: RabbitmqServer) -> None:
    fail(store, 1)
    ((properties, body),) = take(quorum, "emails.failed")
    damaged = b"\x00OV1 no message"
    other = dramatiq.Message("emails", "other", (1,), {}, {}).encode()
    for one in (damaged, other, body):
        put(quorum, "emails.XQ", properties, one)
    for _ in range(LIMIT + 2):
        assert shown(store) == ["<0@example.com>"]
    assert store.purge_failed(None) == 1
    assert sorted(left for _, left in take(quorum, "emails.XQ")) == sorted([damaged, other])
