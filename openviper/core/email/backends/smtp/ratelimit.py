"""``EMAIL["rate_limit"]``: a token bucket that every event loop and thread of the process shares."""

import asyncio
import threading
import time

from openviper.core.email.settings.units import Rate

__all__ = ["RateLimiter", "shared_limiter"]


class RateLimiter:
    """Lets one transaction through for each token; a second's worth of tokens (at least one) may be saved up."""

    def __init__(self, rate: Rate) -> None:
        self._interval = rate.interval
        self._burst = max(1.0, rate.count / rate.period) * rate.interval
        self._lock = threading.Lock()
        self._next = 0.0  # when the next token is due, were none ever saved up

    async def wait(self) -> None:
        """Return when it is this caller's turn: first come, first served. A cancelled wait has used its turn up."""
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now - self._burst + self._interval)
            due = self._next
            self._next += self._interval
        if due > now:
            await asyncio.sleep(due - now)


_limiters: dict[tuple[str, int, str | None, Rate], RateLimiter] = {}
_limiters_lock = threading.Lock()


def shared_limiter(host: str, port: int, username: str | None, rate: Rate | None) -> RateLimiter | None:
    """The process's limiter for an account on a server; None without a limit."""
    if rate is None:
        return None
    with _limiters_lock:
        return _limiters.setdefault((host, port, username, rate), RateLimiter(rate))
