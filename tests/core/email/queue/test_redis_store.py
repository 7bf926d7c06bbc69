"""What Redis keeps, and that each step happens once."""

import asyncio
import json
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from support.brokers import queueing_again
from support.patience import PATIENCE

from openviper.core.email import (
    AttachmentData,
    DeliveryMode,
    EmailMessageData,
    InvalidMessage,
    QueueUnavailable,
    send_email,
    submit_email,
    subscribe,
)
from openviper.core.email.delivery.job_attempt import after_death
from openviper.core.email.message import check_message
from openviper.core.email.message.storage import encode
from openviper.core.email.queue import enqueue_email_job, queue_service
from openviper.core.email.queue.job import NewJob, Progress, job_key
from openviper.core.email.queue.keys import KeyClaim, KeyRecord
from openviper.core.email.queue.redis_store import RedisJobStore, translate_errors
from openviper.core.email.queue.retry import GiveUp, Retry
from openviper.core.email.settings import EmailSettings
from openviper.tasks.redis_broker import may_pass


def data(number: int = 1, **more: Any) -> EmailMessageData:
    return EmailMessageData([f"to{number}@example.com"], "Subject", text="Text", **more)


def new_job(number: int = 1) -> NewJob:
    message = check_message(data(number), default_sender="shop@example.com")
    key = job_key(message.message_id, message.recipients)
    return NewJob(key, message.message_id, encode(message), Progress(time.time()), keep=3600)


@pytest.fixture
def store(redis_scene: Any) -> RedisJobStore:
    service = queue_service()
    assert service is not None
    assert isinstance(service.store, RedisJobStore)
    return service.store


def ticket(store: RedisJobStore) -> tuple[str, int, str]:
    """Take one ticket off the queue as a worker would."""
    raw = store._worker_client.lpop("dramatiq:emails")
    assert raw is not None
    key, turn, name = json.loads(store._worker_client.hget("dramatiq:emails.msgs", raw))["args"]
    return key, turn, name


def test_the_same_attachment_is_stored_once(redis_scene: Any, store: RedisJobStore) -> None:
    """1,000 messages with the same 5 MB take less than 25 MB."""
    client = redis_scene.broker.client()
    before = client.info("memory")["used_memory"]
    attachment = AttachmentData("invoice.pdf", bytes(range(256)) * (5 * 4096))
    for number in range(1000):
        message = check_message(data(number, attachments=[attachment]), default_sender="shop@example.com")
        key = job_key(message.message_id, message.recipients)
        one = NewJob(key, message.message_id, encode(message), Progress(time.time()), keep=90000)
        store.add(one, deadline=time.monotonic() + PATIENCE)
    assert client.llen("dramatiq:emails") == 1000
    assert client.info("memory")["used_memory"] - before < 25 * 1024**2
    (blob,) = client.keys("dramatiq:mail:blob:*")
    assert client.ttl(blob) > 24 * 3600


def test_of_two_uploads_of_the_same_attachment_one_stays(redis_scene: Any, store: RedisJobStore) -> None:
    """Two senders see at once that it is not there yet."""
    client = redis_scene.broker.client()
    content = b"x" * 100_000
    message = check_message(data(attachments=[AttachmentData("a.bin", content)]), default_sender="shop@example.com")
    one = NewJob("k", message.message_id, encode(message), Progress(time.time()), keep=60)
    theirs = store._upload(content)
    store.add(one, deadline=time.monotonic() + PATIENCE)
    (blob,) = client.keys("dramatiq:mail:blob:*")
    digest = blob.rpartition(b":")[2].decode()
    other = one._replace(key="other")
    store._add_in_one_step(other, time.monotonic() + PATIENCE, {digest: theirs}, {"blob0": digest, "parts": 1})
    assert not client.keys("dramatiq:mail:upload:*")
    assert client.keys("dramatiq:mail:blob:*") == [blob]


