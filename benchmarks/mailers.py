"""Measure whether mail of the default mailer waits for bulk mail: from the send to the arrival at the mail server.

``python benchmarks/mailers.py`` starts its own brokers and mail servers. Runs beside ``--backlog`` messages of another
mailer alternate with runs in an empty system of the same kind: its own broker, and the same worker of one process with
eight threads. The worker delivers bulk mail as fast as it can meanwhile. In the dispatcher 800 bulk messages wait, for
a server that takes 20 ms for each.
"""

# ruff: noqa: E402 - this checkout, its test servers and the other benchmarks come first on the path

import argparse
import asyncio
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parent / "tests"), str(_HERE.parent), str(_HERE / "sending")]

from support.broker_server import BrokerServer
from support.rabbitmq import RabbitmqServer
from support.redis import RedisServer
from support.smtpd import SmtpServer
from support.workers import Worker, write_project
from tables import markdown, put_below

from openviper.conf import override
from openviper.core.email import send_email, send_many
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.queue import close_queue, queue_of, queue_service, worker_available
from openviper.core.email.settings import EmailSettings

_HEADING = "## Mail beside a newsletter"
_BROKERS: Mapping[str, Callable[[Path], BrokerServer]] = {"Redis": RedisServer, "RabbitMQ": RabbitmqServer}
_SENDS = 200
_WARM_UP = 20
_MARGIN = 20_000  # bulk messages above the backlog, which a run may deliver
_IN_DISPATCHER = 800
_SLOW = 0.02  # seconds that the bulk server takes in the dispatcher's runs
_BETWEEN = 0.02  # seconds between two sends
_READY = "ready"

Latencies = tuple[list[float], list[float]]
"""Seconds of each run: in the empty system, and beside the bulk mail."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", choices=[*_BROKERS, "none"], action="append", help="default: each of them")
    parser.add_argument("--backlog", type=int, default=100_000, help="bulk messages that wait in the queue")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--into", type=Path, help=f"Markdown file whose section {_HEADING!r} gets the table")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        _serve(options.serve)
        return
    began = time.strftime("%Y-%m-%d %H:%M")
    rows = []
    for name in options.broker or (*_BROKERS, "none"):
        with tempfile.TemporaryDirectory(prefix="openviper-bench-") as folder:
            if name == "none":
                rounds = asyncio.run(_dispatcher(options.rounds))
                rows.append(_row(f"the dispatcher, {_IN_DISPATCHER} bulk messages", rounds))
            else:
                rounds = _queue(Path(folder), name, options.backlog, options.rounds)
                rows.append(_row(f"{name}, {options.backlog:,} bulk messages", rounds))
        print(rows[-1], flush=True)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    head = f"{began}; {machine}; Python {platform.python_version()}; {options.rounds} rounds of {_SENDS} sends."
    names = ["beside", "median, empty, ms", "median, ms", "times", "p95, empty, ms", "p95, ms", "times"]
    page = f"{head}\n\n{markdown(names, rows)}"
    print(page)
    if options.into is not None:
        put_below(_HEADING, page, options.into)


def _row(title: str, rounds: "list[Latencies]") -> list[str]:
    """Return a table's row: the medians over the rounds, and those of the ratios of each round."""
    cells = [title]
    for percent in (50, 95):
        pairs = [tuple(statistics.quantiles(run, n=100)[percent - 1] for run in each) for each in rounds]
        cells += [f"{statistics.median(pair[at] for pair in pairs) * 1000:.1f}" for at in (0, 1)]
        cells.append(f"{statistics.median(loaded / empty for empty, loaded in pairs):.2f}")
    return cells


