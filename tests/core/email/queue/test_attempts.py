"""Attempts on either broker: again what failed for now, to those who lack it, and nothing is lost in between."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.patience import PATIENCE
from support.workers import viperctl

from openviper.core.email import send_email, submit_email
from openviper.core.email.queue import queue_service
from openviper.core.email.queue.job import FailedJob


def failed() -> list[FailedJob]:
    service = queue_service()
    assert service is not None
    return service.store.failed(10)


async def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_every_attempt_is_the_same_message(scene: Any) -> None:
    scene.smtp.fault("MAIL", 421, nth=1)
    scene.smtp.fault("MAIL", "drop", nth=2)
    receipt = await submit_email("a@example.com", "Order", text="Hi", attachments=[("a.bin", b"\x00\x01")])
    with scene.worker():
        (message,) = await scene.smtp.arrive(1)
    assert scene.smtp.verbs.count("MAIL") == 3
    assert message.parse()["Message-ID"] == receipt.message_id


async def test_only_those_refused_for_now_get_it_again_and_those_refused_for_good_are_kept(scene: Any) -> None:
    scene.smtp.refuse("later@example.com", 451, nth=1)
    scene.smtp.refuse("gone@example.com", 550)
    await send_email(["here@example.com", "later@example.com", "gone@example.com"], "Order", text="")
    with scene.worker() as worker:
        messages = await scene.smtp.arrive(2)
        await eventually(failed)
    assert [message.recipients for message in messages] == [["here@example.com"], ["later@example.com"]]
    assert messages[0].content == messages[1].content
    (job,) = await asyncio.to_thread(failed)
    assert list(job.progress.refused) == ["gone@example.com"]
    for name in ("here", "later", "gone"):
        assert f"{name}@example.com" not in worker.output


PEOPLE = [f"r{number}@example.com" for number in range(150)]


def hold(scene: Any, **more: Any) -> None:
    """Let a worker hold what nobody knows of."""
    settings = scene.folder / "settings.py"
    more["on_uncertain"] = "hold"
    settings.write_text(f"{settings.read_text()}\nEMAIL |= {more!r}\n")


@pytest.mark.parametrize("fault", ["drop", "silence"])
async def test_held_is_who_may_have_it_of_the_second_envelope(scene: Any, fault: str) -> None:
    """The first envelope was taken; a retry by hand then goes to those of the second one alone."""
    hold(scene, **({"data_timeout": 4.0} if fault == "silence" else {}))
    scene.smtp.fault("body", fault, nth=2)
    await send_email(PEOPLE, "Order", text="")
    with scene.worker() as worker:
        await eventually(failed)
        (job,) = await asyncio.to_thread(failed)
        assert job.uncertain
        assert list(job.progress.unconfirmed) == PEOPLE[100:]
        assert job.progress.attempts == 1
        assert "may or may not have been accepted" in job.reason
        shown = await asyncio.to_thread(commanded, scene, "show", job.message_id)
        assert "Delivered   perhaps" in shown
        assert "Perhaps     r149@example.com  451" in shown
        assert "perhaps delivered" in await asyncio.to_thread(commanded, scene, "list")
        assert [message.recipients for message in scene.smtp.messages] == [PEOPLE[:100]]
        assert scene.smtp.verbs.count("body") == 2
        assert "1 queued again" in await asyncio.to_thread(commanded, scene, "retry", job.message_id)
        messages = await scene.smtp.arrive(2, 60)
    assert [message.recipients for message in messages] == [PEOPLE[:100], PEOPLE[100:]]
    assert not await asyncio.to_thread(failed)
    assert "may have been delivered to 50 recipients after 1 attempt" in worker.output


async def test_held_is_who_may_have_it_of_the_first_envelope_and_the_others_get_it(scene: Any) -> None:
    hold(scene)
    scene.smtp.fault("body", "drop", nth=1)
    await send_email(PEOPLE, "Order", text="")
    with scene.worker():
        await eventually(failed)
    (job,) = await asyncio.to_thread(failed)
    assert job.uncertain
    assert list(job.progress.unconfirmed) == PEOPLE[:100]
    assert [message.recipients for message in scene.smtp.messages] == [PEOPLE[100:]]
    assert scene.smtp.verbs.count("body") == 2


async def test_held_is_everybody_when_both_envelopes_are_cut(scene: Any) -> None:
    hold(scene)
    scene.smtp.fault("body", "drop")
    await send_email(PEOPLE, "Order", text="")
    with scene.worker():
        await eventually(failed)
    (job,) = await asyncio.to_thread(failed)
    assert job.uncertain
    assert list(job.progress.unconfirmed) == PEOPLE
    assert scene.smtp.messages == []
    assert scene.smtp.verbs.count("body") == 2


async def test_without_hold_the_second_envelope_is_sent_again(scene: Any) -> None:
    scene.smtp.fault("body", "drop", nth=2)
    await send_email(PEOPLE, "Order", text="")
    with scene.worker():
        messages = await scene.smtp.arrive(2, 60)
    assert [message.recipients for message in messages] == [PEOPLE[:100], PEOPLE[100:]]
    assert messages[0].content == messages[1].content
    assert scene.smtp.verbs.count("body") == 3
    assert not await asyncio.to_thread(failed)


def commanded(scene: Any, *words: str) -> str:
    return viperctl("email", "failed", *words, "--project", scene.folder).stdout


async def test_neither_an_address_nor_the_servers_words_are_in_the_log(scene: Any) -> None:
    scene.smtp.fault("MAIL", "451 4.7.1 shop@example.com is greylisted", nth=1)
    scene.smtp.fault("MAIL", "554 5.7.1 no mail from shop@example.com", nth=2)
    await send_email("ana@example.com", "Order", text="private words", attachments=[("a.txt", b"private words")])
    with scene.worker("-v") as worker:
        await eventually(failed)
    assert "5.7.1" in (await asyncio.to_thread(failed))[0].reason
    assert "delivered after 2 attempt" in worker.output
    for secret in ("ana@", "shop@", "greylisted", "no mail from", "private words"):
        assert secret not in worker.output


async def test_mail_in_the_hands_of_a_killed_worker_goes_out_within_a_minute_on_an_idle_queue(scene: Any) -> None:
    """With the default heartbeat_timeout."""
    gate = scene.smtp.hold("MAIL", nth=1)
    await send_email("a@example.com", "Order", text="")
    first = scene.worker()
    await asyncio.to_thread(first.start)
    await gate.reached()
    await asyncio.to_thread(first.kill)
    gate.release()
    with scene.worker():
        await scene.smtp.arrive(1)


async def test_what_cannot_be_queued_again_at_once_is_not_lost(scene: Any) -> None:
    """The broker dies while the message is in a worker's hands, and the server refuses it for now."""
    gate = scene.smtp.hold("MAIL", nth=1)
    scene.smtp.fault("RCPT", 451, nth=1)
    receipt = await submit_email("a@example.com", "Order", text="")
    with scene.worker():
        await gate.reached()
        await asyncio.to_thread(scene.broker.kill)
        gate.release()
        await scene.smtp.seen("RCPT")
        await asyncio.sleep(2)
        await asyncio.to_thread(scene.broker.start)
        messages = await scene.smtp.arrive(1)
    assert messages[0].parse()["Message-ID"] == receipt.message_id