async def test_what_reaches_a_paused_redis_late_is_void(redis_scene: Any) -> None:
    await enqueue_email_job(data(1))
    redis_scene.broker.pause()
    try:
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(QueueUnavailable):
                await enqueue_email_job(data(2))
    finally:
        redis_scene.broker.resume()
    await asyncio.sleep(1)
    client = redis_scene.broker.client()
    assert client.llen("dramatiq:emails") == 1
    assert client.zcard("dramatiq:mail:open") == 1


async def test_a_refused_connection_is_told_at_once(redis_scene: Any) -> None:
    await enqueue_email_job(data(1))
    await asyncio.to_thread(redis_scene.broker.stop)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(QueueUnavailable, match="refused"):
            await enqueue_email_job(data(2))


async def test_without_a_broker_enqueueing_says_which_setting_is_missing() -> None:
    with pytest.raises(QueueUnavailable, match="TASKS"):
        await enqueue_email_job(data())


def test_a_ticket_that_comes_twice_does_nothing_twice(store: RedisJobStore) -> None:
    store.add(new_job(), deadline=time.monotonic() + PATIENCE)
    taken = ticket(store)
    claimed = store.claim(*taken)
    assert claimed is not None
    assert store.claim(*taken) is None, "another has it"
    store.finish(claimed, remember=60)
    assert store.claim(*taken) is None, "it was sent"


def test_an_old_ticket_counts_no_more(store: RedisJobStore) -> None:
    store.add(new_job(), deadline=time.monotonic() + PATIENCE)
    taken = ticket(store)
    claimed = store.claim(*taken)
    assert claimed is not None
    store.retry(claimed, Progress(time.time(), attempts=1), delay=0)
    time.sleep(0.01)
    assert store.promote() == 1
    assert store.claim(*taken) is None
    retry = store.claim(*ticket(store))
    assert retry is not None
    assert retry.progress.attempts == 1


def test_a_message_that_is_queued_twice_is_queued_once(store: RedisJobStore) -> None:
    """The answer to the first may have been lost."""
    one = new_job()
    store.add(one, deadline=time.monotonic() + PATIENCE)
    store.add(one, deadline=time.monotonic() + PATIENCE)
    assert store.stats().waiting == 1
    assert store._worker_client.llen("dramatiq:emails") == 1


def test_after_its_deadline_nothing_is_taken(store: RedisJobStore) -> None:
    with pytest.raises(QueueUnavailable):
        store.add(new_job(), deadline=time.monotonic() - 0.5)
    assert store.stats().waiting == 0


def test_a_claim_is_taken_over_only_from_a_worker_without_a_sign_of_life(store: RedisJobStore) -> None:
    """Not at once, since after an outage of Redis nobody has given one."""
    store.add(new_job(), deadline=time.monotonic() + PATIENCE)
    taken = ticket(store)
    assert store.claim(*taken) is not None
    assert store.claim(*taken) is None
    assert store._worker_client.zcard("dramatiq:mail:later") == 1, "it is looked at again in some seconds"
    claimed = store.claim(*taken)
    assert claimed is not None
    assert claimed.repeated
    assert claimed.progress.attempts == 1, "a death counts as an attempt"


def test_each_death_counts_until_an_attempt_is_written_down(store: RedisJobStore) -> None:
    store.add(new_job(), deadline=time.monotonic() + PATIENCE)
    taken = ticket(store)
    jobs = [store.claim(*taken) for _ in range(5)]
    assert [job and job.progress.attempts for job in jobs] == [0, None, 1, None, 2]
    last = jobs[-1]
    assert last is not None
    store.retry(last, replace(last.progress, attempts=3), delay=0)
    time.sleep(0.01)
    store.promote()
    again = store.claim(*ticket(store))
    assert again is not None
    assert (again.progress.attempts, again.repeated) == (3, False)


