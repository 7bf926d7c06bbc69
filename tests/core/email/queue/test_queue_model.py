"""One fixed seed on each broker and the outbox: whatever happens, nothing is lost or comes twice without a reason."""

import shutil
from pathlib import Path

import pytest
from support.postgres import postgres_programs
from support.queue_model import BROKERS, ModelReport, run_model
from support.queue_model.mailserver import Arrival
from support.queue_model.plan import Fault, PlannedMessage, make_plan
from support.queue_model.records import Life, Records, Sent, Trouble, Verdict
from support.rabbitmq import PROGRAMS

from openviper.core.email.queue import close_queue

SHORT = {"redis": (1, 12), "rabbitmq": (1, 12), "quorum": (31, 12), "sqlite": (31, 7)}  # seed, operations


def run(folder: Path, broker: str, seed: int, operations: int, *, patient: bool = True) -> ModelReport:
    if broker == "redis" and shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed (Debian: apt-get install redis-server)")
    if broker in ("rabbitmq", "quorum") and not PROGRAMS.exists():
        pytest.skip("RabbitMQ is not installed (Debian: apt-get install rabbitmq-server)")
    if broker == "postgresql" and postgres_programs() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    try:
        report = run_model(folder, broker, seed, operations, patient=patient)
    finally:
        close_queue()
    print(report)
    return report


@pytest.mark.parametrize("broker", SHORT)
def test_a_short_run_keeps_every_promise(tmp_path: Path, broker: str) -> None:
    report = run(tmp_path, broker, *SHORT[broker], patient=False)
    assert report.verdict.accepted > 15
    assert report.passed, report


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("broker", BROKERS)
def test_long_runs_keep_every_promise(tmp_path: Path, broker: str, seed: int) -> None:
    report = run(tmp_path, broker, seed, 60)
    assert report.verdict.accepted > 100
    assert report.passed, report


def message(*addresses: str, delay: float | None = None, refused: str = "") -> PlannedMessage:
    faults: dict[str, tuple[Fault, ...]] = dict.fromkeys(addresses, ())
    return PlannedMessage(1, faults, frozenset([refused] if refused else ()), (), delay, 0)


def judged(
    planned: PlannedMessage,
    arrivals: dict[str, list[Arrival]],
    *,
    redis: bool = True,
    trouble: Trouble | None = None,
    killed: Life | None = None,
    failed: dict[str, frozenset[str] | None] | None = None,
) -> Verdict:
    records = Records("redis" if redis else "rabbitmq")
    receipt = {"mode": "queued", "message_id": "<1@x>"}
    records.sent[1] = Sent(planned, "web", at=0.0, answered=1.0, answer=receipt)
    records.troubles += [trouble] if trouble else []
    records.lives |= {killed.name: killed} if killed else {}
    attempts = {1: [(arrival.sender, arrival.at) for copies in arrivals.values() for arrival in copies]}
    return records.verdict(arrivals, attempts, failed or {}, set())


def arrival(at: float, *, sender: str = "worker", cut: bool = False) -> Arrival:
    return Arrival(sender, at, "<1@x>", cut)


def test_the_model_finds_who_is_lost() -> None:
    """One of three arrived, and one is among the failed."""
    planned = message("a@x", "b@x", "c@x")
    found = judged(planned, {"a@x": [arrival(2)]}, failed={"<1@x>": frozenset({"b@x"})})
    assert (found.accepted, found.delivered, found.failed) == (3, 1, 1)
    assert found.lost == ["<1@x> c@x"]


def test_the_model_finds_what_comes_twice_without_a_reason() -> None:
    twice = {"a@x": [arrival(2), arrival(30)]}
    assert len(judged(message("a@x"), twice).duplicates) == 1
    assert len(judged(message("a@x"), twice, redis=False).duplicates) == 1
    later = Trouble("broker down", begin=100, end=110)
    assert len(judged(message("a@x"), twice, redis=False, trouble=later).duplicates) == 1
    down = Trouble("broker down", begin=3, end=5)
    assert len(judged(message("a@x"), twice, trouble=down).duplicates) == 1, "Redis remembers"


def test_the_model_knows_the_documented_windows() -> None:
    assert judged(message("a@x"), {"a@x": [arrival(2, cut=True), arrival(9)]}).in_windows == {"connection cut": 1}
    twice = {"a@x": [arrival(2), arrival(30)]}
    killed = Life("worker", killed=4, in_hand={"<1@x>"})
    assert judged(message("a@x"), twice, killed=killed).in_windows == {"worker killed": 1}
    recorded = Life("worker", killed=4, in_hand=set())
    assert len(judged(message("a@x"), twice, killed=recorded).duplicates) == 1
    down = Trouble("broker down", begin=3, end=5)
    assert judged(message("a@x"), twice, redis=False, trouble=down).in_windows == {"broker trouble": 1}


def test_the_model_finds_what_comes_before_its_time() -> None:
    scheduled = message("a@x", delay=5.0)
    assert len(judged(scheduled, {"a@x": [arrival(3)]}).early) == 1
    assert judged(scheduled, {"a@x": [arrival(6)]}).early == []
    moved = Trouble("move clock", begin=2, end=2)
    assert judged(scheduled, {"a@x": [arrival(3)]}, trouble=moved).early == []


def test_a_plan_depends_on_its_seed_alone() -> None:
    assert make_plan("redis", 7, 40) == make_plan("redis", 7, 40)
    assert make_plan("redis", 7, 40) != make_plan("redis", 8, 40)
    assert [one.name for one in make_plan("redis", 7, 40)[:20]] == [one.name for one in make_plan("redis", 7, 20)]
