"""When a message may leave."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from openviper.core.email import InvalidMessage
from openviper.core.email.delivery.schedule import Schedule


def make(**given: Any) -> Schedule:
    return Schedule.make(**{"send_at": None, "delay": None, "expires_at": None, **given})


def test_nothing_given_is_no_limit() -> None:
    assert make() == Schedule()
    assert not make().later


@pytest.mark.parametrize("delay", [60, 60.0, timedelta(minutes=1)])
def test_a_delay_counts_from_now(delay: Any) -> None:
    schedule = make(delay=delay)
    assert schedule.due_at == pytest.approx(time.time() + 60, abs=5)
    assert schedule.later


def test_a_moment_in_the_past_is_now() -> None:
    assert not make(send_at=datetime(2020, 1, 1, tzinfo=UTC)).later
    assert not make(delay=0).later


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"send_at": datetime(2030, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"expires_at": datetime(2030, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"send_at": "tomorrow"}, "time zone"),
        ({"delay": -1}, "not negative"),
        ({"delay": float("nan")}, "not negative"),
        ({"delay": True}, "not negative"),
        ({"delay": timedelta(seconds=-1)}, "not negative"),
        ({"delay": timedelta(days=400)}, "over a year"),
        ({"delay": 1, "send_at": datetime.now(UTC)}, "excludes send_at"),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "passed before the message"),
        ({"delay": 120, "expires_at": datetime.now(UTC) + timedelta(seconds=60)}, "passed before the message"),
    ],
)
def test_what_cannot_be_kept_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidMessage, match=words):
        make(**given)
