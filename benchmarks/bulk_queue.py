"""Compare three ways to put mail on Redis: ``send_many(background=True)``, a loop of ``send_email``, and bare redis-py.

``python benchmarks/bulk_queue.py`` starts its own Redis. All three take turns in one process; the ratios are medians
of those of each round. Bare redis-py pipelines what a message of this component is on Redis: its hash, its entry among
the open jobs, and its Dramatiq message; it prepares no message and checks nothing.
"""

# ruff: noqa: E402 - this checkout, its test servers and the other benchmarks come first on the path

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parent / "tests"), str(_HERE.parent), str(_HERE / "sending")]

from content import SENDER, Content, write_content
from support.redis import RedisServer
from tables import markdown, put_below

from openviper.conf import override
from openviper.core.email import send_email, send_many
from openviper.core.email.queue import close_queue

_HEADING = "## Rates of bulk mail through the queue"
_BATCH = 200
_LOOP, _BULK, _BARE = "loop of `await send_email`", "`send_many(background=True)`", "bare redis-py, pipelined"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=5000, help="number of messages of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--into", type=Path, help=f"Markdown file whose section {_HEADING!r} gets the table")
    options = parser.parse_args()
    began = time.strftime("%Y-%m-%d %H:%M")
    with tempfile.TemporaryDirectory(prefix="openviper-bench-") as folder:
        page = _measure(Path(folder), options.messages, options.rounds)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    head = f"{began}; {machine}; Python {platform.python_version()}; {options.rounds} rounds of {options.messages}."
    print(f"{head}\n\n{page}")
    if options.into is not None:
        put_below(_HEADING, f"{head}\n\n{page}", options.into)


def _measure(folder: Path, count: int, rounds: int) -> str:
    (folder / "broker").mkdir()
    content = Content.read(str(write_content(folder / "message.json")))
    server = RedisServer(folder / "broker", appendfsync="everysec")
    try:
        server.start()
        with override(TASKS=server.tasks(), EMAIL={"default_sender": SENDER}):
            rates, costs = asyncio.run(_rounds(server, content, count, rounds))
            close_queue()
    finally:
        server.close()
    return _table(rates, costs)


async def _rounds(
    server: RedisServer, content: Content, count: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    client: Any = server.client()
    await _loop(content, 20)
    await _bulk(content, 20)
    client.flushall()
    await _bulk(content, count)
    commands = await asyncio.to_thread(_stored, client)

    async def bare(_: Content, number: int) -> None:
        await asyncio.to_thread(_pipeline, client, commands[:number])

    kinds: dict[str, Callable[[Content, int], Awaitable[None]]] = {_LOOP: _loop, _BULK: _bulk, _BARE: bare}
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    costs: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, work in kinds.items():
            await asyncio.to_thread(client.flushall)
            number = count // 5 if kind is _LOOP else count
            used, began = _processor(client), time.perf_counter()
            await work(content, number)
            rates[kind].append(number / (time.perf_counter() - began))
            costs[kind].append((_processor(client) - used) / number * 1e6)
            assert client.hlen("dramatiq:emails.msgs") == number, "each message is there once"
    return rates, costs


def _filled(content: Content, count: int) -> Iterator[dict[str, Any]]:
    for number in range(1, count + 1):
        subject, text, html = content.filled(number)
        yield {"recipients": f"customer{number}@example.com", "subject": subject, "text": text, "html": html}


async def _loop(content: Content, count: int) -> None:
    for message in _filled(content, count):
        await send_email(**message)


async def _bulk(content: Content, count: int) -> None:
    async for receipt in send_many(_filled(content, count), background=True):
        assert receipt, receipt.error


def _stored(client: Any) -> list[list[tuple[Any, ...]]]:
    """Return, for each message on Redis, the commands that store the same bytes."""
    commands = []
    for job in client.scan_iter("dramatiq:mail:job:*", count=1000):
        key = job.removeprefix(b"dramatiq:mail:job:")
        name = key + b":1"
        fields = [part for pair in client.hgetall(job).items() for part in pair]
        commands.append(
            [
                ("HSET", job, *fields),
                ("ZADD", "dramatiq:mail:open", time.time() * 1000, key),
                ("HSET", "dramatiq:emails.msgs", name, client.hget("dramatiq:emails.msgs", name)),
                ("RPUSH", "dramatiq:emails", name),
            ]
        )
    return commands


def _pipeline(client: Any, commands: list[list[tuple[Any, ...]]]) -> None:
    for begin in range(0, len(commands), _BATCH):
        pipeline = client.pipeline(transaction=False)
        for message in commands[begin : begin + _BATCH]:
            for command in message:
                pipeline.execute_command(*command)
        pipeline.execute()


def _processor(client: Any) -> float:
    """Return the processor time in seconds that this process and Redis have used."""
    used = client.info("cpu")
    return time.process_time() + float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def _table(rates: dict[str, list[float]], costs: dict[str, list[float]]) -> str:
    rows = [
        [
            kind,
            f"{statistics.median(measured):,.0f}",
            f"{min(measured):,.0f} to {max(measured):,.0f}",
            f"{_ratio(rates[_BULK], measured):.2f}",
            f"{statistics.median(costs[kind]):.0f}",
            f"{_ratio(costs[kind], costs[_BULK]):.2f}",
        ]
        for kind, measured in rates.items()
    ]
    head = ["enqueueing", "messages/s", "spread", "bulk, times this", "processor, µs", "bulk's work, times less"]
    return markdown(head, rows)


def _ratio(upper: list[float], lower: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(upper, lower, strict=True))


if __name__ == "__main__":
    main()
