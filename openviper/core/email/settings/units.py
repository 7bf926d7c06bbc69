"""Parse durations, sizes and rates of settings."""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

__all__ = ["Rate", "byte_count", "seconds"]

_QUANTITY = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]{1,7})\s*", re.ASCII)
_RATE = re.compile(r"\s*(\d{1,9})\s*(?:/|per)\s*([A-Za-z]{1,7})(\s+shared)?\s*", re.ASCII | re.IGNORECASE)

_SECONDS = {"s": 1, "second": 1, "m": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}
_DURATION_UNITS = _SECONDS | {"sec": 1, "min": 60, "w": 604800, "week": 604800}
_BYTES = {"b": 1, "byte": 1, "kb": 1024, "mb": 1024**2, "gb": 1024**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}


def seconds(value: object) -> float:
    """Return seconds from a number, a ``timedelta``, or a number with its unit: ``"90 s"``, ``"24h"``, ``"7 days"``.

    A string without a unit is refused, since it does not show whether it means seconds.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return _quantity(value, _DURATION_UNITS)


def byte_count(value: object) -> int:
    """Return bytes from an int, or a number with its unit: ``"25 MB"``. kB, MB, GB are powers of 1024 as kiB, MiB, GiB.

    Raises:
        ValueError: it is neither, or not a whole number of bytes.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    count = _quantity(value, _BYTES)
    if not count.is_integer():
        raise ValueError("is not a whole number of bytes")
    return int(count)


def _quantity(value: object, units: dict[str, int]) -> float:
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    unit = None if match is None else _unit(match[2], units)
    if match is None or unit is None:
        raise ValueError("is not a number with a known unit")
    return float(match[1]) * unit


def _unit(name: str, units: dict[str, int]) -> int | None:
    lowered = name.lower()
    return units.get(lowered) or (units.get(lowered[:-1]) if len(lowered) > 3 and lowered.endswith("s") else None)


@dataclass(frozen=True, slots=True)
class Rate:
    """Limit of ``count`` in ``period`` seconds; ``shared``: of all processes together."""

    count: int
    period: float
    shared: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"14/second"``, ``"500/minute"``, ``"10/s"``, ``"2000 per hour"``, ``"14/second shared"``.

        Raises:
            ValueError: it has another form, or the count is zero.
        """
        match = _RATE.fullmatch(text)
        period = None if match is None else _unit(match[2], _SECONDS)
        if match is None or period is None or int(match[1]) == 0:
            raise ValueError("is not a rate")
        return cls(int(match[1]), float(period), match[3] is not None)

    @property
    def interval(self) -> float:
        """Return the seconds between two of them, if they are spread evenly."""
        return self.period / self.count

    def __str__(self) -> str:
        unit = next((name for name, length in _SECONDS.items() if len(name) > 1 and length == self.period), None)
        return f"{self.count}{f'/{unit}' if unit else f' in {self.period:g} s'}{' shared' if self.shared else ''}"
