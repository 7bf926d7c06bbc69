"""Pausing with a broker: what is queued stays there, without an attempt, and deferred mail is queued at a stop."""

import asyncio
import time
import uuid
from typing import Any

import pytest
from support.patience import PATIENCE
from support.pausing import STOPS_WITHIN, mails_since, pause, resume
from support.rabbitmq import RabbitmqServer
from support.workers import viperctl, write_project

from openviper.conf import override
from openviper.core.email import DeliveryMode, SendingPaused, send_many, submit_email, subscribe
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.queue.job import Progress
from openviper.core.email.queue.retry import QueuePolicy
from openviper.core.email.settings import EmailSettings


@pytest.fixture
def paused_scene(scene: Any) -> Any:
    """On RabbitMQ the flag is in a folder."""
    if isinstance(scene.broker, RabbitmqServer):
        scene.email |= {"state_dir": str(scene.folder / "state")}
        write_project(scene.folder, tasks=scene.tasks, email=scene.email)
    return scene


def subjects(smtp: Any) -> list[str]:
    return [str(message.parse()["Subject"]) for message in smtp.messages]


async def until_known(mailer: Mailer, *, paused: bool) -> None:
    watch = mailer.transport.pause
    assert watch is not None
    async with asyncio.timeout(PATIENCE):
        while watch.on is not paused:
            await asyncio.sleep(0.01)


async def test_queued_mail_stays_unclaimed_and_all_of_it_arrives_afterwards(paused_scene: Any) -> None:
    """Messages of a bulk run and single ones, with a slow mail server, so that the worker has some at hand."""
    scene = paused_scene
    scene.smtp.delay("body", 0.3)
    messages = [{"recipients": ["a@example.com"], "subject": f"bulk {n}", "text": "x"} for n in range(400)]
    with override(EMAIL=scene.email), scene.worker() as worker:
        receipts = [receipt async for receipt in send_many(messages, background=True)]
        assert all(receipts)
        await scene.smtp.seen("MAIL", 10)
        paused_at = await asyncio.to_thread(pause, scene.folder)
        for number in range(50):
            assert (await submit_email("a@example.com", f"single {number}", text="x")).mode is DeliveryMode.QUEUED
        await asyncio.sleep(2 * STOPS_WITHIN)
        assert mails_since(scene.smtp, paused_at + STOPS_WITHIN) == []
        sent = len(scene.smtp.messages)
        assert 0 < sent < 400
        status = viperctl("email", "status", "--project", scene.folder)
        assert "Sending  paused: all mail" in status.stdout
        assert status.returncode == 0
        scene.smtp.behave()
        await asyncio.to_thread(resume, scene.folder)
        await scene.smtp.arrive(450)
        assert sorted(subjects(scene.smtp)) == sorted(
            [*(f"bulk {n}" for n in range(400)), *(f"single {n}" for n in range(50))]
        )
        assert "attempt" not in worker.output


async def test_a_worker_that_starts_during_a_pause_claims_nothing_and_stops_at_once(paused_scene: Any) -> None:
    scene = paused_scene
    await asyncio.to_thread(pause, scene.folder)
    with override(EMAIL=scene.email):
        await submit_email("a@example.com", "queued", text="x")
        with scene.worker():
            await asyncio.sleep(1)
        assert scene.smtp.commands == []
        with scene.worker():
            await asyncio.to_thread(resume, scene.folder)
            await scene.smtp.arrive(1)


async def test_mail_of_a_paused_mailer_waits_and_other_mail_goes(paused_scene: Any) -> None:
    scene = paused_scene
    scene.email |= {"mailers": {"bulk": {"host": scene.smtp.host, "port": scene.smtp.port, "timeout": PATIENCE}}}
    write_project(scene.folder, tasks=scene.tasks, email=scene.email)
    await asyncio.to_thread(pause, scene.folder, "--mailer", "bulk")
    with override(EMAIL=scene.email), scene.worker():
        for number in range(5):
            await submit_email("a@example.com", f"bulk {number}", text="x", mailer="bulk")
            await submit_email("a@example.com", f"own {number}", text="x")
        await scene.smtp.arrive(5)
        assert sorted(subjects(scene.smtp)) == [f"own {number}" for number in range(5)]
        await asyncio.to_thread(resume, scene.folder, "--mailer", "bulk")
        await scene.smtp.arrive(10)
    assert sorted(subjects(scene.smtp))[:5] == [f"bulk {number}" for number in range(5)]


