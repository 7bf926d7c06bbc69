"""What Redis keeps, and that each step happens once."""

import asyncio
import json
import threading
import time
from typing import Any

import pytest

from openviper.core.email import AttachmentData, EmailMessageData, QueueUnavailable, send_email, submit_email
from openviper.core.email.message import prepare
from openviper.core.email.message.storage import encode
from openviper.core.email.queue import enqueue_email_job, queue_service
from openviper.core.email.queue.job import Parcel, Progress, job_key
from openviper.core.email.queue.redis_spool import RedisSpool


def data(number: int = 1, **more: Any) -> EmailMessageData:
    return EmailMessageData([f"to{number}@example.com"], "Subject", text="Text", **more)


def parcel(number: int = 1) -> Parcel:
    message = prepare(data(number), default_sender="shop@example.com")
    key = job_key(message.message_id, message.recipients)
    return Parcel(key, message.message_id, encode(message), Progress(time.time()), keep=3600)


@pytest.fixture
def spool(redis_scene: Any) -> RedisSpool:
    service = queue_service()
    assert service is not None
    assert isinstance(service.spool, RedisSpool)
    return service.spool


def ticket(spool: RedisSpool) -> tuple[str, int, str]:
    """Take one ticket off the queue as a worker would."""
    raw = spool._patient.lpop("dramatiq:emails")
    assert raw is not None
    key, turn, name = json.loads(spool._patient.hget("dramatiq:emails.msgs", raw))["args"]
    return key, turn, name


def test_the_same_attachment_is_stored_once(redis_scene: Any, spool: RedisSpool) -> None:
    """1,000 messages with the same 5 MB take less than 25 MB."""
    client = redis_scene.broker.client()
    before = client.info("memory")["used_memory"]
    attachment = AttachmentData("invoice.pdf", bytes(range(256)) * (5 * 4096))
    for number in range(1000):
        message = prepare(data(number, attachments=[attachment]), default_sender="shop@example.com")
        key = job_key(message.message_id, message.recipients)
        one = Parcel(key, message.message_id, encode(message), Progress(time.time()), keep=90000)
        spool.enqueue(one, deadline=time.monotonic() + 5)
    assert client.llen("dramatiq:emails") == 1000
    assert client.info("memory")["used_memory"] - before < 25 * 1024**2
    (blob,) = client.keys("dramatiq:mail:blob:*")
    assert client.ttl(blob) > 24 * 3600


def test_of_two_uploads_of_the_same_attachment_one_stays(redis_scene: Any, spool: RedisSpool) -> None:
    """Two senders see at once that it is not there yet."""
    client = redis_scene.broker.client()
    content = b"x" * 100_000
    message = prepare(data(attachments=[AttachmentData("a.bin", content)]), default_sender="shop@example.com")
    one = Parcel("k", message.message_id, encode(message), Progress(time.time()), keep=60)
    theirs = spool._upload(content)
    spool.enqueue(one, deadline=time.monotonic() + 5)
    (blob,) = client.keys("dramatiq:mail:blob:*")
    digest = blob.rpartition(b":")[2].decode()
    other = one._replace(key="other")
    spool._ask_to_enqueue(other, time.monotonic() + 5, {digest: theirs}, {"blob0": digest, "parts": 1})
    assert not client.keys("dramatiq:mail:upload:*")
    assert client.keys("dramatiq:mail:blob:*") == [blob]


async def test_what_reaches_a_paused_redis_late_is_void(redis_scene: Any) -> None:
    await enqueue_email_job(data(1))
    redis_scene.broker.pause()
    begin = time.monotonic()
    try:
        with pytest.raises(QueueUnavailable):
            await enqueue_email_job(data(2))
        assert time.monotonic() - begin < 4
    finally:
        redis_scene.broker.resume()
    await asyncio.sleep(1)
    client = redis_scene.broker.client()
    assert client.llen("dramatiq:emails") == 1
    assert client.zcard("dramatiq:mail:open") == 1


