"""The shop, with not a line changed, gives its mail to a worker; and sells when the broker is gone."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.rabbitmq import RabbitmqServer, rabbitmq_server
from support.redis import redis_server
from support.shopping import Shop
from support.smtpd import SmtpServer
from support.workers import Worker

from openviper.conf import override
from openviper.core.email.queue import close_queue

__all__ = ["rabbitmq_server", "redis_server"]

SHOP = Path(__file__).resolve().parents[2] / "example_shop"


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> Iterator[Any]:
    server = request.getfixturevalue(f"{request.param}_server")
    yield server
    if isinstance(server, RabbitmqServer):
        server.restore()


@pytest.fixture
def sqlite_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("OPENVIPER_SETTINGS_MODULE", "example_shop.shop.settings")
    with override(DATABASE_URL=f"sqlite:///{tmp_path / 'shop.sqlite3'}", SHOP_URL="https://shop.example"):
        yield Shop()


async def order(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await visitor.add("Field notebook")
        assert (await visitor.check_out()).status_code == 303


async def test_a_worker_delivers_the_confirmation(sqlite_shop: Shop, broker: Any, tmp_path: Path) -> None:
    with SmtpServer() as smtp:
        email = smtp.settings(default_sender="Viper Supplies <orders@shop.example>")
        with override(TASKS=broker.tasks(), EMAIL=email):
            await order(sqlite_shop)
            assert smtp.messages == []
            env = {"BROKER_URL": broker.url, "EMAIL_BACKEND": "SMTPBackend", "EMAIL_HOST": smtp.host}
            env |= {"EMAIL_PORT": str(smtp.port), "OPENVIPER_SETTINGS_MODULE": "shop.settings"}
            with Worker(SHOP, "--queues", "emails", log_folder=tmp_path, env=env) as worker:
                (message,) = await smtp.arrive(1, 30)
            assert message.recipients == ["ana@example.com"]
            assert message.parse()["Subject"] == "Your order 1001 at Viper Supplies"
            assert "ana@example.com" not in worker.output
            await asyncio.to_thread(broker.stop)
            await order(sqlite_shop)
            await smtp.arrive(2, 30)
            await asyncio.to_thread(close_queue)
