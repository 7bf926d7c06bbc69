"""How long to leave a server alone that refuses connections."""

import random

__all__ = ["Backoff"]

_FIRST = 0.1
_LONGEST = 10.0


class Backoff:
    """Doubles from 0.1 s to 10 s, each with jitter, so that many processes do not come back at one moment."""

    def __init__(self) -> None:
        self._failures = 0

    @property
    def active(self) -> bool:
        """True from the first failure to the next success."""
        return self._failures > 0

    def failed(self) -> float:
        """Note a failure; returns the seconds to wait before the next attempt."""
        delay = min(_LONGEST, _FIRST * 2.0 ** min(self._failures, 10))
        self._failures += 1
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret hangs on it

    def succeeded(self) -> None:
        """Note that a connection was opened."""
        self._failures = 0