async def test_a_refused_connection_is_told_at_once(redis_scene: Any) -> None:
    await enqueue_email_job(data(1))
    await asyncio.to_thread(redis_scene.broker.stop)
    begin = time.monotonic()
    with pytest.raises(QueueUnavailable):
        await enqueue_email_job(data(2))
    assert time.monotonic() - begin < 2


async def test_without_a_broker_enqueueing_says_which_setting_is_missing() -> None:
    with pytest.raises(QueueUnavailable, match="TASKS"):
        await enqueue_email_job(data())


def test_a_ticket_that_comes_twice_does_nothing_twice(spool: RedisSpool) -> None:
    spool.enqueue(parcel(), deadline=time.monotonic() + 5)
    taken = ticket(spool)
    held = spool.receive(*taken)
    assert held is not None
    assert spool.receive(*taken) is None, "another has it"
    spool.sent(held, remember=60)
    assert spool.receive(*taken) is None, "it was sent"


def test_an_old_ticket_counts_no_more(spool: RedisSpool) -> None:
    spool.enqueue(parcel(), deadline=time.monotonic() + 5)
    taken = ticket(spool)
    held = spool.receive(*taken)
    assert held is not None
    spool.again(held, Progress(time.time(), attempts=1), delay=0)
    time.sleep(0.01)
    assert spool.promote() == 1
    assert spool.receive(*taken) is None
    again = spool.receive(*ticket(spool))
    assert again is not None
    assert again.progress.attempts == 1


def test_a_message_that_is_queued_twice_is_queued_once(spool: RedisSpool) -> None:
    """The answer to the first may have been lost."""
    one = parcel()
    spool.enqueue(one, deadline=time.monotonic() + 5)
    spool.enqueue(one, deadline=time.monotonic() + 5)
    assert spool.figures().waiting == 1
    assert spool._patient.llen("dramatiq:emails") == 1


def test_after_its_deadline_nothing_is_taken(spool: RedisSpool) -> None:
    with pytest.raises(QueueUnavailable):
        spool.enqueue(parcel(), deadline=time.monotonic() - 0.5)
    assert spool.figures().waiting == 0


def test_a_claim_is_taken_over_only_from_a_worker_without_a_sign_of_life(spool: RedisSpool) -> None:
    """Not at once, since after an outage of Redis nobody has given one."""
    spool.enqueue(parcel(), deadline=time.monotonic() + 5)
    taken = ticket(spool)
    assert spool.receive(*taken) is not None
    assert spool.receive(*taken) is None
    assert spool._patient.zcard("dramatiq:mail:later") == 1, "it is looked at again in some seconds"
    held = spool.receive(*taken)
    assert held is not None
    assert held.repeated


def test_an_expired_attachment_is_told_as_damage(spool: RedisSpool) -> None:
    message = prepare(data(attachments=[AttachmentData("a.bin", b"x" * 100_000)]), default_sender="shop@example.com")
    one = Parcel("k", message.message_id, encode(message), Progress(time.time()), keep=60)
    spool.enqueue(one, deadline=time.monotonic() + 5)
    spool._patient.delete(*spool._patient.keys("dramatiq:mail:blob:*"))
    held = spool.receive(*ticket(spool))
    assert held is not None
    assert held.payload is None
    assert "expired" in held.damage


def test_failed_messages_are_kept_counted_retried_and_purged(spool: RedisSpool) -> None:
    ids = []
    for number in range(3):
        one = parcel(number)
        ids.append(one.message_id)
        spool.enqueue(one, deadline=time.monotonic() + 5)
        held = spool.receive(*ticket(spool))
        assert held is not None
        progress = Progress(time.time(), 4, None, {f"to{number}@example.com": "550 no"})
        spool.fail(held, progress, "550 no", keep=60, uncertain=number == 1)
    failed = spool.failed(10)
    assert [job.message_id for job in failed] == ids
    assert [job.uncertain for job in failed] == [False, True, False]
    assert failed[0].reason == "550 no"
    assert failed[0].progress.attempts == 4
    assert failed[0].payload is not None
    assert failed[0].payload.about()["To"] == "to0@example.com"
    assert spool.figures().failed == 3
    assert spool.retry_failed(frozenset(ids[:1])) == 1
    again = spool.receive(*ticket(spool))
    assert again is not None
    assert (again.progress.attempts, again.progress.left) == (0, ("to0@example.com",))
    assert spool.purge_failed(None) == 2
    assert spool.failed(10) == []


