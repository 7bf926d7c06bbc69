"""Run the long kill run of the database outbox: ``python benchmarks/outbox_chaos.py [sqlite|postgresql]``.

``--broker redis`` and ``--broker rabbitmq`` have the relays feed that broker. It kills a web process and a relay, or a
worker, in turn at random moments, while requests insert, roll back and nest. Instead of that, ``--crashes`` stops
PostgreSQL at once and starts it again, ``--stop`` stops one of two relays for that many leases and has it go on, and
``--jump`` moves the clock that all processes share. ``--apart`` has the clocks of the web processes and of all others
differ.

It prints what was lost, sent of rolled back orders, or sent twice, and for each of these the window of
``docs/outbox.md`` that it met. It exits with 1 if anything was lost or sent of a rolled back order, or if a duplicate
met none.
"""

# ruff: noqa: E402 - this checkout and its test servers come first on the path

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parents[1])]

from support.outbox_chaos import OutboxRun
from support.outbox_report import OutboxReport
from support.postgres import PostgresServer, running_server
from support.rabbitmq import RabbitmqServer
from support.redis import RedisServer
from support.server_clock import ServerClock

from openviper import conf, db
from openviper.db.outbox.rows import LEASE

_AROUND = 5.0  # seconds of orders before and after what happens once


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("database", choices=["sqlite", "postgresql"], nargs="?", default="sqlite")
    parser.add_argument("--broker", choices=["redis", "rabbitmq"])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--gap", type=float, default=2.0, help="seconds between two kills, or crashes, at most")
    parser.add_argument("--crashes", type=int, default=0, help="of PostgreSQL, instead of kills")
    parser.add_argument("--stop", type=float, default=0.0, metavar="LEASES", help="of one of two relays, instead")
    parser.add_argument("--jump", type=float, default=0.0, metavar="SECONDS", help="of everyone's clock, instead")
    parser.add_argument("--apart", type=float, default=0.0, metavar="SECONDS", help="between the processes' clocks")
    parser.add_argument(
        "--faketime", type=Path, metavar="LIBRARY", help="libfaketime.so.1 for --apart, instead of ours"
    )
    parser.add_argument("--spares", type=int, default=1, help="processes of each kind that are started ahead of a kill")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="openviper-outbox-")))
        server = exits.enter_context(running_server()) if given.database == "postgresql" else None
        url = f"sqlite+aiosqlite:///{folder / 'chaos.sqlite3'}" if server is None else server.url
        exits.enter_context(conf.override(DATABASE_URL=url))
        broker = exits.enter_context(_broker(given.broker, folder))
        report = asyncio.run(_run(folder, server, broker, given))
    print(" ".join(["outbox_chaos.py", *sys.argv[1:]]), f"(seed {given.seed})")
    print(report)
    return 1 if report.lost or report.phantoms or report.unexplained else 0


async def _run(
    folder: Path,
    server: PostgresServer | None,
    broker: RedisServer | RabbitmqServer | None,
    given: argparse.Namespace,
) -> OutboxReport:
    (project := folder / "project").mkdir()
    clock = ServerClock(folder) if given.jump else None
    environments = _environments(folder, given) if clock is None else (clock.environment, clock.environment)
    try:
        async with OutboxRun(project, broker=broker, seed=given.seed, environments=environments) as run:
            if given.crashes:
                assert server is not None, "only PostgreSQL is a server"
                await run.crash(server, given.crashes, gap=given.gap, pause=1.0)
            elif given.stop:
                if broker is not None:
                    await run.start_worker()
                    await run.start_relay()
                relay = await run.start_relay()
                await run.stop(relay)
                await asyncio.sleep(_AROUND)
                await run.rest(given.stop * LEASE)
                await run.resume(relay)
                await asyncio.sleep(_AROUND)
            elif clock is not None:
                await asyncio.sleep(_AROUND)
                await run.jump(clock, given.jump)
                await asyncio.sleep(_AROUND)
            else:
                await run.kill_in_turn(given.kills, gap=given.gap, spares=given.spares)
            return await run.report(patient=True)
    finally:
        await db.dispose()


def _environments(folder: Path, given: argparse.Namespace) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return what the web processes, and all others, need for clocks that are ``--apart``."""
    half = given.apart / 2
    if not half:
        return {}, {}
    if given.faketime:
        # Without DONT_FAKE_MONOTONIC a wait with a time-out hangs.
        fake = {"LD_PRELOAD": str(given.faketime.resolve()), "DONT_FAKE_MONOTONIC": "1"}
        return {**fake, "FAKETIME": f"+{half}"}, {**fake, "FAKETIME": f"-{half}"}
    (folder / "ahead").mkdir()
    (folder / "behind").mkdir()
    ahead, behind = ServerClock(folder / "ahead"), ServerClock(folder / "behind")
    assert ahead.movable, "it needs a C compiler"
    ahead.shift(half)
    behind.shift(-half)
    return ahead.environment, behind.environment


@contextmanager
def _broker(name: str | None, folder: Path) -> Iterator[RedisServer | RabbitmqServer | None]:
    if name is None:
        yield None
        return
    (folder / "broker").mkdir()
    server = RedisServer(folder / "broker") if name == "redis" else RabbitmqServer(folder / "broker")
    try:
        server.start()
        yield server
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main())
