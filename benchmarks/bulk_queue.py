"""Compare three ways to queue mail: ``send_many(background=True)``, a loop of ``send_email``, and the bare client.

``python benchmarks/bulk_queue.py`` starts its own brokers. All three take turns in one process; the ratios are medians
of those of each round. Bare redis-py pipelines what a message of this component is on Redis: its hash, its entry among
the open jobs, and its Dramatiq message. Bare pika publishes what it is on RabbitMQ, with confirms for all together.
Neither prepares a message or checks anything.
"""

# ruff: noqa: E402 - this checkout, its test servers and the other benchmarks come first on the path

import argparse
import asyncio
import contextlib
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
from support.rabbitmq import RabbitmqServer
from support.redis import RedisServer
from tables import markdown, put_below

from openviper.conf import override
from openviper.core.email import send_email, send_many
from openviper.core.email.queue import close_queue

_HEADING = "## Rates of bulk mail through the queue"
_BATCH = 200
_LOOP, _BULK, _BARE = "loop of `await send_email`", "`send_many(background=True)`", "bare client"
_BROKERS = {"redis": "Redis", "rabbitmq": "RabbitMQ"}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=5000, help="number of messages of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--brokers", nargs="+", choices=_BROKERS, default=[*_BROKERS])
    parser.add_argument("--into", type=Path, help=f"Markdown file whose section {_HEADING!r} gets the table")
    options = parser.parse_args()
    began = time.strftime("%Y-%m-%d %H:%M")
    pages = []
    for broker in options.brokers:
        with tempfile.TemporaryDirectory(prefix="openviper-bench-") as folder:
            measured = _measure(broker, Path(folder), options.messages, options.rounds)
        pages.append(f"### Bulk mail on {_BROKERS[broker]}\n\n{measured}")
    page = "\n\n".join(pages)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    head = f"{began}; {machine}; Python {platform.python_version()}; {options.rounds} rounds of {options.messages}."
    print(f"{head}\n\n{page}")
    if options.into is not None:
        put_below(_HEADING, f"{head}\n\n{page}", options.into)


def _measure(broker: str, folder: Path, count: int, rounds: int) -> str:
    (folder / "broker").mkdir()
    content = Content.read(str(write_content(folder / "message.json")))
    server: RedisServer | RabbitmqServer
    if broker == "redis":
        server = RedisServer(folder / "broker", appendfsync="everysec")
    else:
        server = RabbitmqServer(folder / "broker")
    try:
        server.start()
        with override(TASKS=server.tasks(), EMAIL={"default_sender": SENDER}):
            rates, costs = asyncio.run(
                _rounds(_OnRedis(server) if broker == "redis" else _OnRabbitmq(server), content, count, rounds)
            )
            close_queue()
    finally:
        server.close()
    return _table(rates, costs)


class _OnRedis:
    """Bare redis-py."""

    def __init__(self, server: Any) -> None:
        self._client: Any = server.client()
        self._commands: list[list[tuple[Any, ...]]] = []

    def clear(self) -> None:
        self._client.flushall()

    def record(self) -> None:
        """Note the commands that store the same bytes."""
        self._commands = _stored(self._client)

    def store(self, number: int) -> None:
        _pipeline(self._client, self._commands[:number])

    def count(self) -> int:
        return int(self._client.hlen("dramatiq:emails.msgs"))

    def processor(self) -> float:
        """Return the processor time in seconds that Redis has used."""
        used = self._client.info("cpu")
        return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


class _OnRabbitmq:
    """Bare pika."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._bodies: list[tuple[Any, bytes]] = []

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        with self._server.connect() as connection:
            yield connection.channel()

    def clear(self) -> None:
        with self._channel() as channel:
            channel.queue_purge("emails")

    def record(self) -> None:
        """Note the messages."""
        with self._channel() as channel:
            while (got := channel.basic_get("emails", auto_ack=True))[0] is not None:
                self._bodies.append((got[1], got[2]))

    def store(self, number: int) -> None:
        # A transaction confirms all of its messages at once; pika's own confirms wait after each.
        with self._channel() as channel:
            channel.tx_select()
            for begin in range(0, number, _BATCH):
                for properties, body in self._bodies[begin : min(begin + _BATCH, number)]:
                    channel.basic_publish("", "emails", body, properties)
                channel.tx_commit()

    def count(self) -> int:
        with self._channel() as channel:
            return int(channel.queue_declare("emails", passive=True).method.message_count)

    def processor(self) -> float:
        """Return 0: the processor time of RabbitMQ is left out."""
        return 0.0


async def _rounds(
    broker: _OnRedis | _OnRabbitmq, content: Content, count: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    await _loop(content, 20)
    await _bulk(content, 20)
    await asyncio.to_thread(broker.clear)
    await _bulk(content, count)
    await asyncio.to_thread(broker.record)

    async def bare(_: Content, number: int) -> None:
        await asyncio.to_thread(broker.store, number)

    kinds: dict[str, Callable[[Content, int], Awaitable[None]]] = {_LOOP: _loop, _BULK: _bulk, _BARE: bare}
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    costs: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, work in kinds.items():
            await asyncio.to_thread(broker.clear)
            number = count // 5 if kind is _LOOP else count
            used = await asyncio.to_thread(broker.processor) + time.process_time()
            began = time.perf_counter()
            await work(content, number)
            rates[kind].append(number / (time.perf_counter() - began))
            used -= await asyncio.to_thread(broker.processor) + time.process_time()
            costs[kind].append(-used / number * 1e6)
            assert await asyncio.to_thread(broker.count) == number, "each message is there once"
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