def test_a_failed_message_that_is_not_kept_is_gone(spool: RedisSpool) -> None:
    spool.enqueue(parcel(), deadline=time.monotonic() + 5)
    held = spool.receive(*ticket(spool))
    assert held is not None
    spool.fail(held, held.progress, "550", keep=0, uncertain=False)
    assert spool.failed(10) == []
    assert spool.figures().waiting == 0


async def test_an_unknown_payload_is_kept_as_failed(redis_scene: Any, spool: RedisSpool) -> None:
    await send_email("customer@example.net", "New", text="")
    (job,) = spool._patient.keys("dramatiq:mail:job:*")
    head = spool._patient.hget(job, "head").replace(b'"version":1', b'"version":9')
    spool._patient.hset(job, "head", head)
    with redis_scene.worker() as worker:
        deadline = time.monotonic() + 20
        while not (failed := await asyncio.to_thread(spool.failed, 10)):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
    assert "version" in failed[0].reason
    assert "customer@example.net" not in worker.output


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
    redis_scene: Any, spool: RedisSpool, damage: dict[str, bytes | None]
) -> None:
    """The worker has one thread, so that the next message waits behind it."""
    receipt = await submit_email("customer@example.net", "New", text="x")
    (job,) = spool._patient.keys("dramatiq:mail:job:*")
    for field, value in damage.items():
        if value is None:
            spool._patient.hdel(job, field)
        else:
            spool._patient.hset(job, field, value)
    await send_email("next@example.net", "New", text="x")
    with redis_scene.worker(threads=1):
        (message,) = await redis_scene.smtp.arrive(1, 20)
    assert message.recipients == ["next@example.net"]
    (failed,) = await asyncio.to_thread(spool.failed, 10)
    assert failed.reason.startswith("cannot be read")
    if damage.get("message_id") is None:
        assert failed.message_id == receipt.message_id


def test_what_redis_does_not_take_now_is_written_down_later(
    redis_scene: Any, spool: RedisSpool, caplog: pytest.LogCaptureFixture
) -> None:
    """It becomes a replica, which takes nothing, while a worker has a message in hand."""
    spool.enqueue(parcel(), deadline=time.monotonic() + 5)
    held = spool.receive(*ticket(spool))
    assert held is not None
    client = redis_scene.broker.client()
    client.replicaof("127.0.0.1", "1")
    writing = threading.Thread(target=spool.again, args=(held, held.progress), kwargs={"delay": 60})
    writing.start()
    time.sleep(1)
    client.replicaof("NO", "ONE")
    writing.join(20)
    assert spool.figures().later == 1
    (line,) = [record.getMessage() for record in caplog.records if record.name == "openviper.email"]
    assert "read only replica" in line


def test_attachments_last_as_long_as_a_failed_message_and_then_as_long_as_a_new_one(spool: RedisSpool) -> None:
    """A message may have waited so long that they would expire before it."""
    message = prepare(data(attachments=[AttachmentData("a.bin", b"x" * 100_000)]), default_sender="shop@example.com")
    key = job_key(message.message_id, message.recipients)
    one = Parcel(key, message.message_id, encode(message), Progress(time.time()), keep=1000)
    spool.enqueue(one, deadline=time.monotonic() + 5)
    (blob,) = spool._patient.keys("dramatiq:mail:blob:*")
    spool._patient.expire(blob, 5)
    held = spool.receive(*ticket(spool))
    assert held is not None
    spool.fail(held, held.progress, "550 no", keep=600, uncertain=False)
    assert 500 < spool._patient.ttl(blob) <= 600
    assert spool.retry_failed(None) == 1
    assert 900 < spool._patient.ttl(blob) <= 1000
