"""Whatever else stands on Redis where tickets and jobs are expected: it is kept as failed, and holds no worker."""

import asyncio
import json
import random
import time
from typing import Any

import pytest
from support.patience import PATIENCE
from support.workers import viperctl

from openviper.core.email import AttachmentData, EmailMessageData, QueueUnavailable, send_email, submit_email
from openviper.core.email.message import check_message
from openviper.core.email.message.storage import encode
from openviper.core.email.queue import enqueue_email_job, queue_service
from openviper.core.email.queue.job import NewJob, Progress, QueueStats, RejectedTicket, job_key
from openviper.core.email.queue.redis_store import RedisJobStore

JSON_VALUES = [None, True, 7, -1, 1e308, 10**400, "", "text", "\ud800", [], ["a"], {}, {"a": [1]}, "dramatiq:emails"]
REDIS_TYPES = ["string", "list", "set", "zset", "stream"]


@pytest.fixture
def store(redis_scene: Any) -> RedisJobStore:
    service = queue_service()
    assert service is not None
    assert isinstance(service.store, RedisJobStore)
    return service.store


def put(client: Any, key: bytes | str, kind: str) -> None:
    """Replace whatever is at ``key`` by a value of another type."""
    client.delete(key)
    write = {
        "string": lambda: client.set(key, b"\xffjunk"),
        "list": lambda: client.rpush(key, b"junk"),
        "set": lambda: client.sadd(key, b"junk"),
        "zset": lambda: client.zadd(key, {b"junk": 1}),
        "hash": lambda: client.hset(key, b"junk", b"junk"),
        "stream": lambda: client.xadd(key, {b"junk": b"junk"}),
    }
    write[kind]()


def push_ticket(client: Any, name: str, data: bytes) -> None:
    client.hset("dramatiq:emails.msgs", name, data)
    client.rpush("dramatiq:emails", name)


def ticket(name: str, **changed: Any) -> bytes:
    message = {
        "queue_name": "emails",
        "actor_name": "deliver_email",
        "args": [f"{name}@example.com/0123456789ab", 1, name],
        "kwargs": {},
        "options": {"redis_message_id": name},
        "message_id": name,
        "message_timestamp": 1,
    }
    message |= changed
    return json.dumps({name: value for name, value in message.items() if value is not ...}).encode()


def job_of(store: RedisJobStore) -> bytes:
    (key,) = store._worker_client.keys("dramatiq:mail:job:*")
    return bytes(key)


async def failed(store: RedisJobStore, count: int) -> list[Any]:
    deadline = time.monotonic() + PATIENCE
    while len(found := await asyncio.to_thread(store.failed, 10_000)) < count:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)
    return found


class Junk:
    """Random tickets and jobs. ``names`` of those that are no mail; ``ids`` of messages that were damaged."""

    def __init__(self, store: RedisJobStore, seed: int) -> None:
        self._store = store
        self._client = store._worker_client
        self._random = random.Random(seed)
        self.tickets = 0
        self.ids: set[str] = set()

    def add(self) -> None:
        self._random.choice([self.add_ticket, self.add_job])()

    def add_ticket(self) -> None:
        """Push a ticket that is not one: any bytes, any JSON, or any field of any other value."""
        self.tickets += 1
        name = f"junk-{self.tickets}"
        value = self._random.choice(JSON_VALUES)
        kind = self._random.randrange(4)
        if kind == 0:
            data = self._random.randbytes(self._random.randrange(40))
        elif kind == 1:
            data = json.dumps(value).encode()
        elif kind == 2:
            fields = ("queue_name", "actor_name", "args", "kwargs", "options", "message_id", "message_timestamp")
            # A Message-ID may be any text, and a time any number: such a ticket would still be one.
            field = self._random.choice(fields)
            odd = (None, True, 1.5, ["a"], {"a": 1}, ...) if field != "kwargs" else (None, 7, ["a"], {"a": 1}, ...)
            data = ticket(name, **{field: self._random.choice(odd)})
        else:
            args: list[Any] = [f"{name}@example.com/0123456789ab", 1, name]
            place = self._random.randrange(4)
            if place == 3:
                args = self._random.choice([[], args[:1], [*args, 1]])
            else:
                odd_args: tuple[list[Any], ...] = (
                    [None, 7, ["a"], {}, "text"],
                    [None, "1", -1, 1.5, 10**400],
                    [None, 7, [], "\ud800"],
                )
                args[place] = self._random.choice(odd_args[place])
            data = ticket(name, args=args)
        push_ticket(self._client, name, data)

    def add_job(self) -> None:
        """Queue a message and damage its job."""
        attachments = [AttachmentData("a.bin", self._random.randbytes(70_000))]
        data = EmailMessageData(["gone@example.com"], "Subject", text="Text", attachments=attachments)
        message = check_message(data, default_sender="shop@example.com")
        key = job_key(message.message_id, message.recipients)
        one = NewJob(key, message.message_id, encode(message), Progress(time.time()), keep=3600)
        self._store.add(one, deadline=time.monotonic() + PATIENCE)
        self.ids.add(message.message_id)
        job = f"dramatiq:mail:job:{key}"
        value = json.dumps(self._random.choice(JSON_VALUES)).encode()
        kind = self._random.randrange(5)
        if kind == 0:
            put(self._client, job, self._random.choice([*REDIS_TYPES, "hash"]))
        elif kind == 1:
            self._client.delete(job)
        elif kind == 2:
            blob = b"dramatiq:mail:blob:" + self._client.hget(job, "blob1")
            put(self._client, blob, self._random.choice([*REDIS_TYPES[1:], "hash"]))
        elif kind == 3:
            self._client.hdel(job, self._random.choice(["head", "parts", "part0", "blob1", "progress"]))
        else:
            junk = (value, b"inf", b"nan", b"1e300", b"-1", b"\xff\x00", b"x" * 10_000)
            field = self._random.choice(["head", "parts", "part0", "blob1", "progress", "turn"])
            self._client.hset(job, field, self._random.choice(junk if field != "turn" else junk[1:]))


