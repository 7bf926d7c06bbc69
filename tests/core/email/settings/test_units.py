from datetime import timedelta

import pytest

from openviper.core.email.settings.units import Rate, byte_count, seconds


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (10, 10.0),
        (0.5, 0.5),
        (timedelta(days=7), 604800.0),
        (timedelta(milliseconds=1500), 1.5),
        ("90 s", 90.0),
        ("1.5 minutes", 90.0),
        ("10min", 600.0),
        ("24h", 86400.0),
        ("24 Hours", 86400.0),
        ("7 days", 604800.0),
        ("2 weeks", 1209600.0),
    ],
)
def test_durations_are_seconds(value: object, expected: float) -> None:
    result = seconds(value)
    assert result == expected
    assert type(result) is float


@pytest.mark.parametrize(
    "value",
    [None, True, "", "10", "seconds", "10 parsecs", "-5 s", "1 day 2 h", "1e3 s", "s" * 100_000, "٣ days", b"1 s"],
)
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not"):
        seconds(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        ("10 bytes", 10),
        ("64 kB", 65536),
        ("25 MB", 26_214_400),
        ("25mib", 26_214_400),
        ("1.5 GB", 1_610_612_736),
    ],
)
def test_sizes_are_bytes(value: object, expected: int) -> None:
    result = byte_count(value)
    assert result == expected
    assert type(result) is int


@pytest.mark.parametrize("value", [None, False, 1.5, "", "25", "25 Mbit", "0.3 bytes", "MB", "-1 MB"])
def test_what_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not"):
        byte_count(value)


@pytest.mark.parametrize(
    ("text", "count", "period"),
    [("14/second", 14, 1.0), ("500/minute", 500, 60.0), (" 10 / s ", 10, 1.0), ("2000 per hour", 2000, 3600.0)],
)
@pytest.mark.parametrize("shared", ["", " shared", "  Shared "])
def test_a_rate_is_a_count_in_a_period(text: str, count: int, period: float, shared: str) -> None:
    rate = Rate.parse(text + shared)
    assert rate == Rate(count, period, shared != "")
    assert rate.interval == pytest.approx(period / count)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "14",
        "14/second alone",
        "14/secondshared",
        "shared",
        "0/second",
        "-1/second",
        "14/fortnight",
        "1.5/second",
        "14//s",
        "/second",
    ],
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        Rate.parse(text)


@pytest.mark.parametrize("text", ["14/second", "500/minute", "2000/hour", "50000/day", "14/second shared"])
def test_a_rate_is_shown_as_it_is_written(text: str) -> None:
    assert str(Rate.parse(text)) == text


def test_a_rate_with_an_odd_period_is_shown_too() -> None:
    assert str(Rate(3, 2.5)) == "3 in 2.5 s"
