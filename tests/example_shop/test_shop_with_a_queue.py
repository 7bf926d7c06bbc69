"""The shop, with not a line changed, gives its mail to a worker; and sells when the broker is gone."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.broker_server import BrokerServer
from support.brokers import broker, queueing_again, rabbitmq_server, redis_server
from support.patience import PATIENCE
from support.shopping import Shop, Visitor
from support.smtpd import SmtpServer
from support.workers import Worker

from openviper.conf import override
from openviper.core.email.queue import close_queue

__all__ = ["broker", "rabbitmq_server", "redis_server"]

SHOP = Path(__file__).resolve().parents[2] / "example_shop"


@pytest.fixture
def sqlite_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("OPENVIPER_SETTINGS_MODULE", "example_shop.shop.settings")
    with override(DATABASE_URL=f"sqlite:///{tmp_path / 'shop.sqlite3'}", SHOP_URL="https://shop.example"):
        yield Shop()


async def order(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await place_order(visitor)


async def place_order(visitor: Visitor) -> None:
    await visitor.add("Field notebook")
    assert (await visitor.check_out()).status_code == 303


async def test_a_worker_delivers_the_confirmation(sqlite_shop: Shop, broker: BrokerServer, tmp_path: Path) -> None:
    with SmtpServer() as smtp:
        email = smtp.settings(default_sender="Viper Supplies <orders@shop.example>")
        with override(TASKS=broker.tasks(), EMAIL=email):
            await order(sqlite_shop)
            assert smtp.messages == []
            env = {"BROKER_URL": broker.url, "EMAIL_BACKEND": "SMTPBackend", "EMAIL_HOST": smtp.host}
            env |= {"EMAIL_PORT": str(smtp.port), "OPENVIPER_SETTINGS_MODULE": "shop.settings"}
            env |= {"EMAIL_TIMEOUT": str(PATIENCE)}
            with Worker(SHOP, "--queues", "emails", log_folder=tmp_path, env=env) as worker:
                (message,) = await smtp.arrive(1)
            assert message.recipients == ["ana@example.com"]
            assert message.parse()["Subject"] == "Your order 1001 at Viper Supplies"
            assert "ana@example.com" not in worker.output
            await asyncio.to_thread(broker.stop)
            await order(sqlite_shop)
            await smtp.arrive(2)
            await asyncio.to_thread(close_queue)


async def test_every_order_is_answered_and_confirmed_whatever_becomes_of_the_broker(
    sqlite_shop: Shop, broker: BrokerServer, tmp_path: Path
) -> None:
    """Stopped before the shop starts, started, paused, resumed, killed and restarted; a worker comes at the end."""
    await asyncio.to_thread(broker.stop)
    with SmtpServer() as smtp:
        email = smtp.settings(default_sender="Viper Supplies <orders@shop.example>")
        with override(TASKS=broker.tasks(), EMAIL=email):
            async with sqlite_shop.visited() as visitor:
                await place_order(visitor)
                await smtp.arrive(1)
                await asyncio.to_thread(broker.start)
                await queueing_again()
                await place_order(visitor)
                broker.pause()
                try:
                    async with asyncio.timeout(PATIENCE):
                        await place_order(visitor)
                    await smtp.arrive(2)
                finally:
                    broker.resume()
                await queueing_again()
                await asyncio.to_thread(broker.kill)
                await place_order(visitor)
                await smtp.arrive(3)
                await asyncio.to_thread(broker.start)
                await queueing_again()
                await place_order(visitor)
            env = {"BROKER_URL": broker.url, "EMAIL_BACKEND": "SMTPBackend", "EMAIL_HOST": smtp.host}
            env |= {"EMAIL_PORT": str(smtp.port), "OPENVIPER_SETTINGS_MODULE": "shop.settings"}
            env |= {"EMAIL_TIMEOUT": str(PATIENCE)}
            with Worker(SHOP, "--queues", "emails", log_folder=tmp_path, env=env):
                await smtp.until(lambda: len(orders(smtp)) == 5)
            assert orders(smtp) == {f"Your order {1001 + number} at Viper Supplies" for number in range(5)}
            await asyncio.to_thread(close_queue)


def orders(smtp: SmtpServer) -> set[str]:
    """RabbitMQ may deliver one twice that it got while it was paused."""
    return {str(message.parse()["Subject"]) for message in tuple(smtp.messages)}