def test_an_expired_attachment_is_told_as_damage(store: RedisJobStore) -> None:
    attachment = AttachmentData("a.bin", b"x" * 100_000)
    message = check_message(data(attachments=[attachment], sensitive=True), default_sender="shop@example.com")
    one = NewJob("k", message.message_id, encode(message), Progress(time.time()), keep=60)
    store.add(one, deadline=time.monotonic() + PATIENCE)
    store._worker_client.delete(*store._worker_client.keys("dramatiq:mail:blob:*"))
    claimed = store.claim(*ticket(store))
    assert claimed is not None
    assert claimed.payload is not None
    assert claimed.payload.parts == ()
    assert "expired" in str(claimed.problem)
    store.fail(claimed, claimed.progress, "expired", keep=60, uncertain=False)
    assert not [name for name in store._worker_client.hkeys("dramatiq:mail:job:k") if name.startswith(b"part")][1:]
    assert store.failed(1)[0].content_dropped


def test_failed_messages_are_kept_counted_retried_and_purged(store: RedisJobStore) -> None:
    ids = []
    for number in range(3):
        one = new_job(number)
        ids.append(one.message_id)
        store.add(one, deadline=time.monotonic() + PATIENCE)
        claimed = store.claim(*ticket(store))
        assert claimed is not None
        progress = Progress(time.time(), 4, None, {f"to{number}@example.com": "550 no"})
        store.fail(claimed, progress, "550 no", keep=60, uncertain=number == 1)
    failed = store.failed(10)
    assert [job.message_id for job in failed] == ids
    assert [job.uncertain for job in failed] == [False, True, False]
    assert failed[0].reason == "550 no"
    assert failed[0].progress.attempts == 4
    assert failed[0].payload is not None
    assert failed[0].payload.summary()["To"] == "to0@example.com"
    assert store.stats().failed == 3
    assert store.retry_failed(frozenset(ids[:1])) == 1
    retry = store.claim(*ticket(store))
    assert retry is not None
    assert (retry.progress.attempts, retry.progress.pending) == (0, ("to0@example.com",))
    assert store.purge_failed(None) == 2
    assert store.failed(10) == []


def test_a_failed_message_that_is_not_kept_is_gone(store: RedisJobStore) -> None:
    store.add(new_job(), deadline=time.monotonic() + PATIENCE)
    claimed = store.claim(*ticket(store))
    assert claimed is not None
    store.fail(claimed, claimed.progress, "550", keep=0, uncertain=False)
    assert store.failed(10) == []
    assert store.stats().waiting == 0


