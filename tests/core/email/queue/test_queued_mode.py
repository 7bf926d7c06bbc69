"""When mail is queued, and how that is described."""

import asyncio
import logging
import time
from typing import Any

import pytest
from dramatiq.brokers.stub import StubBroker
from support.patience import PATIENCE
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import DeliveryMode, InvalidMessage, send_email, submit_email
from openviper.core.email.delivery import Mailer, describe_modes
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.delivery.worker import declare
from openviper.core.email.queue import queue_service, worker_available
from openviper.core.email.queue.job import ACTOR
from openviper.core.email.settings import EmailSettings
from openviper.db import transaction
from openviper.exceptions import ImproperlyConfigured


async def test_each_row_of_the_table_with_a_broker(redis_scene: Any) -> None:
    async def mode(**given: Any) -> DeliveryMode:
        return (await submit_email("a@example.com", "Hi", text="", **given)).mode

    assert await mode() is DeliveryMode.QUEUED
    assert await mode(background=True) is DeliveryMode.QUEUED
    assert await mode(background=False) is DeliveryMode.INLINE
    with collecting(RequestOutbox()):
        assert await mode() is DeliveryMode.QUEUED
        assert await mode(background=False) is DeliveryMode.INLINE
    with override(EMAIL=redis_scene.email | {"use_background_worker": False}):
        assert await mode() is DeliveryMode.INLINE
        assert await mode(background=True) is DeliveryMode.QUEUED
        with collecting(RequestOutbox()):
            assert await mode() is DeliveryMode.DEFERRED
    with override(EMAIL=redis_scene.email | {"use_background_worker": True}):
        assert await mode() is DeliveryMode.QUEUED


async def test_held_mail_is_queued_at_the_commit_and_not_before(redis_scene: Any) -> None:
    client = redis_scene.broker.client()
    async with transaction():
        receipt = await submit_email("a@example.com", "Order", text="")
        assert receipt.mode is DeliveryMode.HELD
        assert client.llen("dramatiq:emails") == 0
    assert client.llen("dramatiq:emails") == 1

    async def failing() -> None:
        async with transaction():
            await send_email("a@example.com", "Order", text="")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing()
    assert client.llen("dramatiq:emails") == 1
    assert redis_scene.smtp.messages == []


async def test_mail_in_memory_asks_no_broker(redis_scene: Any) -> None:
    with override(EMAIL={"backend": "MemoryBackend", "default_sender": "shop@example.com"}):
        assert (await submit_email("a@example.com", "Hi", text="")).mode is DeliveryMode.INLINE
    assert redis_scene.broker.client().dbsize() == 0


@pytest.mark.parametrize("tasks", [{}, {"broker": "stub"}, {"broker": "redis", "enabled": False}])
async def test_a_stub_or_a_disabled_broker_is_none(tasks: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with SmtpServer() as smtp, override(TASKS=tasks, EMAIL=smtp.settings(default_sender="shop@example.com")):
        assert not worker_available()
        receipt = await submit_email("a@example.com", "Hi", text="", background=True)
        assert receipt.mode is DeliveryMode.INLINE
        with pytest.raises(InvalidMessage, match="no broker can keep"):
            await send_email("a@example.com", "Hi", text="", delay=60)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert receipt.message_id in warning.getMessage()


async def test_startup_says_which_mode_and_that_nobody_listens(scene: Any, caplog: pytest.LogCaptureFixture) -> None:
    mailer = Mailer(EmailSettings.from_settings())
    await mailer.detect_broker()
    assert "queued in requests, queued elsewhere" in describe_modes(mailer)
    assert f"127.0.0.1:{scene.broker.port}" in describe_modes(mailer)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "no worker consumes" in warning
    caplog.clear()
    service = queue_service()
    assert service is not None
    with scene.worker():
        deadline = time.monotonic() + PATIENCE
        while not await asyncio.to_thread(service.consumers):  # it is ready a moment before it consumes
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        await mailer.detect_broker()
    assert [record for record in caplog.records if record.levelno == logging.WARNING] == []
    await mailer.aclose()


async def test_a_wrong_tasks_setting_is_told_to_the_sender(smtp: SmtpServer) -> None:
    wrong = override(TASKS={"broker": "rediss"}, EMAIL=smtp.settings(default_sender="a@example.com"))
    with wrong, pytest.raises(ImproperlyConfigured, match=r'TASKS\["broker"\]'):
        await send_email("a@example.com", "Hi", text="")
    assert smtp.messages == []


async def test_uncertain_mail_is_held_where_the_setting_says_so(redis_scene: Any) -> None:
    """The server has it, and cuts the connection before it answers."""
    redis_scene.smtp.fault("body", "drop", nth=1)
    settings = (redis_scene.folder / "settings.py").read_text()
    (redis_scene.folder / "settings.py").write_text(f"{settings}\nEMAIL['on_uncertain'] = 'hold'\n")
    await send_email("a@example.com", "Order", text="")
    service = queue_service()
    assert service is not None
    with redis_scene.worker():
        await redis_scene.smtp.seen("body")
        deadline = time.monotonic() + PATIENCE
        while not (failed := await asyncio.to_thread(service.store.failed, 10)):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
    assert failed[0].uncertain
    assert redis_scene.smtp.verbs.count("body") == 1


def test_no_time_limit_ends_the_wait_for_a_broker_that_is_down() -> None:
    """A message whose attempt is made, and whose outcome is not written down, would be in nobody's hands."""
    broker = StubBroker()
    declare(broker)
    assert broker.get_actor(ACTOR).options["time_limit"] == float("inf")
