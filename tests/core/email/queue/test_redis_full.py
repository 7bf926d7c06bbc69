"""Redis at ``maxmemory``: a send is refused before its first write, and all that takes mail out goes on."""

import asyncio
import threading
import time
from typing import Any

import dramatiq
import pytest
from support.patience import PATIENCE

from openviper.conf import override
from openviper.core.email import AttachmentData, DeliveryMode, EmailMessageData, QueueUnavailable, submit_email
from openviper.core.email.message import check_message
from openviper.core.email.message.storage import encode
from openviper.core.email.queue import enqueue_email_job, queue_service
from openviper.core.email.queue.job import ClaimedJob, NewJob, Progress, job_key
from openviper.core.email.queue.redis_store import RedisJobStore
from openviper.tasks import actor, get_broker


@pytest.fixture
def store(redis_scene: Any) -> RedisJobStore:
    service = queue_service()
    assert service is not None
    assert isinstance(service.store, RedisJobStore)
    return service.store


def new_job(number: int, text: str = "Text", **more: Any) -> NewJob:
    data = EmailMessageData([f"to{number}@example.com"], "Subject", text=text, **more)
    message = check_message(data, default_sender="shop@example.com")
    key = job_key(message.message_id, message.recipients)
    return NewJob(key, message.message_id, encode(message), Progress(time.time()), keep=3600)


def limit_memory(client: Any, room: int) -> int:
    """Leave ``room`` bytes; return the limit."""
    limit: int = client.info("memory")["used_memory"] + room
    client.config_set("maxmemory", limit)
    return limit


def everything(client: Any) -> set[bytes]:
    return set(client.keys("*")) - {b"dramatiq:mail:probe"}


def add_until_refused(store: RedisJobStore, text: str = "x" * 2000) -> list[NewJob]:
    jobs: list[NewJob] = []
    while True:
        job = new_job(len(jobs), text)
        try:
            store.add(job, deadline=time.monotonic() + PATIENCE)
        except QueueUnavailable as error:
            assert "maxmemory" in str(error)  # noqa: PT017 - the loop ends by it
            return jobs
        jobs.append(job)
        assert len(jobs) < 100_000, "never refused"


def claim(store: RedisJobStore, job: NewJob, turn: int = 1) -> ClaimedJob:
    claimed = store.claim(job.key, turn, f"{job.key}:{turn}")
    assert claimed is not None
    return claimed


@pytest.mark.parametrize("big", [False, True], ids=["small", "with a large attachment"])
def test_a_refused_send_leaves_nothing(redis_scene: Any, store: RedisJobStore, big: bool) -> None:
    client = redis_scene.broker.client()
    store.add(new_job(1), deadline=time.monotonic() + PATIENCE)
    # Every script is known to the server, so that none is loaded later.
    with pytest.raises(QueueUnavailable, match="too long"):
        store.add(new_job(1), deadline=time.monotonic() - 1)
    limit_memory(client, 1_000_000)
    add_until_refused(store)
    before = everything(client), client.llen("dramatiq:emails"), client.zcard("dramatiq:mail:open")
    attachments = [AttachmentData("a.bin", b"x" * 2_500_000)] if big else None
    for number in range(3):
        with pytest.raises(QueueUnavailable, match="maxmemory"):
            store.add(new_job(number, attachments=attachments), deadline=time.monotonic() + PATIENCE)
    assert (everything(client), client.llen("dramatiq:emails"), client.zcard("dramatiq:mail:open")) == before


def test_an_attachment_that_fits_only_in_part_leaves_no_part(redis_scene: Any, store: RedisJobStore) -> None:
    client = redis_scene.broker.client()
    limit_memory(client, 4_000_000)
    job = new_job(1, attachments=[AttachmentData("a.bin", b"x" * 20_000_000)])
    with pytest.raises(QueueUnavailable, match="maxmemory"):
        store.add(job, deadline=time.monotonic() + PATIENCE)
    assert not everything(client)


def test_every_step_of_a_worker_and_of_the_commands_is_let_through(redis_scene: Any, store: RedisJobStore) -> None:
    client = redis_scene.broker.client()
    limit_memory(client, 500_000)
    finished, retried, failed, purged, *_ = add_until_refused(store)
    client.config_set("maxmemory", 1)  # from here on it is full whatever is taken out
    store.finish(claim(store, finished), remember=60)
    store.retry(claim(store, retried), Progress(time.time(), attempts=1), delay=0)
    time.sleep(0.01)
    assert store.promote() == 1
    store.finish(claim(store, retried, turn=2), remember=60)
    for job in (failed, purged):
        store.fail(claim(store, job), Progress(time.time(), 1), "550 no", keep=60, uncertain=False)
    assert store.retry_failed(frozenset([failed.message_id])) == 1
    assert store.purge_failed(None) == 1
    store.fail(claim(store, failed, turn=2), Progress(time.time(), 1), "550 no", keep=60, uncertain=False)
    assert [job.message_id for job in store.failed(10)] == [failed.message_id]
    store.probe(draining=True)
    with pytest.raises(QueueUnavailable, match="maxmemory"):
        store.probe()


