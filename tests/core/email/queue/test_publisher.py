"""The connection to RabbitMQ stays alive while nothing is sent, and is opened again when it ends."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from support.brokers import queueing_again
from support.patience import PATIENCE
from support.rabbitmq import RabbitmqServer
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import DeliveryMode, submit_email
from openviper.core.email.queue import close_queue


@pytest.fixture
async def rabbitmq(rabbitmq_server: RabbitmqServer, smtp: SmtpServer) -> AsyncIterator[RabbitmqServer]:
    """With a heartbeat of a second: the server ends a connection of which it hears nothing for two."""
    tasks = rabbitmq_server.tasks(broker_url=f"{rabbitmq_server.url}?heartbeat=1")
    with override(TASKS=tasks, EMAIL=smtp.settings(default_sender="shop@example.com")):
        await queueing_again()
        yield rabbitmq_server
        await asyncio.to_thread(close_queue)
    await asyncio.to_thread(rabbitmq_server.restore)
    assert smtp.messages == [], "nothing was sent in another mode"


async def queue(number: int) -> None:
    assert (await submit_email(f"to{number}@example.com", "Order", text="")).mode is DeliveryMode.QUEUED


def queued(server: RabbitmqServer) -> int:
    with server.connect() as connection:
        count: int = connection.channel().queue_declare("emails", passive=True).method.message_count
        return count


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def only_connection(server: RabbitmqServer) -> set[int]:
    """Its client's port; that of the question whether RabbitMQ answers is closed by then."""
    await eventually(lambda: len(server.client_ports()) == 1)
    return await asyncio.to_thread(server.client_ports)


async def test_an_idle_connection_stays_alive_past_its_heartbeat(rabbitmq: RabbitmqServer) -> None:
    await queue(1)
    (port,) = await only_connection(rabbitmq)
    timeouts = await asyncio.to_thread(rabbitmq.evaluate, "rabbit_networking:connection_info_all([timeout])")
    assert timeouts == "[[{timeout, 1}]]"
    await asyncio.sleep(5)
    await queue(2)
    assert port in await asyncio.to_thread(rabbitmq.client_ports)
    assert await asyncio.to_thread(queued, rabbitmq) == 2


async def test_a_connection_that_rabbitmq_closed_is_opened_again(rabbitmq: RabbitmqServer) -> None:
    await queue(1)
    before = await only_connection(rabbitmq)
    await asyncio.to_thread(rabbitmq.evaluate, 'rabbit_networking:close_all_connections("maintenance")')
    await eventually(lambda: not before & rabbitmq.client_ports())
    await queue(2)
    assert await asyncio.to_thread(queued, rabbitmq) == 2


async def test_after_a_restart_the_next_message_is_queued_at_once(rabbitmq: RabbitmqServer) -> None:
    await queue(1)
    await asyncio.to_thread(rabbitmq.stop)
    await asyncio.to_thread(rabbitmq.start)
    await queue(2)
    assert await asyncio.to_thread(queued, rabbitmq) == 2
