"""The record of what is held, without any database."""

import asyncio
import logging
import threading
from functools import partial

import pytest

from openviper.db.transaction import HeldSend, Record, current_record, entered, hold, outside


def nothing() -> None:
    pass


def test_outside_a_transaction_nothing_is_held() -> None:
    calls: list[str] = []
    assert hold(lambda: calls.append("commit")) is False
    assert calls == []


def test_a_commit_gives_back_what_was_held_in_order() -> None:
    calls: list[int] = []
    record = Record()
    with entered(record):
        for number in range(3):
            assert hold(partial(calls.append, number)) is True
    for held in record.commit():
        held.on_commit()
    assert calls == [0, 1, 2]


def test_a_discard_calls_every_on_rollback_also_after_a_failing_one(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def fail() -> None:
        raise OSError("disk full")

    record = Record()
    with entered(record):
        hold(nothing, lambda: calls.append("first"))
        hold(nothing, fail)
        hold(nothing)
        hold(nothing, lambda: calls.append("last"))
    with caplog.at_level(logging.ERROR, logger="openviper.db"):
        record.discard()
    assert calls == ["first", "last"]
    assert "disk full" in caplog.text


def test_a_record_ends_only_once() -> None:
    calls: list[str] = []
    record = Record()
    record.hold(HeldSend(nothing, lambda: calls.append("rollback")))
    assert len(record.commit()) == 1
    record.discard()
    assert record.commit() == []
    assert calls == []


def test_an_ended_record_holds_nothing_more() -> None:
    record = Record()
    with entered(record):
        record.commit()
        assert hold(nothing) is False


def test_a_released_savepoint_waits_for_its_parent() -> None:
    root = Record()
    root.hold(HeldSend(nothing))
    savepoint = Record(root)
    with entered(root):
        hold(nothing)
        savepoint.release()
        hold(nothing)
    assert len(root.commit()) == 3


def test_a_discarded_savepoint_drops_only_its_own() -> None:
    calls: list[str] = []
    root = Record()
    with entered(root):
        hold(nothing, lambda: calls.append("before"))
        savepoint = Record(root)
        hold(nothing, lambda: calls.append("inside"))
        savepoint.discard()
        hold(nothing, lambda: calls.append("after"))
    assert calls == ["inside"]
    assert len(root.commit()) == 2


def test_a_claimed_savepoint_is_only_for_those_in_its_context() -> None:
    """A task that was started before the savepoint is not undone with it."""
    root = Record()
    with entered(root):
        savepoint = Record(root)
        savepoint.claim()
        hold(nothing)
        with entered(savepoint):
            hold(nothing)
    savepoint.discard()
    assert len(root.commit()) == 1


def test_in_an_ended_savepoint_the_open_transaction_around_holds() -> None:
    root = Record()
    savepoint = Record(root)
    with entered(savepoint):
        savepoint.discard()
        assert current_record() is root
        assert hold(nothing) is True


def test_in_an_ended_inner_transaction_the_open_outer_one_holds() -> None:
    outer = Record()
    with entered(outer):
        inner = Record()
        with entered(inner):
            inner.commit()
            assert current_record() is outer


def test_outside_sees_no_transaction() -> None:
    with entered(Record()):
        assert current_record() is not None
        assert outside().run(current_record) is None


async def test_a_child_task_holds_while_the_transaction_is_open() -> None:
    record = Record()

    async def child() -> bool:
        return hold(nothing)

    with entered(record):
        assert await asyncio.create_task(child()) is True
    assert len(record.commit()) == 1


async def test_two_tasks_do_not_see_each_other() -> None:
    both_inside = asyncio.Barrier(2)

    async def one() -> int:
        record = Record()
        with entered(record):
            await both_inside.wait()
            hold(nothing)
            await both_inside.wait()
        return len(record.commit())

    assert [*await asyncio.gather(one(), one())] == [1, 1]


def test_threads_lose_nothing_while_the_record_ends() -> None:
    """Every hold() either says False or is given back by the commit."""
    record = Record()
    accepted: list[bool] = []
    start = threading.Barrier(5)

    def work() -> None:
        start.wait()
        accepted.extend(record.hold(HeldSend(nothing)) for _ in range(500))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    given_back = record.commit()
    for thread in threads:
        thread.join()
    assert len(given_back) == sum(accepted)
    assert len(accepted) == 2000
