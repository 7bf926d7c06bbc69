"""Measure how fast relays drain the database outbox, beside workers that drain Redis: ``python benchmarks/relays.py``.

Both deliver the same messages by SMTP to the server of ``sending``, with settings as they come: 1 and 2 processes,
relays with ``pool_size`` connections each, workers with 8 threads each, in turns. The ratio says what a relay reaches
of a worker.
"""

# ruff: noqa: E402 - this checkout, its test servers and the other benchmarks come first on the path

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parent / "tests"), str(_HERE.parent), str(_HERE / "sending")]

from content import SENDER, Content, write_content
from draining import Drained, Mail, rate
from support.postgres import running_postgres
from support.redis import RedisServer
from support.workers import NamedRelay, write_project
from tables import markdown

from openviper import conf, db
from openviper.core.email import EmailMessageData
from openviper.core.email.queue import close_queue
from openviper.db.outbox import add, create_outbox_tables

_PROCESSES = (1, 2)


class Relayed(Drained):
    """Mail in the outbox of the database at ``url``."""

    def __init__(self, url: str) -> None:
        self._url = url

    def prepare(self, folder: Path, tasks: Mapping[str, Any], port: int) -> None:  # noqa: ARG002
        email = {"host": "127.0.0.1", "port": port, "default_sender": SENDER, "outbox": "database"}
        write_project(folder, tasks={}, email=email, DATABASE_URL=self._url)

    def fill(self, folder: Path, content: Path, count: int) -> None:  # noqa: ARG002
        email = {"default_sender": SENDER, "outbox": "database"}
        with conf.override(DATABASE_URL=self._url, EMAIL=email):
            asyncio.run(_store(Content.read(str(content)), count))

    @contextmanager
    def working(self, folder: Path, processes: int) -> Iterator[None]:
        with ExitStack() as relays:
            for number in range(processes):
                relays.enter_context(NamedRelay(folder, f"relay-{number}.example.com"))
            yield


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=2000, help="number of messages in each drain")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="openviper-bench-") as name, running_postgres() as url:
        folder = Path(name)
        kinds = {
            "relay, SQLite": Relayed(f"sqlite+aiosqlite:///{folder}/outbox.sqlite3"),
            "relay, PostgreSQL": Relayed(url),
            "worker, Redis": Mail(),
        }
        print(_measure(kinds, folder, options))


def _measure(kinds: Mapping[str, Drained], folder: Path, options: argparse.Namespace) -> str:
    (folder / "broker").mkdir()
    content = write_content(folder / "message.json")
    server = RedisServer(folder / "broker", appendfsync="everysec")
    rates: dict[tuple[str, int], list[float]] = {}
    try:
        server.start()
        with conf.override(TASKS=server.tasks(), EMAIL={"default_sender": SENDER}):
            for turn in range(options.rounds):
                for processes in _PROCESSES:
                    for number, (kind, drained) in enumerate(kinds.items()):
                        project = folder / f"project_{number}_{processes}_{turn}"
                        found = rate(
                            drained, project, server.tasks(), content, processes=processes, count=options.messages
                        )
                        rates.setdefault((kind, processes), []).append(found)
            close_queue()
    finally:
        server.close()
    worker = {processes: statistics.median(rates["worker, Redis", processes]) for processes in _PROCESSES}
    rows = []
    for kind in kinds:
        cells = []
        for processes in _PROCESSES:
            found = rates[kind, processes]
            middle = statistics.median(found)
            spread = f"{min(found):,.0f} to {max(found):,.0f}"
            cells.append(f"{middle:,.0f}, {spread}; {middle / worker[processes]:.2f} times the worker")
        rows.append([kind, *cells])
    return markdown(["draining, messages/s", *(f"processes: {processes}" for processes in _PROCESSES)], rows)


async def _store(content: Content, count: int) -> None:
    engine = await db.engine()
    await create_outbox_tables(engine)
    async with engine.begin() as connection:
        for number in range(1, count + 1):
            subject, text, html = content.filled(number)
            data = EmailMessageData(["customer@example.com"], subject, text=text, html=html)
            await connection.run_sync(add, data)


if __name__ == "__main__":
    main()
