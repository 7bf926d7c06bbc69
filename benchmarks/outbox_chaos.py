"""Run the long kill run of the database outbox: ``python benchmarks/outbox_chaos.py [sqlite|postgresql]``.

``--broker redis`` and ``--broker rabbitmq`` have the relays feed that broker. It kills a web process and a relay, or a
worker, in turn at random moments, while requests insert, roll back and nest. It prints what was lost, sent of rolled
back orders, or sent twice, and exits with 1 if anything was lost or sent of a rolled back order, or if a duplicate
came from no process that was killed with its row in hand.
"""

# ruff: noqa: E402 - this checkout and its test servers come first on the path

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parents[1])]

from support.outbox_chaos import OutboxReport, run_outbox_chaos
from support.postgres import running_postgres
from support.rabbitmq import RabbitmqServer
from support.redis import RedisServer

from openviper import conf, db


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("database", choices=["sqlite", "postgresql"], nargs="?", default="sqlite")
    parser.add_argument("--broker", choices=["redis", "rabbitmq"])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--gap", type=float, default=2.0, help="seconds between two kills, at most")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="openviper-outbox-") as folder,
        _database(given.database, Path(folder)) as url,
        _broker(given.broker, Path(folder)) as tasks,
    ):
        report = asyncio.run(_run(Path(folder), url, tasks, given))
    print(f"{given.database}, {given.broker or 'no broker'}, seed {given.seed}")
    print(report)
    return 1 if report.lost or report.phantoms or report.duplicates - report.explained else 0


async def _run(folder: Path, url: str, tasks: dict[str, Any], given: argparse.Namespace) -> OutboxReport:
    project = folder / "project"
    project.mkdir()
    with conf.override(DATABASE_URL=url):
        try:
            return await run_outbox_chaos(
                project, kills=given.kills, gap=given.gap, tasks=tasks, patient=True, seed=given.seed
            )
        finally:
            await db.dispose()


@contextmanager
def _database(name: str, folder: Path) -> Iterator[str]:
    if name == "sqlite":
        yield f"sqlite+aiosqlite:///{folder / 'chaos.sqlite3'}"
    else:
        with running_postgres() as url:
            yield url


@contextmanager
def _broker(name: str | None, folder: Path) -> Iterator[dict[str, Any]]:
    if name is None:
        yield {}
        return
    (folder / "broker").mkdir()
    server: Any = (RedisServer if name == "redis" else RabbitmqServer)(folder / "broker")
    try:
        server.start()
        yield server.tasks(heartbeat_timeout=20)
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main())
