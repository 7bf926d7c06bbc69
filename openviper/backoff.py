"""Exponential back-off: how long to wait before an attempt is repeated."""

import random

__all__ = ["Backoff", "exponential", "jittered"]

_LARGEST_POWER = 64.0  # a larger one could overflow a float

# Without a state: that of the module ``random`` belongs to the application, which may have seeded it, and to its tests.
_random = random.SystemRandom()


def exponential(attempt: int, *, first: float, longest: float, factor: float = 2.0) -> float:
    """Return the seconds to wait after failed attempt number ``attempt``, counted from 1.

    ``first`` seconds after the first, ``factor`` times as long after each further one, ``longest`` at most.
    """
    wait: float = first * factor ** min(attempt - 1, _LARGEST_POWER)
    return min(longest, wait)


def jittered(seconds: float) -> float:
    """Return a random delay from half of ``seconds`` to all of them, so that many clients do not retry together."""
    return seconds * _random.uniform(0.5, 1.0)


class Backoff:
    """Counts failures in a row and returns a longer, jittered delay for each, from ``first`` to ``longest`` seconds."""

    def __init__(self, *, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0

    @property
    def active(self) -> bool:
        """True from the first failure to the next success."""
        return self._failures > 0

    def failed(self) -> float:
        """Count a failure and return the seconds to wait before the next attempt."""
        self._failures += 1
        return jittered(exponential(self._failures, first=self._first, longest=self._longest))

    def succeeded(self) -> None:
        """Start again from the shortest delay."""
        self._failures = 0
