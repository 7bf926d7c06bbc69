"""``timeout=`` of one call on real brokers: queued and held mail, with a broker that answers, and one that does not."""

import asyncio
from typing import Any

import pytest
from support.brokers import usual_broker as broker

from openviper.core.email import DeliveryMode, DeliveryTimeout, submit_email
from openviper.db import transaction

__all__ = ["broker"]

SHORT = 0.3  # seconds; a send waits longer for its broker by itself


async def submit(**arguments: Any) -> DeliveryMode:
    return (await submit_email("a@example.com", "Order", text="Thank you!", **arguments)).mode


async def test_a_broker_that_accepts_in_time_has_the_message_once(scene: Any) -> None:
    assert await submit(timeout=60) is DeliveryMode.QUEUED
    with scene.worker():
        await scene.smtp.arrive(1)
    assert len(scene.smtp.messages) == 1


async def test_the_limit_does_not_follow_the_message_to_the_worker(scene: Any) -> None:
    gate = scene.smtp.hold("body")
    assert await submit(timeout=5) is DeliveryMode.QUEUED
    with scene.worker():
        await asyncio.sleep(5.5)
        gate.release()
        await scene.smtp.arrive(1)
    assert len(scene.smtp.messages) == 1


async def test_a_broker_that_answers_too_late_leaves_it_uncertain(scene: Any) -> None:
    """Nothing is delivered inline besides, so that whoever sends again may double it, and nobody else does."""
    assert await submit() is DeliveryMode.QUEUED
    scene.broker.pause()
    try:
        with pytest.raises(DeliveryTimeout) as caught:
            await submit(timeout=SHORT)
        receipt = await submit_email("b@example.com", "Order", text="Hi", timeout=SHORT, fail_silently=True)
    finally:
        scene.broker.resume()
    assert str(caught.value) == "timeout: 0.3 s have passed; the message may have been accepted anyway"
    assert (caught.value.uncertain, caught.value.temporary) == (True, True)
    assert isinstance(receipt.error, DeliveryTimeout)
    assert (bool(receipt), bool(receipt.message_id)) == (False, True)
    assert scene.smtp.messages == []


async def test_held_mail_is_queued_at_the_commit_whatever_its_limit(scene: Any) -> None:
    async with transaction():
        assert await submit(timeout=5) is DeliveryMode.HELD
        await asyncio.sleep(5.5)
    with scene.worker():
        await scene.smtp.arrive(1)
    assert len(scene.smtp.messages) == 1


async def test_a_commit_with_a_silent_broker_delivers_held_mail_by_itself(scene: Any) -> None:
    """The limit was the call's, which has returned: the commit neither raises nor loses the message."""
    assert await submit(background=False) is DeliveryMode.INLINE
    async with transaction():
        assert await submit(timeout=60) is DeliveryMode.HELD
        await asyncio.to_thread(scene.broker.stop)
    assert len(await scene.smtp.arrive(2)) == 2
    await asyncio.to_thread(scene.broker.start)
