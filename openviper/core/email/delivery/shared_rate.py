"""Share ``EMAIL["rate_limit"]`` among all processes: a bucket of tokens on the Redis of ``TASKS``."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from openviper.core.email.backends.rate_limit import SAVED
from openviper.core.email.settings import EmailSettings
from openviper.core.email.settings.units import Rate
from openviper.tasks.settings import TaskSettings

__all__ = ["SharedRate", "shared_rate", "unshared_text"]

_LIMIT = 1.0  # seconds for each answer of Redis

# ARGV: number of tokens, microseconds between two, microseconds of saved tokens, most microseconds that may be reserved
# The key holds when the next token is due, in microseconds of the server's clock. A value that cannot be right, or that
# a clock which was set back would keep for long, counts as none. The DEL comes first, so that Redis does not refuse the
# SET above maxmemory: mail that leaves should not wait for memory.
_RESERVE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local count, interval, saved, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local found = redis.pcall('GET', KEYS[1])
local due = type(found) == 'string' and tonumber(found) or 0
if not (due <= now + most) then due = now end
due = math.max(due, now - saved + interval)
local ends = due + count * interval
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], string.format('%.0f', ends), 'PX', math.ceil(math.max(ends - now + saved, 0) / 1000) + 1000)
return string.format('%.0f', due - now)
"""
_MOST_RESERVED = 60.0, 1000  # seconds, or tokens if these take longer


@dataclass(frozen=True, slots=True)
class SharedRate:
    """The tokens of one account on a mail server. ``name`` names the account without showing it."""

    tasks: TaskSettings
    name: str
    rate: Rate

    def __call__(self, count: int) -> float:
        """Reserve ``count`` tokens in a row, and return the seconds until the first is due; it blocks.

        0 reserves none, which shows whether Redis would.

        Raises:
            QueueUnavailable: Redis does not answer, or refuses it.
            MissingDependency: its client library is not installed.
        """
        from openviper.core.email.queue.redis_store import translate_errors

        interval = self.rate.interval * 1e6
        saved = max(interval, SAVED * 1e6)
        most = max(_MOST_RESERVED[0] * 1e6, _MOST_RESERVED[1] * interval)
        with translate_errors():
            reserve = _script(self.tasks)
            key = f"{self.tasks.namespace}:mail:rate:{self.name}"
            return int(reserve(keys=[key], args=[count, interval, saved, most])) / 1e6


@lru_cache(maxsize=2)
def _script(tasks: TaskSettings) -> Any:
    # Imported here: without a shared rate, mail needs no client library.
    from openviper.tasks.redis_broker import redis_client

    return redis_client(tasks, timeout=_LIMIT).register_script(_RESERVE)


def shared_rate(settings: EmailSettings) -> SharedRate | None:
    """Return what reserves tokens of a mailer's shared ``rate_limit``; None if it is not shared, or cannot be."""
    rate = settings.rate_limit
    tasks = TaskSettings.from_settings()
    if rate is None or not rate.shared or not tasks.enabled or tasks.broker != "redis":
        return None
    account = f"{settings.host}\n{settings.port}\n{settings.username or ''}\n{rate}"
    return SharedRate(tasks, hashlib.sha256(account.encode()).hexdigest()[:16], rate)


def unshared_text(settings: EmailSettings) -> str | None:
    """Return why a mailer's ``rate_limit``, which is to be shared, counts for each process; None if it is shared."""
    rate = settings.rate_limit
    if rate is None or not rate.shared or shared_rate(settings) is not None:
        return None
    return f'EMAIL["rate_limit"] ({rate}) counts for each process separately, since TASKS["broker"] is not "redis"'
