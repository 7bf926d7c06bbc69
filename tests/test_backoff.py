"""Delays grow exponentially between their bounds, with jitter."""

import pytest

from openviper.backoff import Backoff, exponential, jittered


@pytest.mark.parametrize(
    ("attempt", "options", "seconds"),
    [
        (1, {"first": 3.0, "longest": 3600.0}, 3.0),
        (2, {"first": 3.0, "longest": 3600.0}, 6.0),
        (11, {"first": 3.0, "longest": 3600.0}, 3072.0),
        (12, {"first": 3.0, "longest": 3600.0}, 3600.0),
        (10**6, {"first": 3.0, "longest": 3600.0}, 3600.0),
        (1, {"first": 1.0, "longest": 3600.0, "factor": 5.0}, 1.0),
        (3, {"first": 1.0, "longest": 3600.0, "factor": 5.0}, 25.0),
        (1, {"first": 9.0, "longest": 5.0}, 5.0),
    ],
)
def test_each_delay_is_a_multiple_of_the_one_before(attempt: int, options: dict[str, float], seconds: float) -> None:
    assert exponential(attempt, **options) == seconds


def test_jitter_spreads_from_half_of_the_delay_to_all_of_it() -> None:
    delays = {jittered(8.0) for _ in range(500)}
    assert len(delays) > 400
    assert all(4 <= delay <= 8 for delay in delays)
    assert min(delays) < 5
    assert max(delays) > 7


def test_failures_in_a_row_double_the_delay_and_a_success_starts_again() -> None:
    backoff = Backoff(first=0.1, longest=10.0)
    assert not backoff.active
    delays = [backoff.failed() for _ in range(12)]
    assert backoff.active
    assert all(0.5 * 0.1 * 2**n <= delay <= 0.1 * 2**n for n, delay in enumerate(delays[:6]))
    assert all(5 <= delay <= 10 for delay in delays[-3:])
    backoff.succeeded()
    assert not backoff.active
    assert backoff.failed() <= 0.1
