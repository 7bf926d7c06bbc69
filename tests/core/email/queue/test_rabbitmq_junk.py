"""Messages on RabbitMQ's queues that are no mail: kept, told once, and no thread is held by them."""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pika
import pytest
from support.patience import PATIENCE
from support.rabbitmq import RabbitmqServer
from support.smtpd import SmtpServer
from support.workers import Worker, viperctl, write_project

from openviper.conf import override
from openviper.core.email import send_email
from openviper.core.email.queue import close_queue, queue_service
from openviper.core.email.queue.job import Progress
from openviper.core.email.queue.rabbitmq_failed import encode
from openviper.tasks import get_broker
from openviper.tasks.encoder import Sealed

ODD: list[Any] = [None, True, 0, -1, 1e400, 10**30, "", "x" * 3000, "\x00", [], [None], {}, {"a": []}]
WIRE: list[Any] = [
    None,
    True,
    -1,
    2**40,
    "é",
    b"\xff",
    Decimal("1.5"),
    datetime(1970, 1, 1, tzinfo=UTC),
    [1, {}],
    {},
]


@pytest.fixture
def rabbitmq(rabbitmq_server: RabbitmqServer) -> Iterator[RabbitmqServer]:
    with override(TASKS=rabbitmq_server.tasks()):
        yield rabbitmq_server
        close_queue()
    rabbitmq_server.restore()


def bodies(rng: random.Random, count: int) -> Iterator[bytes]:
    """Any JSON, bytes, a Dramatiq message with fields missing, added or of another type, or one with odd arguments."""
    details: dict[str, Any] = {
        "message_id": "<1@example.com>",
        "progress": Progress(time.time()).to_json(),
        "due_at": None,
    }
    mail = encode("1@example.com/0", details, Sealed(b"\x00\x00\x00\x02{}"))
    plain: dict[str, Any] = {
        "queue_name": "emails",
        "actor_name": "deliver_email",
        "args": [],
        "kwargs": {},
        "options": {},
    }
    plain |= {"message_id": "1", "message_timestamp": 1}
    for number in range(count):
        match number % 7:
            case 0:
                yield json.dumps(rng.choice(ODD)).encode()
            case 1:
                yield rng.randbytes(rng.randrange(40))
            case 2:
                yield json.dumps({**plain, rng.choice(list(plain)): rng.choice(ODD)}).encode()
            case 3:
                yield json.dumps({**plain, "args": [rng.choice(ODD) for _ in range(rng.randrange(5))]}).encode()
            case 4:
                yield json.dumps({name: plain[name] for name in rng.sample(list(plain), 5)}).encode()
            case 5:
                yield mail[: rng.randrange(len(mail))]
            case _:
                yield json.dumps(
                    {**plain, "options": {"eta": rng.choice([1e400, -1e400, 1e300, "x", [], True])}}
                ).encode()


def properties(rng: random.Random) -> pika.BasicProperties:
    headers = {rng.choice(["x", "x-death", "openviper-walk", "openviper-expires-at"]): rng.choice(WIRE)}
    return pika.BasicProperties(
        headers=rng.choice([None, {}, headers]),
        content_type=rng.choice([None, "application/x"]),
        message_id=rng.choice([None, "1"]),
        priority=rng.choice([None, 9]),
        delivery_mode=rng.choice([None, 1, 2]),
        type=rng.choice([None, "odd"]),
    )


def put(server: RabbitmqServer, queue: str, body: bytes, how: pika.BasicProperties) -> None:
    with server.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("", queue, body, how, mandatory=True)


def dead_letters(server: RabbitmqServer) -> int:
    with server.connect() as connection:
        count: int = connection.channel().queue_declare("emails.XQ", passive=True).method.message_count
        return count


@pytest.mark.parametrize("seed", [1])
async def test_junk_is_kept_and_mail_beside_it_goes_out(
    rabbitmq: RabbitmqServer, smtp: SmtpServer, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    email = smtp.settings(default_sender="shop@example.com")
    project = write_project(tmp_path / "shop", tasks=rabbitmq.tasks(), email=email)
    with override(EMAIL=email):
        get_broker()
        await send_email("first@example.com", "Order", text="Hi", background=True)
        junk = list(bodies(rng, 70))
        for body in junk:
            put(rabbitmq, rng.choice(["emails", "emails", "emails.DQ"]), body, properties(rng))
        await send_email("last@example.com", "Order", text="Hi", background=True)
    service = queue_service()
    assert service is not None
    store = service.store
    # One thread: of equal messages, a walk drops one that failed earlier than the one before it, as a copy.
    worker = Worker(project, threads=1)
    await asyncio.to_thread(worker.start)
    await smtp.arrive(2)
    deadline = time.monotonic() + PATIENCE
    while (stats := await asyncio.to_thread(store.stats)).failed < len(junk):
        assert time.monotonic() < deadline, f"{stats} {worker.output}"
        await asyncio.sleep(0.2)
    assert await asyncio.to_thread(worker.terminate) == 0
    stats = await asyncio.to_thread(store.stats)
    assert (stats.waiting, stats.later, stats.failed) == (0, 0, len(junk))
    assert "unexpected error" not in worker.output
    assert sorted(message.recipients[0] for message in smtp.messages) == ["first@example.com", "last@example.com"]
    jobs = await asyncio.to_thread(store.failed, 1000)
    assert all("cannot be read" in job.reason for job in jobs)
    # Of the same content: one line and one entry for each message, listed once.
    kept = len(junk) - dead_letters(rabbitmq)
    assert sum(worker.output.count(job.message_id) for job in jobs) == kept
    listed = await asyncio.to_thread(viperctl, "email", "failed", "list", "--project", project)
    assert listed.returncode == 0, listed.stderr
    # The broker counts what was taken and put back a moment later.
    while (stats := await asyncio.to_thread(store.stats)).failed != len(junk):
        assert time.monotonic() < deadline + PATIENCE, (stats, dead_letters(rabbitmq), listed.stdout[-500:])
        await asyncio.sleep(0.2)
    assert await asyncio.to_thread(store.purge_failed, None) == len(jobs)


@pytest.mark.parametrize("seed", [3, 4])
def test_junk_among_failed_mail_hides_none_of_it(rabbitmq: RabbitmqServer, seed: int) -> None:
    """Whatever stands in its queue or in that of dead letters."""
    rng = random.Random(seed)
    service = queue_service()
    assert service is not None
    service.store.failed(1)
    details: dict[str, Any] = {
        "message_id": "<1@example.com>",
        "progress": Progress(time.time()).to_json(),
        "due_at": None,
    }
    details |= {"reason": "550 no", "failed_at": time.time(), "uncertain": False}
    junk = list(bodies(rng, 42))
    for number, body in enumerate(junk):
        put(rabbitmq, rng.choice(["emails.failed", "emails.XQ"]), body, properties(rng))
        if number % 14 == 0:
            body = encode(f"{number}@example.com/0", {**details, "message_id": f"<{number}@example.com>"}, Sealed(b""))
            put(rabbitmq, "emails.failed", body, pika.BasicProperties(delivery_mode=2))
    for _ in range(3):
        shown = sorted(job.message_id for job in service.store.failed(1000))
        assert shown == ["<0@example.com>", "<14@example.com>", "<28@example.com>"]
    assert service.store.retry_failed(frozenset({"<14@example.com>"})) == 1
    assert service.store.purge_failed(None) == 2
