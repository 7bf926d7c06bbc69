"""Measure the queue: enqueueing from asyncio, the event loop's longest stall meanwhile, and draining.

``python benchmarks/mail_queue.py --python python3.13`` starts its own brokers and mail server. Draining alternates
between this component, an async Dramatiq actor that does nothing, and openviper 0.1.1 on the same Python.
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
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parent / "tests"), str(_HERE.parent), str(_HERE / "sending")]

from content import SENDER, Content, write_content
from draining import THREADS, Drained, Mail, Mail011, Noop, enqueue, rate
from environments import openviper_0_1_1, python_named, queue_environment
from support.broker_server import BrokerServer
from support.rabbitmq import RabbitmqServer
from support.redis import RedisServer
from tables import markdown, put_below

from openviper.conf import override
from openviper.core.email import AttachmentData, EmailMessageData
from openviper.core.email.queue import close_queue, enqueue_email_job

_BROKERS: Mapping[str, Callable[[Path], BrokerServer]] = {
    "everysec": partial(RedisServer, appendfsync="everysec"),
    "always": partial(RedisServer, appendfsync="always"),
    "rabbitmq": RabbitmqServer,
}
_TITLES = {
    "everysec": "Redis, `appendfsync everysec`",
    "always": "Redis, `appendfsync always`",
    "rabbitmq": "RabbitMQ",
}
_PROCESSES = (1, 2)
_HEADING = "## Rates of the queue"


def main() -> None:
    """Run the command line."""
    options = _options()
    environment = queue_environment(python_named(options.python))
    if environment != sys.executable:
        os.execv(environment, [environment, *sys.argv])
    versions = {"Python": platform.python_version()}
    versions |= {name: version(name) for name in ("openviper-email", "dramatiq", "redis", "hiredis", "pika")}
    kinds: dict[str, Drained] = {"no-op actor": Noop(), "mail": Mail()}
    old = openviper_0_1_1(python_named(options.python), versions)
    if old is not None:
        kinds["openviper 0.1.1"] = Mail011(old)
    began = time.strftime("%Y-%m-%d %H:%M")
    texts = []
    for name in options.brokers:
        with tempfile.TemporaryDirectory(prefix="openviper-bench-") as folder:
            texts.append(f"### {_TITLES[name]}\n\n{_measure(_BROKERS[name], Path(folder), kinds, options)}")
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    head = f"{began}; {machine}; {options.rounds} rounds of {options.messages} messages; {listed}."
    page = "\n\n".join([head, *texts])
    print(page)
    if options.into is not None:
        put_below(_HEADING, page, options.into)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=2000, help="number of messages in each drain")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--brokers", nargs="+", choices=_BROKERS, default=list(_BROKERS))
    parser.add_argument("--python", default=sys.executable, help="interpreter to measure with; default: this one")
    parser.add_argument("--into", type=Path, help=f"Markdown file whose section {_HEADING!r} gets the tables")
    return parser.parse_args()


def _measure(
    make: Callable[[Path], BrokerServer], place: Path, kinds: Mapping[str, Drained], options: argparse.Namespace
) -> str:
    (place / "broker").mkdir()
    content = write_content(place / "message.json")
    server = make(place / "broker")
    try:
        server.start()
        with override(TASKS=server.tasks(), EMAIL={"default_sender": SENDER}):
            enqueued = asyncio.run(_enqueueing(Content.read(str(content)), options.messages))
            _empty(server)
            rates: dict[tuple[str, int], list[float]] = {}
            for number in range(options.rounds):
                for processes in _PROCESSES:
                    for kind, drained in kinds.items():
                        project = place / f"{type(drained).__name__}_{processes}_{number}"
                        measured = rate(
                            drained, project, server.tasks(), content, processes=processes, count=options.messages
                        )
                        rates.setdefault((kind, processes), []).append(measured)
                        _say(f"{kind}, {processes}x{THREADS}: {measured:.0f}/s, load {os.getloadavg()[0]:.1f}")
            close_queue()
    finally:
        server.close()
    return f"{enqueued}\n\n{_drain_table(rates, list(kinds))}"


def _empty(server: BrokerServer) -> None:
    close_queue()
    if isinstance(server, RedisServer):
        with server.client() as client:
            client.flushall()
    elif isinstance(server, RabbitmqServer):
        server.restore()


async def _enqueueing(content: Content, count: int) -> str:
    await enqueue(content, 1, at_once=1)
    rows = []
    for name, at_once in (("one after another", 1), ("50 at a time", 50)):
        seconds, stall = await _watched(partial(enqueue, content, count, at_once=at_once))
        rows.append([name, f"{count / seconds:,.0f}/s", f"{stall * 1000:.1f}"])
    # 34 MB in base64, below the limit of a message.
    large = AttachmentData("large.bin", bytes(range(256)) * (25 * 4096))
    data = EmailMessageData(["customer@example.com"], "Order", text="", attachments=[large])
    seconds, stall = await _watched(partial(enqueue_email_job, data))
    rows.append(["one message with 25 MB attached", f"{seconds:.2f} s", f"{stall * 1000:.1f}"])
    return markdown(["enqueueing", "measured", "longest stall of the loop, ms"], rows)


async def _watched(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Run ``work``; return its seconds, and the longest time for which it blocked the event loop."""
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


def _drain_table(rates: Mapping[tuple[str, int], list[float]], kinds: list[str]) -> str:
    median = {key: statistics.median(measured) for key, measured in rates.items()}
    head = ["draining, messages/s", *(f"{processes} x {THREADS}, spread" for processes in _PROCESSES)]
    rows = [[kind, *(_spread(rates[kind, processes]) for processes in _PROCESSES)] for kind in kinds]
    for other in kinds:
        if other != "mail":
            ratios = [median["mail", processes] / median[other, processes] for processes in _PROCESSES]
            rows.append([f"mail, times {other}", *(f"{ratio:.2f}" for ratio in ratios)])
    return markdown(head, rows)


def _spread(measured: list[float]) -> str:
    return f"{statistics.median(measured):,.0f}, {min(measured):,.0f} to {max(measured):,.0f}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
