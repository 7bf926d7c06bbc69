"""RabbitMQ's memory and disk alarms: sends take another mode at once, each change is one line, nothing goes twice."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.brokers import queueing_again
from support.rabbitmq import RabbitmqServer
from support.smtpd import SmtpServer
from support.workers import Worker, write_project

from openviper.conf import override
from openviper.core.email import DeliveryMode, QueueUnavailable, send_email, submit_email
from openviper.core.email.queue import close_queue, queue_service


@pytest.fixture
async def rabbitmq(rabbitmq_server: RabbitmqServer, smtp: SmtpServer) -> AsyncIterator[RabbitmqServer]:
    with override(TASKS=rabbitmq_server.tasks(), EMAIL=smtp.settings(default_sender="shop@example.com")):
        await queueing_again()
        yield rabbitmq_server
        await asyncio.to_thread(close_queue)
    await asyncio.to_thread(rabbitmq_server.end_alarms)
    await asyncio.to_thread(rabbitmq_server.restore)


def queued(server: RabbitmqServer) -> int:
    with server.connect() as connection:
        count: int = connection.channel().queue_declare("emails", passive=True).method.message_count
        return count


async def mode(number: int, **more: Any) -> DeliveryMode:
    return (await submit_email(f"to{number}@example.com", "Order", text="Thank you", **more)).mode


@pytest.mark.parametrize("kind", ["memory", "disk"])
async def test_sends_take_another_mode_until_the_alarm_ends(
    rabbitmq: RabbitmqServer, smtp: SmtpServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each message goes once, the first of the alarm as well."""
    caplog.set_level(logging.INFO, "openviper.email")
    assert [await mode(number) for number in range(3)] == [DeliveryMode.QUEUED] * 3
    await asyncio.to_thread(rabbitmq.raise_alarm, kind)
    await asyncio.sleep(1.5)  # idle, as most applications are
    assert [await mode(number) for number in range(3, 33)] == [DeliveryMode.INLINE] * 30
    await asyncio.sleep(6)  # probes meanwhile
    assert await mode(33) is DeliveryMode.INLINE
    await asyncio.to_thread(rabbitmq.end_alarms)
    await queueing_again()
    assert await mode(34) is DeliveryMode.QUEUED
    lines = [record.getMessage() for record in caplog.records if record.name == "openviper.email"]
    assert len(lines) == 2, lines
    assert f"low on {kind}" in lines[0]
    assert "queued again" in lines[1]
    assert len(smtp.messages) == 31
    assert await asyncio.to_thread(queued, rabbitmq) == 4


async def test_many_sends_at_once_find_out_together(rabbitmq: RabbitmqServer, smtp: SmtpServer) -> None:
    assert await mode(0) is DeliveryMode.QUEUED
    await asyncio.to_thread(rabbitmq.raise_alarm, "memory")
    await asyncio.sleep(1.5)
    modes = await asyncio.gather(*(mode(number, background=True) for number in range(1, 21)))
    assert modes == [DeliveryMode.INLINE] * 20
    await asyncio.to_thread(rabbitmq.end_alarms)
    await queueing_again()
    assert len(smtp.messages) == 20
    assert await asyncio.to_thread(queued, rabbitmq) == 1


async def test_a_probe_tells_the_alarm_without_waiting_for_a_limit(rabbitmq: RabbitmqServer) -> None:
    service = queue_service()
    assert service is not None
    await asyncio.to_thread(rabbitmq.raise_alarm, "disk")
    for _ in range(2):
        with pytest.raises(QueueUnavailable, match="resource alarm"):
            await asyncio.to_thread(service.store.probe)
    await asyncio.to_thread(rabbitmq.end_alarms)
    await asyncio.to_thread(service.store.probe)


@pytest.mark.long
@pytest.mark.parametrize("quorum", [False, True])
async def test_a_worker_sends_nothing_twice_after_a_long_alarm(
    rabbitmq: RabbitmqServer, smtp: SmtpServer, tmp_path: Path, quorum: bool
) -> None:
    """A retry to be recorded, and scheduled mail that becomes due: what is published again would be a copy."""
    if quorum:
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "emails.XQ", "x-queue-type": "quorum"}
        rabbitmq.restore()
        with rabbitmq.connect() as connection:
            for name in ("emails", "emails.DQ"):
                connection.channel().queue_declare(name, durable=True, arguments=arguments)
    project = write_project(
        tmp_path / "shop", tasks=rabbitmq.tasks(), email=smtp.settings(default_sender="shop@example.com")
    )
    gate = smtp.hold("MAIL", nth=1)
    smtp.fault("RCPT", 451, nth=1)
    await send_email("now@example.com", "Now", text="Now")
    await send_email("later@example.com", "Later", text="Later", delay=15)
    with Worker(project):
        await gate.reached()
        await asyncio.to_thread(rabbitmq.raise_alarm, "memory")
        gate.release()
        await smtp.seen("RCPT")
        await asyncio.sleep(80)
        await asyncio.to_thread(rabbitmq.end_alarms)
        await smtp.arrive(2)
        await asyncio.sleep(15)
    assert sorted(message.recipients[0] for message in smtp.messages) == ["later@example.com", "now@example.com"]


async def test_a_worker_stops_during_an_alarm_and_its_message_is_kept(
    rabbitmq: RabbitmqServer, smtp: SmtpServer, tmp_path: Path
) -> None:
    """It cannot record the attempt's result."""
    project = write_project(
        tmp_path / "shop", tasks=rabbitmq.tasks(), email=smtp.settings(default_sender="shop@example.com")
    )
    gate = smtp.hold("MAIL", nth=1)
    smtp.fault("RCPT", 451, nth=1)
    await send_email("now@example.com", "Now", text="Now")
    worker = Worker(project)
    await asyncio.to_thread(worker.start)
    await gate.reached()
    await asyncio.to_thread(rabbitmq.raise_alarm, "memory")
    gate.release()
    await smtp.seen("RCPT")
    await asyncio.sleep(2)
    assert await asyncio.to_thread(worker.terminate) == 0
    await asyncio.to_thread(rabbitmq.end_alarms)
    with Worker(project):
        await smtp.arrive(1)
        await asyncio.sleep(5)
    assert len(smtp.messages) == 1
