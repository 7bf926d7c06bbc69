"""The detector asks in the background, remembers, and tells each change once."""

import logging
import threading
import time
from collections.abc import Callable

import pytest
from support.patience import PATIENCE

from openviper.core.email import QueueUnavailable
from openviper.core.email.queue.detection import Detector


class Broker:
    """A probe that answers as it is told, and counts."""

    def __init__(self) -> None:
        self.up = True
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()

    def probe(self) -> None:
        self.asked += 1
        self.answers.wait(PATIENCE)
        if not self.up:
            raise QueueUnavailable("connection refused")


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_first_question_asks_and_the_next_ones_do_not() -> None:
    broker = Broker()
    detector = Detector(broker.probe, "redis at test")
    assert not detector.known
    assert all(detector.available() for _ in range(1000))
    assert broker.asked == 1


def test_a_silent_broker_costs_a_second_once() -> None:
    """Not the time that the question takes, which ends with the test."""
    broker = Broker()
    broker.answers.clear()
    detector = Detector(broker.probe, "redis at test")
    begin = time.monotonic()
    assert not detector.available()
    assert time.monotonic() - begin > 0.5
    begin = time.monotonic()
    assert not any(detector.available() for _ in range(100))
    assert time.monotonic() - begin < 50, "each waits again"
    assert broker.asked == 1
    broker.answers.set()


def test_queueing_resumes_by_itself_and_each_change_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody needs to ask for it."""
    caplog.set_level(logging.INFO, "openviper.email")
    broker = Broker()
    detector = Detector(broker.probe, "redis that comes back")
    assert detector.available()
    broker.up = False
    for _ in range(20):
        detector.failed("connection reset")
        assert not detector.available()
    eventually(lambda: broker.asked > 1)
    broker.up = True

    def told() -> list[str]:
        # Those of other tests may still find their brokers.
        return [line for record in caplog.records if "redis that comes back" in (line := record.getMessage())]

    eventually(lambda: detector.available() and len(told()) > 1)
    down, up = told()
    assert "not queued" in down
    assert "connection reset" in down
    assert "queued again" in up


def test_an_error_that_nobody_expected_is_no_answer() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    assert not Detector(broken, "redis at test").available()


def test_a_broker_that_fails_again_at_once_is_asked_less_and_less() -> None:
    """One that is nearly full takes a probe and refuses a message; each change of mind is a line in the log."""
    broker = Broker()
    detector = Detector(broker.probe, "redis that is nearly full")
    assert detector.available()
    begin = time.monotonic()
    for _ in range(4):
        detector.failed("out of memory")
        eventually(detector.available)
    # Halves of 0.5, 1, 2 and 4 seconds at least: jitter makes pauses shorter by no more.
    assert time.monotonic() - begin > 3.7