async def run(redis_scene: Any, store: RedisJobStore, number: int, seed: int) -> None:
    junk = Junk(store, seed)
    for _ in range(number):
        await asyncio.to_thread(junk.add)
    last = await submit_email("last@example.com", "Order", text="")
    with redis_scene.worker(threads=2) as worker:
        (message,) = await redis_scene.smtp.arrive(1)
        assert message.parse()["Message-ID"] == last.message_id
        found = await failed(store, number)
        assert await asyncio.to_thread(worker.terminate) == 0
    assert len(found) == number
    assert junk.ids <= {job.message_id for job in found}
    assert all(job.reason for job in found)
    for message_id in junk.ids:
        assert worker.output.count(f"message {message_id} was not delivered") == 1
    assert "Worker thread" not in worker.output
    assert await asyncio.to_thread(store.stats) == QueueStats(0, 0, 0, number, None)
    assert await asyncio.to_thread(store.purge_failed, None) == number
    assert await asyncio.to_thread(store.failed, 10) == []


@pytest.mark.parametrize("seed", [1, 2])
async def test_random_tickets_and_jobs_are_kept_as_failed(redis_scene: Any, store: RedisJobStore, seed: int) -> None:
    await run(redis_scene, store, 60, seed)


@pytest.mark.long
async def test_a_thousand_random_tickets_and_jobs_are_kept_as_failed(redis_scene: Any, store: RedisJobStore) -> None:
    await run(redis_scene, store, 1000, 3)


@pytest.mark.parametrize("kind", REDIS_TYPES)
async def test_a_job_of_another_type_is_listed_with_the_reason_and_may_be_purged(
    redis_scene: Any, store: RedisJobStore, kind: str
) -> None:
    receipt = await submit_email("a@example.com", "Order", text="")
    put(store._worker_client, job_of(store), kind)
    with redis_scene.worker(threads=1):
        (job,) = await failed(store, 1)
    assert job.message_id == receipt.message_id
    assert job.reason == f"cannot be read: its job is a {kind} on Redis, not a hash"
    shown = viperctl("email", "failed", "show", job.message_id, "--project", redis_scene.folder).stdout
    assert f"its job is a {kind}" in shown
    assert await asyncio.to_thread(store.retry_failed, None) == 0
    assert await asyncio.to_thread(store.purge_failed, None) == 1
    assert not store._worker_client.keys("dramatiq:mail:job:*")


async def test_a_job_that_is_gone_is_listed_as_failed(redis_scene: Any, store: RedisJobStore) -> None:
    """Somebody deleted it, or a Redis that may evict keys has."""
    receipt = await submit_email("a@example.com", "Order", text="")
    store._worker_client.delete(job_of(store))
    with redis_scene.worker(threads=1):
        (job,) = await failed(store, 1)
    assert job.message_id == receipt.message_id
    assert "evicted" in job.reason


