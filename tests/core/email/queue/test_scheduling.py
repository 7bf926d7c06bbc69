"""``send_at``, ``delay`` and ``expires_at`` on either broker, with a real worker and mail server."""

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.brokers import until_available
from support.patience import PATIENCE
from support.redis import RedisServer
from support.server_clock import ServerClock
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import DeliveryMode, InvalidMessage, QueueUnavailable, send_email, submit_email
from openviper.core.email.queue import close_queue, queue_service
from openviper.core.email.queue.job import FailedJob
from openviper.db.transaction import Record, entered


def arrivals(scene: Any) -> dict[str, float]:
    """When each recipient's message came, by ``time.monotonic()``; each came once."""
    times = {message.recipients[0]: message.at for message in scene.smtp.messages}
    assert len(times) == len(scene.smtp.messages)
    return times


async def first_failed() -> FailedJob:
    service = queue_service()
    assert service is not None
    deadline = time.monotonic() + PATIENCE
    while not (failed := await asyncio.to_thread(service.store.failed, 10)):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    return failed[0]


async def test_mail_is_delivered_at_its_time_and_not_before(scene: Any) -> None:
    begin = time.monotonic()
    assert (await submit_email("soon@example.com", "", text="", delay=timedelta(seconds=5))).mode is DeliveryMode.QUEUED
    await send_email("later@example.com", "", text="", send_at=datetime.now(UTC) + timedelta(seconds=8))
    await send_email("next-year@example.com", "", text="", send_at=datetime.now(UTC) + timedelta(days=300))
    await send_email("now@example.com", "", text="")
    with scene.worker():
        await scene.smtp.arrive(3)
    came = arrivals(scene)
    assert came.keys() == {"now@example.com", "soon@example.com", "later@example.com"}
    assert came["soon@example.com"] >= begin + 5
    assert came["later@example.com"] >= begin + 8


@pytest.mark.parametrize("ahead", [30.0, -30.0])
async def test_a_redis_whose_clock_is_wrong_keeps_mail_until_our_time(tmp_path: Path, ahead: float) -> None:
    server, clock = RedisServer(tmp_path), ServerClock(tmp_path)
    server.more_environment = clock.environment
    clock.shift(ahead)
    try:
        await asyncio.to_thread(server.start)
        with override(TASKS=server.tasks(), EMAIL={"default_sender": "shop@example.com"}), server.client() as client:
            await asyncio.to_thread(until_available)
            before = milliseconds(client)
            apart = before / 1000 - time.time()
            await send_email("a@example.com", "", text="", delay=20)
            after = milliseconds(client)
            ((_, due),) = client.zrange("dramatiq:mail:later", 0, -1, withscores=True)
            await asyncio.to_thread(close_queue)
    finally:
        server.close()
    if clock.movable:
        assert (apart > 0) == (ahead > 0)
    assert before + 20_000 <= due <= after + 20_000 + (after - before)


def milliseconds(client: Any) -> int:
    seconds, micros = client.time()
    return int(seconds * 1000 + micros // 1000)


async def test_mail_that_waits_survives_the_worker_and_the_broker(scene: Any) -> None:
    begin = time.monotonic()
    await send_email("a@example.com", "", text="", delay=15)
    first = scene.worker()
    await asyncio.to_thread(first.start)
    await asyncio.sleep(2)  # on RabbitMQ the worker has it in hand by now
    await asyncio.to_thread(first.kill)
    await asyncio.to_thread(scene.broker.kill)
    await asyncio.to_thread(scene.broker.start)
    with scene.worker():
        await scene.smtp.arrive(1)
        await asyncio.sleep(1)
    assert arrivals(scene)["a@example.com"] >= begin + 15


async def test_an_expired_message_is_kept_as_failed_and_not_sent(scene: Any) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    await send_email("a@example.com", "Old", text="", expires_at=soon)
    await send_email("b@example.com", "New", text="", expires_at=soon + timedelta(hours=1))
    await asyncio.sleep(1.2)
    with scene.worker():
        failed = await first_failed()
        await scene.smtp.arrive(1)
    assert "expired" in failed.reason
    assert arrivals(scene).keys() == {"b@example.com"}


async def test_a_message_that_expires_between_two_attempts_is_not_tried_again(scene: Any) -> None:
    """It expires while the server thinks about the first attempt, which it then refuses for now."""
    gate = scene.smtp.hold("MAIL")
    scene.smtp.fault("MAIL", 451)
    with scene.worker():
        soon = datetime.now(UTC) + timedelta(seconds=6)
        await send_email("a@example.com", "Old", text="", expires_at=soon)
        await gate.reached()
        await asyncio.sleep((soon - datetime.now(UTC)).total_seconds() + 0.1)
        gate.release()
        failed = await first_failed()
    assert "expired" in failed.reason
    assert scene.smtp.verbs.count("MAIL") == 1


async def test_what_must_wait_is_refused_where_the_broker_does_not_answer(scene: Any) -> None:
    with pytest.raises(InvalidMessage, match="background is False"):
        await send_email("a@example.com", "Later", text="", delay=60, background=False)
    await send_email("a@example.com", "Now", text="")
    await asyncio.to_thread(scene.broker.stop)
    for _ in range(2):
        with pytest.raises(QueueUnavailable, match=r"RabbitMQ|Redis|does not answer"):
            await send_email("a@example.com", "Later", text="", delay=60, fail_silently=True)
    assert scene.smtp.messages == []


@pytest.mark.parametrize("tasks", [{}, {"broker": "stub"}], ids=["none", "stub"])
async def test_what_must_wait_is_refused_where_there_is_no_broker(tasks: dict[str, Any], smtp: SmtpServer) -> None:
    later = datetime.now(UTC) + timedelta(seconds=60)
    with override(TASKS=tasks, EMAIL=smtp.settings(default_sender="shop@example.com")):
        for when in ({"delay": 60}, {"send_at": later}):
            with pytest.raises(InvalidMessage, match=r'no broker can keep.*TASKS\["broker"\]'):
                await send_email("a@example.com", "Later", text="", **when)
    assert smtp.messages == []


async def test_what_a_commit_has_promised_for_later_is_queued_when_the_broker_is_back(
    scene: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Held mail with a delay, and a broker that is down at the moment of the commit."""
    caplog.set_level(logging.INFO, "openviper.email")
    record = Record()
    with entered(record):
        receipt = await submit_email("a@example.com", "", text="", delay=8)
    assert receipt.mode is DeliveryMode.HELD
    await asyncio.to_thread(scene.broker.kill)
    (held,) = record.commit()
    released = asyncio.ensure_future(held.on_commit())  # type: ignore[arg-type]
    async with asyncio.timeout(PATIENCE):
        while "attempt 1 failed" not in caplog.text:
            await asyncio.sleep(0.01)
    await asyncio.to_thread(scene.broker.start)
    await asyncio.wait_for(released, PATIENCE)
    with scene.worker():
        await scene.smtp.arrive(1)
    assert "was not delivered" not in caplog.text
