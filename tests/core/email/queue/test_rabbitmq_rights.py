"""Rights on RabbitMQ: a probe asks for what a send needs, and the refusal is told once, with culprit and remedy."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from support.rabbitmq import RabbitmqServer
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import DeliveryMode, submit_email
from openviper.core.email.queue import close_queue, worker_available

ALL = ("^emails", "^(emails|amq\\.default)", "^emails")


@pytest.fixture
async def limited(rabbitmq_server: RabbitmqServer, smtp: SmtpServer) -> AsyncIterator[RabbitmqServer]:
    """With a user "shop", who has no rights yet."""
    await asyncio.to_thread(rabbitmq_server.restore)
    await asyncio.to_thread(rabbitmq_server.add_user, "shop", "very-secret")
    with override(EMAIL=smtp.settings(default_sender="shop@example.com")):
        yield rabbitmq_server
        await asyncio.to_thread(close_queue)
    await asyncio.to_thread(rabbitmq_server.delete_user, "shop")
    await asyncio.to_thread(rabbitmq_server.restore)


def url(server: RabbitmqServer, *, password: str = "very-secret", vhost: str = "%2F") -> dict[str, object]:
    return server.tasks(broker_url=f"amqp://shop:{password}@127.0.0.1:{server.port}/{vhost}")


async def modes(count: int) -> set[DeliveryMode]:
    return {(await submit_email(f"to{n}@example.com", "Order", text="Hi")).mode for n in range(count)}


@pytest.mark.parametrize(
    ("rights", "words"),
    [
        (("", ALL[1], ALL[2]), "queue 'emails'"),
        ((ALL[0], "^emails", ALL[2]), "amq.default"),
        (("^emails$", ALL[1], ALL[2]), "queue 'emails.DQ'"),
        (None, "access to vhost '/' refused"),
    ],
)
async def test_what_is_forbidden_is_told_once_with_the_remedy(
    limited: RabbitmqServer, rights: tuple[str, str, str] | None, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "openviper.email")
    if rights is not None:
        await asyncio.to_thread(limited.grant, "shop", *rights)
    with override(TASKS=url(limited)):
        assert not await asyncio.to_thread(worker_available)
        for _ in range(3):
            assert await modes(5) == {DeliveryMode.INLINE}
            await asyncio.sleep(2)
        (line,) = [record.getMessage() for record in caplog.records if record.name == "openviper.email"]
        await asyncio.to_thread(close_queue)
    assert words in line
    assert "set_permissions" in line
    assert "very-secret" not in line


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"vhost": "nowhere"}, "vhost nowhere not found"), ({"password": "wrong"}, "user and password")],
)
async def test_a_wrong_url_is_told_once(
    limited: RabbitmqServer, wrong: dict[str, str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "openviper.email")
    await asyncio.to_thread(limited.grant, "shop", *ALL)
    with override(TASKS=url(limited, **wrong)):
        assert not await asyncio.to_thread(worker_available)
        assert await modes(5) == {DeliveryMode.INLINE}
        (line,) = [record.getMessage() for record in caplog.records if record.name == "openviper.email"]
        await asyncio.to_thread(close_queue)
    assert words in line
    assert 'TASKS["broker_url"]' in line


@pytest.mark.parametrize("rights", [ALL, ("^$", ALL[1], ALL[2])])
async def test_the_rights_that_the_remedy_names_are_enough(
    limited: RabbitmqServer, rights: tuple[str, str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """None to declare are needed where the operator has declared the queues."""
    if rights is not ALL:
        with override(TASKS=limited.tasks()):
            assert await asyncio.to_thread(worker_available)
            await asyncio.to_thread(close_queue)
    await asyncio.to_thread(limited.grant, "shop", *rights)
    with override(TASKS=url(limited)):
        assert await asyncio.to_thread(worker_available)
        assert await modes(5) == {DeliveryMode.QUEUED}
        await asyncio.sleep(6)
        assert await modes(1) == {DeliveryMode.QUEUED}
        await asyncio.to_thread(close_queue)
    problems = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [record for record in problems if record.name == "openviper.email"]