async def test_deferred_mail_of_a_process_that_stops_is_queued(paused_scene: Any) -> None:
    scene = paused_scene
    scene.email |= {"use_background_worker": False}
    await asyncio.to_thread(pause, scene.folder)
    with override(EMAIL=scene.email):
        mailer = Mailer(EmailSettings.from_settings())
        await mailer.open()
        await until_known(mailer, paused=True)
        outbox = RequestOutbox()
        with collecting(outbox), using_mailer(mailer):
            for number in range(250):
                receipt = await submit_email("a@example.com", str(number), text="x")
                assert receipt.mode is DeliveryMode.DEFERRED
        outbox.flush()
        began = time.monotonic()
        await mailer.aclose()
        assert time.monotonic() - began < mailer.settings.shutdown_timeout
        assert scene.smtp.commands == []
        await asyncio.to_thread(resume, scene.folder)
        with scene.worker():
            await scene.smtp.arrive(250)
    assert sorted(subjects(scene.smtp), key=int) == [str(number) for number in range(250)]


async def test_deferred_mail_that_is_queued_at_a_stop_keeps_its_key(paused_scene: Any) -> None:
    scene = paused_scene
    scene.email |= {"use_background_worker": False}
    await asyncio.to_thread(pause, scene.folder)
    key = uuid.uuid4().hex  # RabbitMQ leaves keys to the process, which has other tests
    with override(EMAIL=scene.email):
        told = []
        for _ in range(2):
            mailer = Mailer(EmailSettings.from_settings())
            await mailer.open()
            outbox = RequestOutbox()
            with collecting(outbox), using_mailer(mailer):
                told.append(await submit_email("a@example.com", "Order", text="x", key=key))
            outbox.flush()
            await mailer.aclose()
        assert [receipt.duplicate for receipt in told] == [False, True]
        assert told[1].message_id == told[0].message_id
        await asyncio.to_thread(resume, scene.folder)
        with scene.worker():
            await submit_email("a@example.com", "Last", text="x", background=True)
            await scene.smtp.arrive(2)
    assert sorted(subjects(scene.smtp)) == ["Last", "Order"]


@pytest.mark.parametrize(("other", "kind"), [("Order", "duplicate"), ("Changed", "failed")])
async def test_key_that_another_send_has_taken_meanwhile_is_told_at_the_stop(
    redis_scene: Any, other: str, kind: str
) -> None:
    """A process was stopped for longer than its claim lasts, and another one has sent with the key meanwhile."""
    scene = redis_scene
    scene.email |= {"use_background_worker": False}
    await asyncio.to_thread(pause, scene.folder)
    events: list[tuple[str, str]] = []
    end = subscribe(lambda event: events.append((event.kind, event.detail)))
    with override(EMAIL=scene.email):
        mailer = Mailer(EmailSettings.from_settings())
        await mailer.open()
        await until_known(mailer, paused=True)
        outbox = RequestOutbox()
        with collecting(outbox), using_mailer(mailer):
            await submit_email("a@example.com", "Order", text="x", key="order-7")
            with scene.broker.client() as client:
                for key in client.scan_iter("dramatiq:mail:key:*"):
                    client.delete(key)
        outbox.flush()
        with override(EMAIL=scene.email | {"use_background_worker": True}):
            queued = await submit_email("a@example.com", other, text="x", key="order-7", background=True)
        assert queued.mode is DeliveryMode.QUEUED
        await mailer.aclose()
    end()
    told = [(name, detail) for name, detail in events if name in ("duplicate", "failed")]
    assert [name for name, _ in told] == [kind]
    assert queued.message_id in told[0][1]


