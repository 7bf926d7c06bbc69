"""SIGKILL of web processes and relays at random moments loses nothing that a commit or a response has promised."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.outbox_chaos import OutboxRun
from support.outbox_report import OutboxReport
from support.postgres import running_server
from support.server_clock import ServerClock

from openviper import conf, db


@pytest.fixture
def environments(tmp_path: Path, database_url: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """On PostgreSQL, whose clock is the only one that counts, the clocks of the processes are ten minutes apart."""
    if database_url.startswith("sqlite"):
        return {}, {}
    (tmp_path / "ahead").mkdir()
    (tmp_path / "behind").mkdir()
    ahead, behind = ServerClock(tmp_path / "ahead"), ServerClock(tmp_path / "behind")
    ahead.shift(300)
    behind.shift(-300)
    return ahead.environment, behind.environment


@pytest.mark.usefixtures("database")
async def test_kills_lose_nothing_and_send_nothing_of_rolled_back_orders(
    tmp_path: Path, environments: tuple[Mapping[str, str], Mapping[str, str]]
) -> None:
    async with OutboxRun(tmp_path, environments=environments) as run:
        await run.kill_in_turn(2, gap=1.0)
        report = await run.report(patient=False)
    assert report.rolled_back, report
    _assert_as_promised(report)


async def test_crashes_of_postgresql_lose_nothing(tmp_path: Path) -> None:
    with running_server() as server, conf.override(DATABASE_URL=server.url):
        async with OutboxRun(tmp_path) as run:
            await run.crash(server, 1, gap=1.0, pause=0.0)
            await asyncio.sleep(0.5)
            report = await run.report(patient=False)
        await db.dispose()
    assert report.crashes, report
    _assert_as_promised(report)


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_relay_that_is_stopped_beyond_its_leases_and_continues_loses_nothing(tmp_path: Path) -> None:
    async with OutboxRun(tmp_path, customers=3) as run:
        relay = await run.start_relay()
        await run.stop(relay)
        await run.end_leases_of(relay)
        await run.resume(relay)
        report = await run.report(patient=False)
    assert report.repeated, report
    _assert_as_promised(report)


def _assert_as_promised(report: OutboxReport) -> None:
    assert report.orders, report
    assert not report.lost, report
    assert not report.phantoms, report
    assert not report.unexplained, report
