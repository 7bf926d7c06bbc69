"""The stored form of a job's progress."""

import json
from dataclasses import replace
from typing import Any

import pytest

from openviper.core.email.message.storage import DamagedPayload, NewerPayload
from openviper.core.email.queue.job import Progress

FULL = Progress(1.5, 1, ("c@x.test",), {"d@x.test": "550 no"}, 9.0, True, {"b@x.test": "451 cut"})


def test_progress_survives_the_broker_and_hides_addresses() -> None:
    progress = Progress(1.5, 3, ("a@x.test",), {"b@x.test": "550 no"}, 9.0, True)
    assert Progress.from_json(progress.to_json()) == progress
    assert "x.test" not in repr(progress)


@pytest.mark.parametrize(
    "change",
    [
        {"attempts": "1"},
        {"since": "now"},
        {"left": [1]},
        {"refused": []},
        {"expires_at": "x"},
        {"expires_at": 1e300},
        {"since": float("inf")},
        {"since": float("nan")},
        {"since": 10**400},
        {"attempts": -1},
        {"attempts": 10**400},
        {"more": 1},
        {"held": {}},
        {"version": 0},
        {"version": 2},
        {"version": "2"},
        {"version": 3, "since": None},
    ],
)
def test_a_progress_that_cannot_be_counted_on_is_refused(change: dict[str, Any]) -> None:
    """Before an attempt, since what fails after one leaves the message in nobody's hands."""
    with pytest.raises(DamagedPayload):
        Progress.from_json(json.dumps(json.loads(Progress(1.5).to_json()) | change))


def test_a_worker_of_an_earlier_version_reads_what_is_held_and_never_sends_it_by_itself() -> None:
    """It knows these six fields and refuses others; whom it has among the refused gets no further attempt."""
    progress = Progress(1.5, 1, ("c@x.test",), {"d@x.test": "550 no"}, None, True, {"b@x.test": "451 cut"})
    stored = json.loads(progress.to_json())
    assert stored == {
        "since": 1.5,
        "attempts": 1,
        "left": ["c@x.test"],
        "refused": {"d@x.test": "550 no", "b@x.test": "perhaps delivered: 451 cut"},
        "expires_at": None,
        "uncertain": True,
    }
    assert Progress.from_json(json.dumps(stored)) == progress


def test_version_2_is_written_when_something_is_new_and_names_each_kind_of_recipient() -> None:
    progress = replace(FULL, extra={"trace": "1"})
    stored = json.loads(progress.to_json())
    assert stored["version"] == 2
    assert stored["held"] == {"b@x.test": "451 cut"}
    assert stored["refused"] == {"d@x.test": "550 no"}
    assert Progress.from_json(progress.to_json()) == progress
    progress.check_supported()


@pytest.mark.parametrize("change", [{"held": ["b@x.test"]}, {"extra": None}, {"must": []}, {"more": 1}, {"left": "a"}])
def test_a_damaged_version_2_is_refused(change: dict[str, Any]) -> None:
    stored = json.loads(replace(FULL, extra={"trace": "1"}).to_json())
    with pytest.raises(DamagedPayload):
        Progress.from_json(json.dumps(stored | change))


def test_what_must_be_known_is_named_and_kept() -> None:
    progress = Progress.from_json(replace(FULL, must={"zstd": True}).to_json())
    with pytest.raises(NewerPayload, match="it requires 'zstd', which"):
        progress.check_supported()
    assert progress.restart(now=3.0) == Progress(3.0, pending=("c@x.test", "d@x.test", "b@x.test"), must=progress.must)


def test_of_a_later_version_only_the_count_and_the_times_change() -> None:
    later = {"version": 3, "since": 1.5, "attempts": 2, "expires_at": None, "left": {"zstd": "4711"}, "moods": [1]}
    progress = Progress.from_json(json.dumps(later))
    assert (progress.since, progress.attempts, progress.missing) == (1.5, 2, None)
    with pytest.raises(NewerPayload, match="the version of its progress is 3"):
        progress.check_supported()
    assert json.loads(replace(progress, attempts=3).to_json()) == later | {"attempts": 3}
    restarted = json.loads(progress.restart(now=9.0).to_json())
    assert restarted == later | {"since": 9.0, "attempts": 0}
