"""Keep the pause flag on the Redis of ``TASKS``."""

from typing import Any

from openviper.conf.imports import require
from openviper.core.email.delivery.pause.store import FlagUnreadable, StoredFlag
from openviper.tasks.settings import TaskSettings

__all__ = ["RedisPauseStore"]

_LIMIT = 1.0  # seconds for each answer of Redis

# The DEL comes first, so that Redis does not refuse the SET above maxmemory: a full Redis must not keep anybody from
# stopping mail. ARGV: the new value, 1 to replace whatever is there, else 0, and the value that must be there.
_WRITE = """
if ARGV[2] == '0' then
    local found = redis.pcall('GET', KEYS[1])
    if type(found) == 'table' or (found or '') ~= ARGV[3] then return 0 end
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""


class RedisPauseStore:
    """Keeps the flag in a key below the namespace's prefix. Its times are those of the server's clock."""

    def __init__(self, tasks: TaskSettings) -> None:
        self._tasks = tasks
        self._key = f"{tasks.namespace}:mail:paused"
        self._client: Any = None

    @property
    def identity(self) -> object:
        """Return what two stores of the same flag have in common."""
        return "redis", self._tasks.url, self._tasks.namespace

    @property
    def address(self) -> str:
        """Return the server's address."""
        return self._tasks.address

    def open(self) -> None:
        """Make the client, which imports its library; connects nothing.

        Raises:
            MissingDependency: the library is not installed.
            ImproperlyConfigured: the URL cannot be used.
        """
        if self._client is None:
            require("redis", extra="redis", purpose='TASKS["broker"] = "redis"')
            from openviper.tasks.redis_broker import redis_client

            self._client = redis_client(self._tasks, timeout=_LIMIT)

    def read(self) -> StoredFlag:
        """Return the flag and the server's time.

        Raises:
            FlagUnreadable: the key holds something else.
            QueueUnavailable: Redis does not answer.
        """
        from openviper.core.email.queue.redis_store import translate_errors

        self.open()
        with translate_errors():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.time()
            pipeline.get(self._key)
            moment, data = pipeline.execute(raise_on_error=False)
            if isinstance(moment, Exception):
                raise moment
            now = moment[0] + moment[1] / 1e6
            if isinstance(data, Exception):
                if "WRONGTYPE" in str(data):
                    raise FlagUnreadable(f"{self._key} is not text on Redis", now)
                raise data
        return StoredFlag(data, now)

    def write(self, data: bytes, *, expected: bytes | None) -> bool:
        """Store ``data``, also above ``maxmemory``.

        Raises:
            QueueUnavailable: Redis does not answer, or refuses it.
        """
        from openviper.core.email.queue.redis_store import translate_errors

        self.open()
        with translate_errors():
            script = self._client.register_script(_WRITE)
            return bool(script(keys=[self._key], args=[data, "1" if expected is None else "0", expected or b""]))

    def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