def _queue(folder: Path, kind: str, backlog: int, rounds: int) -> "list[Latencies]":
    with contextlib.ExitStack() as stack:
        main = stack.enter_context(SmtpServer())
        bulk = stack.enter_context(_bulk_server(0.0))
        email = {**main.settings(default_sender="shop@example.com"), "mailers": {"bulk": {"port": bulk}}}
        systems = []
        for name in ("empty", "loaded"):
            (folder / name).mkdir()
            broker = _BROKERS[kind](folder / name)
            stack.callback(broker.close)
            broker.start()
            systems.append((write_project(folder / f"{name}-project", tasks=broker.tasks(), email=email), broker))
        found: list[Latencies] = []
        for _ in range(rounds):
            runs = []
            for (project, broker), waiting in zip(systems, (0, backlog), strict=True):
                with override(TASKS=broker.tasks(), EMAIL=email):
                    worker_available()
                    asyncio.run(_fill(waiting))
                    with Worker(project, "--queues", "emails", processes=1, threads=8):
                        runs.append(asyncio.run(_send_all(main)))
                    left = _waiting()
                    close_queue()
                if waiting and left < waiting:
                    raise SystemExit(f"only {left} bulk messages waited at the end of a run")
            found.append((runs[0], runs[1]))
        return found


def _waiting() -> int:
    service = queue_service()
    assert service is not None
    return service.store.stats(queue_of("bulk")).waiting


async def _fill(backlog: int) -> None:
    """Queue bulk mail until more than ``backlog`` messages wait."""
    for _ in range(20):  # of a batch that a busy broker answers too late, nothing or all is queued
        missing = backlog + _MARGIN - await asyncio.to_thread(_waiting) if backlog else 0
        if missing <= 0:
            return
        news: Iterator[dict[str, Any]] = (
            {"recipients": f"reader{number}@example.com", "subject": "June", "text": "The news of June"}
            for number in range(missing)
        )
        with contextlib.suppress(QueueUnavailable):
            async for _receipt in send_many(news, mailer="bulk", background=True):
                pass
        await asyncio.sleep(1)
    raise SystemExit("the broker does not take the bulk mail")


async def _send_all(server: SmtpServer) -> list[float]:
    found = []
    for number in range(_WARM_UP + _SENDS):
        before = len(server.messages)
        began = time.monotonic()
        if not await send_email("user@example.com", "Reset", f"Your code is {number}"):
            raise SystemExit("a message was not accepted")
        await server.arrive(before + 1)
        found.append(server.messages[-1].at - began)
        await asyncio.sleep(_BETWEEN)
    return found[_WARM_UP:]


async def _dispatcher(rounds: int) -> "list[Latencies]":
    with SmtpServer() as main, _bulk_server(_SLOW) as bulk:
        settings = EmailSettings(
            **main.settings(default_sender="shop@example.com"), mailers={"bulk": {"host": "127.0.0.1", "port": bulk}}
        )
        mailer = Mailer(settings)
        await mailer.open()
        with using_mailer(mailer):
            found = [(await _deferred(main, 0), await _deferred(main, _IN_DISPATCHER)) for _ in range(rounds)]
        await mailer.aclose()
        return found


async def _deferred(server: SmtpServer, backlog: int) -> list[float]:
    """Send each message as a request does, after topping up the bulk mail in the dispatcher to ``backlog``."""
    waiting: set[asyncio.Future[Any]] = set()
    found = []
    for number in range(_WARM_UP + _SENDS):
        waiting = {each for each in waiting if not each.done()}
        bulk = RequestOutbox()
        with collecting(bulk):
            for _ in range(backlog - len(waiting)):
                await send_email("reader@example.com", "June", "The news of June", mailer="bulk")
        waiting |= {delivery.done for delivery in bulk.flush()}
        before = len(server.messages)
        own = RequestOutbox()
        began = time.monotonic()
        with collecting(own):
            await send_email("user@example.com", "Reset", f"Your code is {number}")
        own.flush()
        await server.arrive(before + 1)
        found.append(server.messages[-1].at - began)
        await asyncio.sleep(_BETWEEN)
    await asyncio.gather(*waiting)
    return found[_WARM_UP:]


@contextlib.contextmanager
def _bulk_server(delay: float) -> Iterator[int]:
    """Run a mail server in a process of its own, and yield its port."""
    command = [sys.executable, __file__, "--serve", str(delay)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline().removeprefix(_READY))
        finally:
            process.stdin.close()


def _serve(delay: float) -> None:
    with SmtpServer() as server:
        if delay:
            server.delay("body", delay)
        print(f"{_READY} {server.port}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
