"""The queue's rates: enqueueing from asyncio, the longest stall of the loop meanwhile, and draining.

``python benchmarks/mail_queue.py [--messages 2000] [--broker redis|rabbitmq]`` starts its own broker, and
drains a no-op async Dramatiq actor in the same run for comparison.
"""

# ruff: noqa: E402 - this checkout and its test servers come first on the path

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parents[1])]

import dramatiq
from support.rabbitmq import RabbitmqServer
from support.redis import RedisServer
from support.workers import Worker, write_project

from openviper.conf import override
from openviper.core.email import AttachmentData, EmailMessageData
from openviper.core.email.queue import close_queue, enqueue_email_job
from openviper.tasks import get_broker

# Counts in a file of each process, which costs both kinds of task the same.
_BACKEND = '''
import os
from openviper.core.email.backends import DeliveryReport, EmailBackend
from openviper.tasks import actor

done = open(f"done-{os.getpid()}", "ab", buffering=0)

class Counting(EmailBackend):
    """Takes every message."""

    async def send(self, message):
        done.write(b"x")
        return DeliveryReport(message.envelope.recipients)

@actor(queue_name="noop")
async def noop(number):
    done.write(b"x")
'''


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], default="redis")
    parser.add_argument("--appendfsync", choices=["always", "everysec"], default="everysec", help="of Redis")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="openviper-bench-") as folder, ExitStack() as stack:
        place = Path(folder)
        (place / "broker").mkdir()
        server: Any
        if given.broker == "redis":
            server = RedisServer(place / "broker", appendfsync=given.appendfsync)
        else:
            server = RabbitmqServer(place / "broker")
        stack.callback(server.close)
        server.start()
        email = {"backend": "tasks.Counting", "default_sender": "shop@example.com"}
        project = write_project(place / "project", tasks=server.tasks(), email=email)
        (project / "tasks.py").write_text(_BACKEND)
        with override(TASKS=server.tasks(), EMAIL={"default_sender": "shop@example.com"}):
            asyncio.run(_measure_enqueueing(given.messages))
            for processes in (1, 2):
                _measure_draining(project, given.messages, processes)
            close_queue()


async def _measure_enqueueing(count: int) -> None:
    await enqueue_email_job(_message())
    for name, jobs, at_once in (("one after the other", count, 1), ("50 at once", count, 50)):
        seconds, stall = await _watched(lambda jobs=jobs, at_once=at_once: _enqueue(jobs, at_once))
        print(f"enqueue, {name}: {jobs / seconds:.0f}/s, longest stall {stall * 1000:.1f} ms")
    # Base64 makes 34 MB of it, below the limit of a message.
    large = _message(AttachmentData("large.bin", bytes(range(256)) * (25 * 4096)))
    seconds, stall = await _watched(lambda: enqueue_email_job(large))
    print(f"enqueue, 25 MB attached: {seconds:.2f} s, longest stall {stall * 1000:.1f} ms")


async def _enqueue(count: int, at_once: int) -> None:
    async def some() -> None:
        for _ in range(count // at_once):
            await enqueue_email_job(_message())

    await asyncio.gather(*(some() for _ in range(at_once)))


async def _watched(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Seconds that ``work`` takes, and the longest time for which the loop did nothing else."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - begin - 0.001)

    watching = asyncio.create_task(watch())
    begin = time.perf_counter()
    await work()
    seconds = time.perf_counter() - begin
    watching.cancel()
    return seconds, longest


def _message(*attachments: AttachmentData) -> EmailMessageData:
    text = "Thank you for your order.\n" * 40
    return EmailMessageData(["a@example.com"], "Order", text=text, attachments=list(attachments))


def _measure_draining(project: Path, count: int, processes: int) -> None:
    rates = {}
    for name in ("noop", "emails"):
        # What earlier measurements have left is drained first.
        _drain(project, processes, name, 0)
        if name == "noop":
            for number in range(count):
                get_broker().enqueue(dramatiq.Message("noop", "noop", (number,), {}, {}))
        else:
            asyncio.run(_enqueue(count, 1))
        rates[name] = _drain(project, processes, name, count)
    ratio = rates["emails"] / rates["noop"]
    print(f"drain {processes}x8: no-op {rates['noop']:.0f}/s, mail {rates['emails']:.0f}/s, {ratio:.2f} of it")


def _drain(project: Path, processes: int, queue: str, count: int) -> float:
    for file in project.glob("done-*"):
        file.unlink()
    worker = Worker(project, "--queues", queue, processes=processes, threads=8)
    worker.start(ready=False)
    try:
        first: tuple[float, int] | None = None
        quiet = time.perf_counter()
        before = 0
        while True:
            done = sum(file.stat().st_size for file in project.glob("done-*"))
            now = time.perf_counter()
            if done and first is None:
                first = now, done
            if done != before:
                before, quiet = done, now
            if (count and done >= count) or (not count and now - quiet > 3):
                break
            time.sleep(0.01)
    finally:
        worker.terminate()
    return 0.0 if first is None or now == first[0] else (done - first[1]) / (now - first[0])


if __name__ == "__main__":
    main()
