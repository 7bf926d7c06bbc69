"""Drain a full queue: with this component's worker, with openviper 0.1.1's, and with tasks that do nothing.

Mail is sent over SMTP to the server of ``benchmarks/sending``, which checks each message at the end. Each finished job
adds one byte to a file ``done-...`` in the project folder.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dramatiq
from content import SENDER, Content
from support.workers import Worker, write_project
from wire import Scenario, Sink

from openviper.core.email import EmailMessageData
from openviper.core.email.queue import enqueue_email_job
from openviper.tasks import get_broker

__all__ = ["THREADS", "Drained", "Mail", "Mail011", "Noop", "enqueue", "rate"]

THREADS = 8
_PATIENCE = 120.0  # seconds for one drain
_NOT_COUNTED = 0.2  # of the messages: while the processes start


class Drained(ABC):
    """The kind of jobs in the queue, and the worker that drains it."""

    reaches_the_sink = True

    @abstractmethod
    def prepare(self, folder: Path, tasks: Mapping[str, Any], port: int) -> None:
        """Write a project that delivers to ``port``."""

    @abstractmethod
    def fill(self, folder: Path, content: Path, count: int) -> None:
        """Queue messages 1 to ``count``."""

    @abstractmethod
    def working(self, folder: Path, processes: int) -> Any:
        """Return a context in which the worker runs."""


class Noop(Drained):
    """An async Dramatiq actor that only counts itself as done."""

    reaches_the_sink = False

    def prepare(self, folder: Path, tasks: Mapping[str, Any], port: int) -> None:  # noqa: ARG002
        write_project(folder, tasks=tasks, email={})
        (folder / "tasks.py").write_text(
            "import os\n"
            "from openviper.tasks import actor\n"
            'done = open(f"done-{os.getpid()}", "ab", buffering=0)\n'
            '@actor(queue_name="noop")\n'
            "async def noop(number):\n"
            '    done.write(b"x")\n'
        )

    def fill(self, folder: Path, content: Path, count: int) -> None:  # noqa: ARG002
        for number in range(1, count + 1):
            get_broker().enqueue(dramatiq.Message("noop", "noop", (number,), {}, {}))

    def working(self, folder: Path, processes: int) -> Worker:
        return Worker(folder, "--queues", "noop", processes=processes, threads=THREADS)


class Mail(Drained):
    """Mail of this component."""

    def prepare(self, folder: Path, tasks: Mapping[str, Any], port: int) -> None:
        write_project(folder, tasks=tasks, email={"host": "127.0.0.1", "port": port, "default_sender": SENDER})

    def fill(self, folder: Path, content: Path, count: int) -> None:  # noqa: ARG002
        asyncio.run(enqueue(Content.read(str(content)), count, at_once=50))

    def working(self, folder: Path, processes: int) -> Worker:
        return Worker(folder, "--queues", "emails", processes=processes, threads=THREADS)


class Mail011(Drained):
    """Mail of openviper 0.1.1. Its worker ignores ``--processes``, so one worker runs for each process."""

    def __init__(self, python: str) -> None:
        self._python = Path(python)

    def prepare(self, folder: Path, tasks: Mapping[str, Any], port: int) -> None:
        # In another Redis database, because both use the same queue name.
        url = str(tasks["broker_url"])
        url = f"{url.removesuffix('/0')}/1" if tasks["broker"] == "redis" else url
        email = {"host": "127.0.0.1", "port": port, "default_sender": SENDER, "use_tls": False}
        (folder / "routes.py").write_text("route_paths = []\n")
        (folder / "settings.py").write_text(
            "from dataclasses import dataclass, field\n"
            "from openviper.conf.settings import Settings\n"
            "@dataclass(frozen=True)\n"
            "class Benchmark(Settings):\n"
            f'    SECRET_KEY: str = "{"x" * 50}"\n'
            '    DATABASE_URL: str = "sqlite+aiosqlite:///none.sqlite3"\n'
            "    INSTALLED_APPS: tuple = ()\n"
            f"    TASKS: dict = field(default_factory=lambda: {dict(tasks, enabled=1, broker_url=url)!r})\n"
            f"    EMAIL: dict = field(default_factory=lambda: {email!r})\n"
        )

    def fill(self, folder: Path, content: Path, count: int) -> None:
        program = Path(__file__).with_name("enqueue_0_1_1.py")
        environment = {**os.environ, "OPENVIPER_SETTINGS_MODULE": "settings", "PYTHONPATH": str(folder)}
        subprocess.run([self._python, program, content, str(count)], cwd=folder, env=environment, check=True)

    @contextmanager
    def working(self, folder: Path, processes: int) -> Iterator[None]:
        command = [self._python.with_name("openviper"), "viperctl", "start-worker", ".", "--no-scheduler"]
        command += ["--queues", "emails", "--threads", str(THREADS)]
        with (folder / "worker.log").open("ab") as log:
            workers = [
                subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
                for _ in range(processes)
            ]
        try:
            yield
        finally:
            for worker in workers:  # it does not end by itself after SIGTERM
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait(10)


def rate(
    drained: Drained, folder: Path, tasks: Mapping[str, Any], content: Path, *, processes: int, count: int
) -> float:
    """Measure messages per second, from a fifth of ``count`` to all of them.

    Raises:
        SystemExit: mail was lost, duplicated or changed.
    """
    folder.mkdir()
    with Sink(sys.executable, Scenario("drain", ""), content, progress=folder / "done-sink") as sink:
        drained.prepare(folder, tasks, sink.port)
        drained.fill(folder, content, count)
        with drained.working(folder, processes):
            measured = _measured(folder, count)
        report = sink.report()
    if drained.reaches_the_sink and (report["faults"] or report["messages"] != count):
        raise SystemExit(f"{type(drained).__name__}: {report}")
    return measured


def _measured(folder: Path, count: int) -> float:
    deadline = time.monotonic() + _PATIENCE
    first: tuple[float, int] | None = None
    while (done := sum(file.stat().st_size for file in folder.glob("done-*"))) < count:
        if first is None and done >= count * _NOT_COUNTED:
            first = time.perf_counter(), done
        if time.monotonic() > deadline:
            raise SystemExit(f"{done} of {count} were done in {_PATIENCE:.0f} s")
        time.sleep(0.005)
    if first is None:
        raise SystemExit("the drain was too fast to measure: increase --messages")
    return (done - first[1]) / (time.perf_counter() - first[0])


async def enqueue(content: Content, count: int, *, at_once: int) -> None:
    """Queue messages 1 to ``count``, ``at_once`` of them at a time."""
    numbers = iter(range(1, count + 1))

    async def enqueue_next() -> None:
        for number in numbers:
            subject, text, html = content.filled(number)
            await enqueue_email_job(EmailMessageData(["customer@example.com"], subject, text=text, html=html))

    await asyncio.gather(*(enqueue_next() for _ in range(at_once)))