async def test_a_sender_that_is_cancelled_leaves_nothing_behind(
    redis_scene: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await enqueue_email_job(data(1))
    redis_scene.broker.pause()
    try:
        sending = asyncio.create_task(enqueue_email_job(data(2)))
        await asyncio.sleep(0.2)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await asyncio.sleep(1.5)
    finally:
        redis_scene.broker.resume()
    del sending
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.parametrize(
    "damage",
    [
        {"head": None},
        {"head": b"\xff{"},
        {"parts": None},
        {"parts": b"many"},
        {"part0": None},
        {"progress": None},
        {"message_id": None, "head": None},
        {"message_id": b"\xff", "head": b"[]"},
    ],
)
async def test_a_damaged_job_is_kept_as_failed_and_stops_nobody(
    redis_scene: Any, store: RedisJobStore, damage: dict[str, bytes | None]
) -> None:
    """The worker has one thread, so that the next message waits behind it."""
    receipt = await submit_email("customer@example.net", "New", text="x")
    (job,) = store._worker_client.keys("dramatiq:mail:job:*")
    for field, value in damage.items():
        if value is None:
            store._worker_client.hdel(job, field)
        else:
            store._worker_client.hset(job, field, value)
    await send_email("next@example.net", "New", text="x")
    with redis_scene.worker(threads=1):
        (message,) = await redis_scene.smtp.arrive(1)
    assert message.recipients == ["next@example.net"]
    (failed,) = await asyncio.to_thread(store.failed, 10)
    assert failed.reason.startswith("cannot be read")
    if damage.get("message_id") is None:
        assert failed.message_id == receipt.message_id


def test_what_redis_does_not_take_now_is_written_down_later(
    redis_scene: Any, store: RedisJobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It becomes a replica, which takes nothing, while a worker has a message in hand."""
    store.add(new_job(), deadline=time.monotonic() + PATIENCE)
    claimed = store.claim(*ticket(store))
    assert claimed is not None
    client = redis_scene.broker.client()
    client.replicaof("127.0.0.1", "1")
    writing = threading.Thread(target=store.retry, args=(claimed, claimed.progress), kwargs={"delay": 60})
    writing.start()
    deadline = time.monotonic() + PATIENCE
    while not [record for record in caplog.records if record.name == "openviper.email"]:
        assert time.monotonic() < deadline, "nothing was said of the replica"
        time.sleep(0.05)
    client.replicaof("NO", "ONE")
    writing.join(PATIENCE)
    assert store.stats().later == 1
    (line,) = [record.getMessage() for record in caplog.records if record.name == "openviper.email"]
    assert "read only replica" in line


def test_attachments_last_as_long_as_a_failed_message_and_then_as_long_as_a_new_one(store: RedisJobStore) -> None:
    """A message may have waited so long that they would expire before it."""
    message = check_message(
        data(attachments=[AttachmentData("a.bin", b"x" * 100_000)]), default_sender="shop@example.com"
    )
    key = job_key(message.message_id, message.recipients)
    one = NewJob(key, message.message_id, encode(message), Progress(time.time()), keep=1000)
    store.add(one, deadline=time.monotonic() + PATIENCE)
    (blob,) = store._worker_client.keys("dramatiq:mail:blob:*")
    store._worker_client.expire(blob, 100)
    claimed = store.claim(*ticket(store))
    assert claimed is not None
    store.fail(claimed, claimed.progress, "550 no", keep=600, uncertain=False)
    assert 500 < store._worker_client.ttl(blob) <= 600
    assert store.retry_failed(None) == 1
    assert 900 < store._worker_client.ttl(blob) <= 1000


SECRET = b"Invoice for Anna M., 42 Secret Street. " * 4000


def upload(store: RedisJobStore) -> str:
    """Add a message whose attachment is uploaded, and return all that the failure shows."""
    message = check_message(
        data(attachments=[AttachmentData("invoice.txt", SECRET)]), default_sender="shop@example.com"
    )
    key = job_key(message.message_id, message.recipients)
    job = NewJob(key, message.message_id, encode(message), Progress(time.time()), keep=3600)
    with pytest.raises(QueueUnavailable) as raised:
        store.add(job, deadline=time.monotonic() + PATIENCE)
    return "".join(traceback.format_exception(raised.value))


def full(client: Any) -> None:
    client.config_set("maxmemory", 1)


def read_only(client: Any) -> None:
    client.replicaof("127.0.0.1", "1")


def forbidding(client: Any) -> None:
    client.acl_setuser("default", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-append"])


@pytest.mark.parametrize("trouble", [full, read_only, forbidding])
def test_a_refused_upload_shows_nothing_of_the_attachment(redis_scene: Any, store: RedisJobStore, trouble: Any) -> None:
    """The client library puts the beginning of a pipelined command into its errors."""
    trouble(redis_scene.broker.client())
    shown = upload(store)
    assert "Redis: " in shown
    assert "Anna" not in shown
    assert "of pipeline" not in shown


async def test_a_refused_upload_is_logged_without_content(redis_scene: Any, caplog: pytest.LogCaptureFixture) -> None:
    full(redis_scene.broker.client())
    with pytest.raises(QueueUnavailable):
        await enqueue_email_job(data(attachments=[AttachmentData("invoice.txt", SECRET)]))
    lines = [record.getMessage() for record in caplog.records]
    assert any("OutOfMemoryError" in line for line in lines)
    assert not any("Anna" in line for line in lines)


def test_a_command_that_the_server_repeats_is_not_shown(redis_scene: Any, store: RedisJobStore) -> None:
    """``unknown command 'X', with args beginning with: ...`` comes from servers that lack or rename a command."""
    client = redis_scene.broker.client()
    with pytest.raises(QueueUnavailable) as raised, translate_errors():
        client.execute_command("APPENDIX", "key", SECRET)
    shown = "".join(traceback.format_exception(raised.value))
    assert "unknown command" in shown
    assert "Anna" not in shown


OWN_ID = {"Message-ID": "<order-7@shop.example>"}


async def own(text: str = "Order 7", to: str = "a@example.com", **more: Any) -> Any:
    return await submit_email(to, "Order", text=text, headers=OWN_ID, **more)


OTHERS: list[dict[str, Any]] = [
    {"text": "Order 8"},
    {"attachments": [AttachmentData("a.bin", b"other" * 20_000)]},
    {"reply_to": ["other@example.com"]},
]


@pytest.mark.parametrize("other", OTHERS, ids=["text", "attachment", "header"])
@pytest.mark.parametrize("state", ["waiting", "sent", "failed"])
async def test_another_message_with_a_message_id_in_use_is_refused(
    redis_scene: Any, store: RedisJobStore, state: str, other: dict[str, Any]
) -> None:
    await own(attachments=[AttachmentData("a.bin", b"first" * 20_000)])
    if state != "waiting":
        claimed = await asyncio.to_thread(lambda: store.claim(*ticket(store)))
        assert claimed is not None
        if state == "sent":
            await asyncio.to_thread(store.finish, claimed, remember=60)
        else:
            await asyncio.to_thread(store.fail, claimed, claimed.progress, "550", keep=60, uncertain=False)
    given = {"attachments": [AttachmentData("a.bin", b"first" * 20_000)], **other}
    with pytest.raises(InvalidMessage, match=r"<order-7@shop\.example> is in use"):
        await own(**given)
    stats = await asyncio.to_thread(store.stats)
    assert (stats.waiting, stats.failed) == (int(state == "waiting"), int(state == "failed"))
    assert redis_scene.smtp.messages == []


@pytest.mark.parametrize("sent", [False, True])
async def test_the_same_message_again_is_the_first_one_and_one_line(
    redis_scene: Any, store: RedisJobStore, sent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    unsubscribe = subscribe(lambda event: events.append(event.kind))
    try:
        first = await own()
        if sent:
            claimed = await asyncio.to_thread(lambda: store.claim(*ticket(store)))
            assert claimed is not None
            await asyncio.to_thread(store.finish, claimed, remember=60)
        await asyncio.sleep(0.01)  # it has another date
        second = await own()
    finally:
        unsubscribe()
    assert (first.duplicate, second.duplicate) == (False, True)
    assert (second, second.message_id) == (first._replace(duplicate=True), "<order-7@shop.example>")
    assert second.mode is DeliveryMode.QUEUED
    assert (events.count("queued"), events.count("duplicate")) == (1, 1)
    assert (await asyncio.to_thread(store.stats)).waiting == int(not sent)
    (line,) = [record.getMessage() for record in caplog.records if "not queued again" in record.getMessage()]
    assert "<order-7@shop.example>" in line


def test_a_claim_of_the_very_message_that_is_queued_is_no_obstacle(redis_scene: Any, store: RedisJobStore) -> None:
    """It was deferred, and what is left of it at the end of its process is queued."""
    job = new_job()
    claim = KeyClaim("order-7", "print", job.message_id, "owner", 60.0)
    job = job._replace(claim=claim)
    other = job._replace(claim=claim._replace(message_id="<other@example.com>"))

    def add(added: NewJob) -> object:
        return store.add(added, deadline=time.monotonic() + PATIENCE)

    store.use_keys(lambda keys: keys.claim(claim, lease=60, deadline=time.monotonic() + PATIENCE))
    assert add(other) == KeyRecord("in_flight", "print", job.message_id)
    assert add(job) is True
    assert add(other) == KeyRecord("done", "print", job.message_id, '{"mode": "queued"}')
    assert store.stats().waiting == 1


async def test_a_message_id_may_be_used_for_each_recipient(redis_scene: Any, store: RedisJobStore) -> None:
    """Copies of one message that go in envelopes of their own, each with its own words."""
    await own(to="a@example.com")
    await own("Order 7, your copy", to="b@example.com")
    assert (await asyncio.to_thread(store.stats)).waiting == 2


async def test_the_same_failed_message_again_is_queued_again(redis_scene: Any, store: RedisJobStore) -> None:
    await own()
    claimed = await asyncio.to_thread(lambda: store.claim(*ticket(store)))
    assert claimed is not None
    await asyncio.to_thread(store.fail, claimed, claimed.progress, "550", keep=60, uncertain=False)
    await own()
    stats = await asyncio.to_thread(store.stats)
    assert (stats.waiting, stats.failed) == (1, 0)


def test_a_job_of_the_version_before_is_taken_for_the_same_message(store: RedisJobStore) -> None:
    """It has no digest; the sender may be repeating it after a lost answer."""
    one = new_job()
    store.add(one, deadline=time.monotonic() + PATIENCE)
    store._worker_client.hdel(f"dramatiq:mail:job:{one.key}", "digest")
    assert store.add(one, deadline=time.monotonic() + PATIENCE) is False


KILLER = """
import os, signal
from openviper.core.email.backends import EmailBackend

class Killer(EmailBackend):
    async def send(self, message):
        with open(os.environ["ATTEMPTS"], "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_message_that_kills_its_workers_ends_as_failed(
    redis_scene: Any, store: RedisJobStore, tmp_path: Path
) -> None:
    attempts = tmp_path / "attempts"
    (redis_scene.folder / "killer.py").write_text(KILLER)
    with (redis_scene.folder / "settings.py").open("a") as settings:
        settings.write("EMAIL |= {'backend': 'killer.Killer', 'retry_max_age': 1}\n")
    receipt = await submit_email("a@example.com", "Order", text="x")
    worker = redis_scene.worker(threads=1, env={"ATTEMPTS": str(attempts)})
    await asyncio.to_thread(worker.start, ready=False)
    await asyncio.to_thread(worker.wait)
    with redis_scene.worker(threads=1, env={"ATTEMPTS": str(attempts)}) as second:
        deadline = time.monotonic() + PATIENCE
        while not (jobs := await asyncio.to_thread(store.failed, 10)):
            assert time.monotonic() < deadline, second.output
            await asyncio.sleep(0.2)
        assert await asyncio.to_thread(second.terminate) == 0
    assert attempts.read_text() == "x"
    (job,) = jobs
    assert (job.message_id, job.uncertain, job.progress.attempts) == (receipt.message_id, True, 1)
    assert "its worker died" in job.reason


def test_deaths_are_as_far_apart_as_other_failures_and_end_with_the_age(store: RedisJobStore) -> None:
    """Each death costs a worker, so that a message may not cause one after the other."""
    settings = EmailSettings(default_sender="shop@example.com", retry_max_age=3600)
    store.add(new_job(), deadline=time.monotonic() + PATIENCE)
    taken = ticket(store)
    delays = []
    for attempts in range(1, 5):
        assert store.claim(*taken) is not None
        assert store.claim(*taken) is None
        claimed = store.claim(*taken)
        assert claimed is not None
        decision = after_death(claimed, settings)
        assert isinstance(decision, Retry)
        assert (decision.progress.attempts, decision.progress.uncertain) == (attempts, True)
        delays.append(decision.delay)
        store.retry(claimed, decision.progress, delay=0)
        time.sleep(0.01)
        store.promote()
        taken = ticket(store)
    assert [1.5 * 2**n <= delay <= 3 * 2**n for n, delay in enumerate(delays)] == [True] * 4
    assert claimed is not None
    old = claimed._replace(progress=replace(claimed.progress, since=time.time() - 3700))
    assert isinstance(after_death(old, settings), GiveUp)
    late = after_death(claimed._replace(progress=replace(claimed.progress, expires_at=time.time() - 1)), settings)
    assert isinstance(late, GiveUp)
    assert "expired" in late.reason


REFUSALS = {
    "a replica": (lambda client: client.replicaof("127.0.0.1", "1"), lambda client: client.replicaof("NO", "ONE")),
    "a replica without its primary": (
        lambda client: (client.config_set("replica-serve-stale-data", "no"), client.replicaof("127.0.0.1", "1")),
        lambda client: client.replicaof("NO", "ONE"),
    ),
    "too few replicas": (
        lambda client: client.config_set("min-replicas-to-write", 1),
        lambda client: client.config_set("min-replicas-to-write", 0),
    ),
}


@pytest.mark.parametrize(("refuse", "accept"), list(REFUSALS.values()), ids=list(REFUSALS))
async def test_while_redis_refuses_writes_mail_takes_another_mode_and_a_worker_waits(
    redis_scene: Any, store: RedisJobStore, refuse: Any, accept: Any
) -> None:
    """What a worker has in hand is recorded once Redis takes it, and mail is queued again."""
    client = redis_scene.broker.client()
    gate = redis_scene.smtp.hold("body", nth=1)
    await send_email("first@example.com", "Order", text="")
    with redis_scene.worker(threads=1) as worker:
        await gate.reached()
        await asyncio.to_thread(refuse, client)
        for draining in (False, True):
            with pytest.raises(QueueUnavailable):
                await asyncio.to_thread(store.probe, draining=draining)
        assert (await submit_email("second@example.com", "Order", text="")).mode is DeliveryMode.INLINE
        gate.release()
        await redis_scene.smtp.arrive(2)
        await asyncio.sleep(1)
        await asyncio.to_thread(accept, client)
        await queueing_again()
        assert (await submit_email("third@example.com", "Order", text="")).mode is DeliveryMode.QUEUED
        messages = await redis_scene.smtp.arrive(3)
        assert await asyncio.to_thread(worker.terminate) == 0
    assert sorted(message.recipients[0] for message in messages) == [
        "first@example.com",
        "second@example.com",
        "third@example.com",
    ]
    assert (await asyncio.to_thread(store.stats)).waiting == 0


@pytest.mark.parametrize(
    ("line", "passes"),
    [
        ("LOADING Redis is loading the dataset in memory", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        ("READONLY You can't write against a read only replica.", True),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", True),
        ("OOM command not allowed when used memory > 'maxmemory'.", True),
        ("ERR Error running script (call to f_1): @user_script:9: -OOM command not allowed when used memory", True),
        ("NOAUTH Authentication required.", True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
        ("ERR Error running script (call to f_1): @user_script:9: WRONGTYPE Operation against a key", False),
        ("NOPERM this user has no permissions to run the 'hset' command", False),
        ("ERR value is not an integer or out of range", False),
        ("ERR unknown command 'HGETDEL'", False),
    ],
)
def test_refusals_that_pass_are_told_from_those_that_stay(line: str, passes: bool) -> None:
    """In the words of Redis 6 and 7, as the client library reads them."""
    error = redis._parsers.base.BaseParser.parse_error(line)
    assert may_pass(error) is passes


@pytest.mark.parametrize(
    ("error", "passes"), [(redis.ConnectionError(), True), (redis.TimeoutError(), True), (redis.DataError(), False)]
)
def test_a_lost_connection_passes_and_a_value_of_a_wrong_type_stays(error: redis.RedisError, passes: bool) -> None:
    assert may_pass(error) is passes