async def test_mail_takes_another_mode_while_it_is_full_and_a_worker_that_starts_then_drains_it(
    redis_scene: Any,
) -> None:
    client = redis_scene.broker.client()
    limit_memory(client, 600_000)
    queued = 0
    while (receipt := await submit_email("a@example.com", "Order", text="x" * 4000)).mode is DeliveryMode.QUEUED:
        queued += 1
        assert queued < 1000
    assert receipt.mode is DeliveryMode.INLINE
    client.config_set("maxmemory", 1)  # from here on it is full, whatever it frees by itself
    with pytest.raises(QueueUnavailable):
        await enqueue_email_job(EmailMessageData(["a@example.com"], "Order", text="x"))
    assert queued > 10
    assert client.llen("dramatiq:emails") == client.zcard("dramatiq:mail:open") == queued
    with redis_scene.worker() as worker:
        await redis_scene.smtp.arrive(queued + 1)
        while client.zcard("dramatiq:mail:open"):
            await asyncio.sleep(0.05)
        assert worker.terminate() == 0
    assert "heartbeat failed" not in worker.output
    assert not client.hlen("dramatiq:emails.msgs")


def test_an_actor_of_the_project_is_not_queued_and_is_finished_by_its_worker(redis_scene: Any) -> None:
    """Its message is refused as a send is; Dramatiq's own fetch and acknowledgement are let through."""
    with override(TASKS=redis_scene.tasks):
        broker: Any = get_broker()

        @actor
        def note() -> None:
            pass

        note.send()
        redis_scene.broker.client().config_set("maxmemory", 1)
        with pytest.raises(Exception, match="maxmemory"):
            note.send()
        assert len(broker.do_fetch("default", 10)) == 1
        (name,) = broker.orphaned_ids("default")
        broker.do_nack("default", name)
        assert broker.do_qsize("default") == 0


def test_a_retry_of_a_projects_actor_is_not_lost(redis_scene: Any) -> None:
    """Dramatiq acknowledges the failed message whether or not its retry could be enqueued."""
    calls: list[int] = []
    twice = threading.Event()
    with override(TASKS=redis_scene.tasks):
        broker: Any = get_broker()

        @actor(min_backoff=1, max_backoff=1)
        def fail_once() -> None:
            calls.append(1)
            if len(calls) == 2:
                twice.set()
            else:
                redis_scene.broker.client().config_set("maxmemory", 1)
                raise ValueError("the first time")

        fail_once.send()
        worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
        worker.start()
        try:
            assert twice.wait(PATIENCE), "there is no retry"
        finally:
            worker.stop()


def growth(redis_scene: Any, store: RedisJobStore, room: int) -> tuple[int, float]:
    """Add until refused, again after each job that a worker finishes; return refusals and the largest excess."""
    client = redis_scene.broker.client()
    limit = limit_memory(client, room)
    waiting = add_until_refused(store)
    highest, refusals = 0, 1
    while waiting:
        job = waiting.pop(0)
        claimed = claim(store, job)
        if refusals % 3:
            store.finish(claimed, remember=60)
        else:
            store.fail(claimed, claimed.progress, "550 no", keep=60, uncertain=False)
        if refusals < 200:
            waiting += add_until_refused(store)
            refusals += 1
        highest = max(highest, client.info("memory")["used_memory"])
    return refusals, highest / limit - 1


def test_it_hardly_grows_above_its_limit_while_some_add_and_others_drain(
    redis_scene: Any, store: RedisJobStore
) -> None:
    refusals, excess = growth(redis_scene, store, 3_000_000)
    assert refusals == 200
    assert excess <= 0.05


@pytest.mark.long
def test_it_hardly_grows_above_a_limit_of_100_megabytes(redis_scene: Any, store: RedisJobStore) -> None:
    refusals, excess = growth(redis_scene, store, 100_000_000)
    print(f"\nRedis at 100 MB: {excess:.2%} above its limit at most, after {refusals} refusals")
    assert excess <= 0.05
