"""Signals that reach a worker's processes twice do not end what is in hand; a later second one does."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.brokers import usual_broker as broker
from support.workers import Worker

from openviper.core.email import send_email
from openviper.core.email.queue import queue_service

__all__ = ["broker"]


def _group_twice(worker: Worker) -> None:
    """Stop as systemd does by default, and again."""
    os.killpg(worker.pid, signal.SIGTERM)
    time.sleep(0.8)
    os.killpg(worker.pid, signal.SIGTERM)


def _runner_then_group(worker: Worker) -> None:
    os.kill(worker.pid, signal.SIGTERM)
    time.sleep(0.5)
    os.killpg(worker.pid, signal.SIGTERM)


def _ctrl_c_twice(worker: Worker) -> None:
    """A terminal signals the foreground process group."""
    os.killpg(worker.pid, signal.SIGINT)
    time.sleep(0.3)
    os.killpg(worker.pid, signal.SIGINT)


def _both_kinds(worker: Worker) -> None:
    os.killpg(worker.pid, signal.SIGINT)
    os.killpg(worker.pid, signal.SIGTERM)


@pytest.mark.parametrize(
    "stop",
    [
        _runner_then_group,
        _ctrl_c_twice,
        pytest.param(_group_twice, marks=pytest.mark.long),
        pytest.param(_both_kinds, marks=pytest.mark.long),
    ],
)
async def test_mail_in_hand_goes_out_once(scene: Any, stop: Callable[[Worker], None]) -> None:
    gate = scene.smtp.hold("body")
    recipients = [f"to{number}@example.com" for number in range(6)]
    for recipient in recipients:
        await send_email(recipient, "Order", text="")
    worker = scene.worker(processes=2)
    await asyncio.to_thread(worker.start)
    await gate.reached()
    await asyncio.to_thread(stop, worker)
    await asyncio.to_thread(worker.wait_for, "Stopping worker process", times=2)
    gate.release()
    assert await asyncio.to_thread(worker.wait) == 0
    assert "Killing" not in worker.output
    with scene.worker():
        await scene.smtp.arrive(len(recipients))
    assert sorted(message.recipients[0] for message in scene.smtp.messages) == recipients
    service = queue_service()
    assert service is not None
    stats = await asyncio.to_thread(service.store.stats)
    assert (stats.waiting, stats.failed) == (0, 0)


async def test_a_second_signal_some_seconds_later_ends_the_worker_at_once(scene: Any) -> None:
    """The message is kept, and the next worker delivers it."""
    scene.smtp.fault("body", "silence", nth=1)
    await send_email("a@example.com", "Order", text="")
    worker = scene.worker()
    await asyncio.to_thread(worker.start)
    await scene.smtp.seen("body")
    await asyncio.to_thread(os.killpg, worker.pid, signal.SIGTERM)
    await asyncio.to_thread(worker.wait_for, "Stopping worker process")
    await asyncio.sleep(4)
    await asyncio.to_thread(os.killpg, worker.pid, signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait) != 0
    with scene.worker():
        await scene.smtp.arrive(1)
