"""Messages that are larger than the broker takes."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.brokers import queueing_again
from support.rabbitmq import RabbitmqServer
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import DeliveryMode, InvalidMessage, submit_email
from openviper.core.email.queue import close_queue
from openviper.db import transaction

MB = 1024 * 1024
LIMIT = 2 * MB


@pytest.fixture(scope="module")
def limited(rabbitmq_server: RabbitmqServer) -> Iterator[RabbitmqServer]:
    """RabbitMQ with a small ``max_message_size``, which it reads when it starts."""
    conf = rabbitmq_server.folder / "rabbitmq.conf"
    before = conf.read_text()
    rabbitmq_server.restore()
    rabbitmq_server.stop()
    conf.write_text(f"{before}max_message_size = {LIMIT}\n")
    rabbitmq_server.start()
    yield rabbitmq_server
    rabbitmq_server.stop()
    conf.write_text(before)
    rabbitmq_server.restore()


@pytest.fixture
async def rabbitmq(limited: RabbitmqServer, smtp: SmtpServer) -> AsyncIterator[RabbitmqServer]:
    limited.restore()
    with override(TASKS=limited.tasks(), EMAIL=smtp.settings(default_sender="shop@example.com")):
        await queueing_again()
        yield limited
        await asyncio.to_thread(close_queue)


async def submit(size: int, background: bool | None = None) -> DeliveryMode:
    attachments = [("a.bin", os.urandom(size))]
    receipt = await submit_email("to@example.com", "Order", text="", attachments=attachments, background=background)
    return receipt.mode


async def test_what_rabbitmq_does_not_take_is_refused_and_its_setting_named(
    rabbitmq: RabbitmqServer, smtp: SmtpServer
) -> None:
    """At the first message and at the next; smaller ones are queued between them, and inline all can be sent."""
    assert await submit(LIMIT - 10_000) is DeliveryMode.QUEUED
    for _ in range(2):
        with pytest.raises(InvalidMessage, match=r"RabbitMQ's max_message_size \(2,097,152\).* background=False"):
            await submit(LIMIT)
        assert await submit(1000) is DeliveryMode.QUEUED
    assert smtp.messages == []
    assert await submit(LIMIT, background=False) is DeliveryMode.INLINE


async def test_the_message_of_another_does_not_fail_with_one_that_is_known_to_be_too_large(
    rabbitmq: RabbitmqServer,
) -> None:
    with pytest.raises(InvalidMessage):
        await submit(LIMIT)
    results = await asyncio.gather(*(submit(size) for size in (100, LIMIT, 200, LIMIT, 300)), return_exceptions=True)
    queued = [result for result in results if result is DeliveryMode.QUEUED]
    assert (len(queued), [type(each) for each in results[1::2]]) == (3, [InvalidMessage] * 2)


async def test_a_commit_stands_although_its_message_is_too_large_for_the_queue(
    rabbitmq: RabbitmqServer, smtp: SmtpServer, tmp_path: Path
) -> None:
    """It has been promised, so it is sent in another mode."""
    with override(DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path / 'db'}"):
        async with transaction():
            assert await submit(LIMIT) is DeliveryMode.HELD
    await smtp.arrive(1)
