"""One fixed seed on each broker: whatever happens to it, nothing is lost, and nothing comes twice without a reason."""

import shutil
from pathlib import Path

import pytest
from support.queue_model import BROKERS, ModelReport, run_model
from support.rabbitmq import PROGRAMS

from openviper.core.email.queue import close_queue

SEEDS = {"redis": 3, "rabbitmq": 1, "quorum": 3}
OPERATIONS = 12


def run(folder: Path, broker: str, seed: int, operations: int) -> ModelReport:
    if broker == "redis" and shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed (Debian: apt-get install redis-server)")
    if broker != "redis" and not PROGRAMS.exists():
        pytest.skip("RabbitMQ is not installed (Debian: apt-get install rabbitmq-server)")
    try:
        report = run_model(folder, broker, seed, operations)
    finally:
        close_queue()
    print(report)
    return report


@pytest.mark.parametrize("broker", BROKERS)
def test_a_short_run_keeps_every_promise(tmp_path: Path, broker: str) -> None:
    report = run(tmp_path, broker, SEEDS[broker], OPERATIONS)
    assert report.verdict.accepted > 20
    assert report.passed, report


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("broker", BROKERS)
def test_long_runs_keep_every_promise(tmp_path: Path, broker: str, seed: int) -> None:
    report = run(tmp_path, broker, seed, 60)
    assert report.verdict.accepted > 100
    assert report.passed, report