async def test_a_ticket_that_is_none_is_shown_and_purged_by_the_commands(
    redis_scene: Any, store: RedisJobStore
) -> None:
    push_ticket(store._worker_client, "one", b"null")
    with redis_scene.worker(threads=1) as worker:
        (job,) = await failed(store, 1)
    assert (
        "its ticket is not a Dramatiq message"
        in viperctl("email", "failed", "show", job.message_id, "--project", redis_scene.folder).stdout
    )
    assert worker.output.count("dead-lettered") == 1
    assert job.message_id.startswith("<ticket-")
    text = (
        f"Error: {job.message_id} holds no message to send again: its ticket is not a Dramatiq message; delete it with "
        f"`viperctl email failed purge {job.message_id.strip('<>')}`\n"
    )
    for which in (job.message_id, "--all"):
        done = viperctl("email", "failed", "retry", which, "--project", redis_scene.folder)
        assert (done.returncode, done.stdout, done.stderr) == (1, "0 queued again\n", text)
    done = viperctl("email", "failed", "purge", job.message_id, "--project", redis_scene.folder)
    assert "1 deleted" in done.stdout
    assert await asyncio.to_thread(store.failed, 10) == []


@pytest.mark.parametrize("names", [("one", "two"), (":1", ":2"), ("\xff", "\xff:0")])
async def test_tickets_that_are_none_are_told_apart(
    redis_scene: Any, store: RedisJobStore, names: tuple[str, str]
) -> None:
    for name in names:
        push_ticket(store._worker_client, name, b"null")
    with redis_scene.worker(threads=1):
        first, second = await failed(store, 2)
    assert first.message_id != second.message_id
    assert await asyncio.to_thread(store.purge_failed, frozenset([first.message_id])) == 1
    assert [job.message_id for job in await asyncio.to_thread(store.failed, 10)] == [second.message_id]


async def test_a_ticket_that_was_overwritten_can_be_retried(redis_scene: Any, store: RedisJobStore) -> None:
    receipt = await submit_email("a@example.com", "Order", text="")
    (name,) = store._worker_client.hkeys("dramatiq:emails.msgs")
    store._worker_client.hset("dramatiq:emails.msgs", name, b"[]")
    with redis_scene.worker(threads=1):
        (job,) = await failed(store, 1)
        assert job.message_id == receipt.message_id
        assert redis_scene.smtp.messages == []
        assert await asyncio.to_thread(store.retry_failed, frozenset([job.message_id])) == 1
        await redis_scene.smtp.arrive(1)
    assert await asyncio.to_thread(store.failed, 10) == []


@pytest.mark.parametrize(
    "args",
    [(None, 1, "t"), ({}, 1, "t"), ([], 1, "t"), ("k", None, "t"), ("k", 1, None), ("k", -1, "t"), ("k", 1, "t")],
)
def test_what_names_no_job_is_rejected_at_once(
    store: RedisJobStore, args: tuple[Any, Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RejectedTicket, match="names no job"):
        store.claim(*args)
    assert len([record for record in caplog.records if "kept as failed" in record.getMessage()]) == 1


@pytest.mark.parametrize("name", ["emails", "emails.msgs", "mail:open", "mail:later", "mail:failed"])
async def test_no_mail_is_queued_where_a_key_of_the_queue_has_another_type(
    redis_scene: Any, store: RedisJobStore, name: str
) -> None:
    """Nothing is written, the error names the key, and the probe finds the same."""
    client = store._worker_client
    put(client, f"dramatiq:{name}", "string")
    before = set(client.keys("*"))
    with pytest.raises(QueueUnavailable, match=f"dramatiq:{name} is a string"):
        await enqueue_email_job(EmailMessageData(["a@example.com"], "Order", text=""))
    assert set(client.keys("*")) == before
    with pytest.raises(QueueUnavailable, match=f"dramatiq:{name} is a string"):
        await asyncio.to_thread(store.probe)


@pytest.mark.parametrize("name", ["emails", "mail:later", "mail:failed", "consumers:emails"])
async def test_a_worker_stops_at_once_where_a_key_of_the_queue_has_another_type(
    redis_scene: Any, store: RedisJobStore, name: str
) -> None:
    """It says so once, and ends as it should."""
    with redis_scene.worker(threads=1) as worker:
        await send_email("gone@example.com", "Order", text="")
        await redis_scene.smtp.arrive(1)
        redis_scene.smtp.refuse("gone@example.com", 550)
        put(store._worker_client, f"dramatiq:{name}", "string")
        await asyncio.sleep(3)
        assert await asyncio.to_thread(worker.terminate) == 0
    assert worker.output.count("WRONGTYPE") <= 2