async def test_what_is_paused_stays_paused_while_redis_is_away(redis_scene: Any) -> None:
    scene = redis_scene
    mailer = Mailer(EmailSettings.from_settings())
    await mailer.open()
    await asyncio.to_thread(pause, scene.folder)
    await until_known(mailer, paused=True)
    await asyncio.to_thread(scene.broker.stop)
    await asyncio.sleep(3)
    with using_mailer(mailer), pytest.raises(SendingPaused):
        await submit_email("a@example.com", "Hi", text="x", background=False)
    await asyncio.to_thread(scene.broker.start)
    await asyncio.sleep(1)
    with using_mailer(mailer), pytest.raises(SendingPaused):
        await submit_email("a@example.com", "Hi", text="x", background=False)
    await asyncio.to_thread(resume, scene.folder)
    await until_known(mailer, paused=False)
    with using_mailer(mailer):
        assert await submit_email("a@example.com", "Hi", text="x", background=False)
    await mailer.aclose()


async def test_a_full_redis_can_be_paused_and_resumed(redis_scene: Any) -> None:
    scene = redis_scene
    client = scene.broker.client()
    client.config_set("maxmemory", "1")
    await asyncio.to_thread(pause, scene.folder)
    assert client.exists("dramatiq:mail:paused")
    await asyncio.to_thread(resume, scene.folder)
    assert "paused" not in viperctl("email", "status", "--project", scene.folder).stdout


@pytest.mark.parametrize("command", [("set", "junk"), ("rpush", "x"), ("set", "")])
async def test_junk_in_place_of_the_flag_pauses_until_somebody_resumes(
    redis_scene: Any, command: tuple[str, str]
) -> None:
    scene = redis_scene
    client = scene.broker.client()
    mailer = Mailer(EmailSettings.from_settings())
    await mailer.open()
    client.execute_command(command[0], "dramatiq:mail:paused", command[1])
    await until_known(mailer, paused=True)
    await asyncio.to_thread(resume, scene.folder)
    await until_known(mailer, paused=False)
    await mailer.aclose()


def test_mail_does_not_age_while_it_is_paused() -> None:
    """Queued at 0, paused from 100 to 90,000: on its first failure afterwards a day has not passed for it."""
    settings = EmailSettings(retry_max_age="24 hours")

    def seconds_paused(since: float, now: float) -> float:
        return min(now, 90_000) - max(since, 100)

    progress = Progress(since=0, attempts=1)
    assert QueuePolicy(settings).delay_after(progress, now=90_100) is None
    policy = QueuePolicy(settings, seconds_paused=seconds_paused)
    assert policy.delay_after(progress, now=90_100) is not None
    assert policy.delay_after(progress, now=90_100 + 86_300) is None


async def test_the_progress_of_earlier_attempts_goes_to_the_queue(redis_scene: Any) -> None:
    """One of two recipients has the message when the process stops during a pause: a worker sends to the other."""
    scene = redis_scene
    scene.email |= {"use_background_worker": False}
    scene.smtp.refuse("b@example.com", 451, nth=1)
    with override(EMAIL=scene.email):
        mailer = Mailer(EmailSettings.from_settings())
        await mailer.open()
        outbox = RequestOutbox()
        with collecting(outbox), using_mailer(mailer):
            await submit_email(["a@example.com", "b@example.com"], "Hi", text="x")
        outbox.flush()
        await scene.smtp.arrive(1)
        await asyncio.to_thread(pause, scene.folder)
        await until_known(mailer, paused=True)
        await mailer.aclose()
        await asyncio.to_thread(resume, scene.folder)
        with scene.worker():
            await scene.smtp.arrive(2)
    assert [message.recipients for message in scene.smtp.messages] == [["a@example.com"], ["b@example.com"]]
