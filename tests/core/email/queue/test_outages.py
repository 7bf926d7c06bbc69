"""On a real Redis and a real RabbitMQ, with a real worker and mail server: every send is answered, all mail arrives."""

import asyncio
import time
from typing import Any

from support.brokers import queueing_again
from support.stalls import watched_loop

from openviper.core.email import DeliveryMode, send_email, submit_email
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.queue import close_queue, worker_available
from openviper.core.email.settings import EmailSettings


async def send(number: int, **more: Any) -> DeliveryMode:
    receipt = await submit_email(f"to{number}@example.com", f"Order {number}", text="Thank you!", **more)
    assert receipt
    return receipt.mode


async def seconds_of_eleven_sends(number: int) -> tuple[float, float]:
    """How long the first takes, and each of the following ones, numbered from ``number``; all go inline.

    One that waits for the broker takes about two seconds. Bounds are ten times those of a quiet machine.
    """
    begin = time.monotonic()
    assert await send(number) is DeliveryMode.INLINE
    first = time.monotonic() - begin
    begin = time.monotonic()
    for following in range(number + 1, number + 11):
        assert await send(following) is DeliveryMode.INLINE
    return first, (time.monotonic() - begin) / 10


def arrived(scene: Any) -> list[str]:
    return sorted(recipient for message in scene.smtp.messages for recipient in message.recipients)


async def test_a_worker_delivers_what_is_queued(scene: Any) -> None:
    assert await asyncio.to_thread(worker_available)
    modes = {await send(number) for number in range(20)}
    assert modes == {DeliveryMode.QUEUED}
    assert scene.smtp.messages == []
    with scene.worker() as worker:
        await scene.smtp.arrive(20)
        assert len(set(arrived(scene))) == 20
    assert "to1@example.com" not in worker.output, "no address in the log"


async def test_an_attachment_arrives_unchanged(scene: Any) -> None:
    content = bytes(range(256)) * 8192
    await send_email("a@example.com", "Report", text="See it.", attachments=[("r.bin", content)])
    with scene.worker():
        (message,) = await scene.smtp.arrive(1)
    (attachment,) = message.parse().iter_attachments()
    assert attachment.get_payload(decode=True) == content


async def test_without_its_broker_an_application_starts_and_sends(scene: Any) -> None:
    """In a request the fallback is deferred, elsewhere inline; and queueing begins when the broker comes."""
    await asyncio.to_thread(scene.broker.stop)
    await asyncio.to_thread(close_queue)  # as a process does that has never seen its broker
    mailer = Mailer(EmailSettings.from_settings())
    with using_mailer(mailer):
        await mailer.detect_broker()
        assert await send(1) is DeliveryMode.INLINE
        outbox = RequestOutbox()
        with collecting(outbox):
            assert await send(2, background=True) is DeliveryMode.DEFERRED
        outbox.flush()
        await scene.smtp.arrive(2)
        await asyncio.to_thread(scene.broker.start)
        await queueing_again()
        assert await send(3) is DeliveryMode.QUEUED
        with scene.worker():
            await scene.smtp.arrive(3)
        await mailer.aclose()
    assert arrived(scene) == ["to1@example.com", "to2@example.com", "to3@example.com"]


async def test_a_broker_that_stops_and_comes_back_loses_nothing(scene: Any) -> None:
    """What it has taken is delivered after its return, by a worker that was there all the time."""
    with scene.worker():
        assert await send(1) is DeliveryMode.QUEUED
        await scene.smtp.arrive(1)
        await asyncio.to_thread(scene.broker.kill)
        first, following = await seconds_of_eleven_sends(2)
        assert first < 10
        assert following < 1, "each is found out without asking the broker"
        await asyncio.to_thread(scene.broker.start)
        await queueing_again()
        assert await send(13) is DeliveryMode.QUEUED
        # RabbitMQ may deliver one again whose acknowledgement it has lost.
        await scene.smtp.until(lambda: len(set(arrived(scene))) == 13)


async def test_what_was_queued_survives_the_brokers_death(scene: Any) -> None:
    for number in range(10):
        assert await send(number) is DeliveryMode.QUEUED
    await asyncio.to_thread(scene.broker.kill)
    await asyncio.to_thread(scene.broker.start)
    with scene.worker():
        await scene.smtp.arrive(10)
    assert len(arrived(scene)) == 10


async def test_a_paused_broker_costs_two_seconds_once(scene: Any) -> None:
    assert await send(1) is DeliveryMode.QUEUED
    scene.broker.pause()
    try:
        first, following = await seconds_of_eleven_sends(2)
    finally:
        scene.broker.resume()
    assert first < 20
    assert following < 1
    await queueing_again()
    with scene.worker():
        await scene.smtp.until(lambda: len(set(arrived(scene))) == 12)


async def test_the_loop_goes_on_while_the_broker_is_silent(scene: Any) -> None:
    assert await send(1) is DeliveryMode.QUEUED
    scene.broker.pause()
    async with watched_loop() as watch:
        try:
            await asyncio.gather(*(send(number) for number in range(2, 12)))
        finally:
            scene.broker.resume()
    assert watch.turns > 20  # of about a thousand; a send that blocked would leave one
