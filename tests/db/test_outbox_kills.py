"""SIGKILL of web processes and relays at random moments loses nothing that a commit or a response has promised."""

from pathlib import Path

import pytest
from support.outbox_chaos import run_outbox_chaos

pytestmark = pytest.mark.usefixtures("database")


async def test_kills_lose_nothing_and_send_nothing_of_rolled_back_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENVIPER_SETTINGS_MODULE", "settings")
    report = await run_outbox_chaos(tmp_path, kills=3, gap=1.0, tasks={}, patient=False)
    assert report.orders, report
    assert report.rolled_back, report
    assert not report.lost, report
    assert not report.phantoms, report
    assert report.duplicates == report.explained, report
