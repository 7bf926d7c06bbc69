"""Dramatiq's Redis broker, which also recovers messages of lost answers and idle queues, and survives a fork."""

import re
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from dramatiq import Broker, Message, Middleware
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer, _scripts
from dramatiq.common import compute_backoff, current_millis
from dramatiq.errors import ConnectionClosed, DecodeError
from dramatiq.worker import ConsumerThread
from redis.backoff import NoBackoff
from redis.retry import Retry

from openviper.exceptions import ImproperlyConfigured
from openviper.tasks.settings import TaskSettings
from openviper.text import shown

__all__ = ["make_redis_broker", "may_pass", "presence_key", "redis_client"]

_HEARTBEAT = 5.0  # seconds between two heartbeats of a worker
_PRESENT = 20.0  # seconds for which one heartbeat counts
_REFUSED_PAUSE = 1.0  # seconds before Redis is asked again for a message that it refuses for good

# Above maxmemory Redis refuses a command that needs memory unless the script has written before, if only a DEL. All
# but "enqueue" take mail out of Redis, or keep a worker able to. Dramatiq's KEYS[1] is the bare namespace, which is not
# below the prefix that a user's rights may end at, so its script gets a colon more.
_BEFORE_DISPATCH = b"""
local KEYS = {string.sub(KEYS[1], 1, -2)}
if ARGV[1] ~= 'enqueue' or ARGV[11] == 'again' then redis.call('DEL', KEYS[1] .. ':none') end
"""

# By the server's clock, since those of workers and web processes may differ; but Dramatiq's heartbeat by the worker's.
_PRESENCE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('DEL', KEYS[1] .. 'none')
redis.call('ZADD', KEYS[1] .. '__heartbeats__', ARGV[3], ARGV[1])
for i = 2, #KEYS do
    redis.call('ZREMRANGEBYSCORE', KEYS[i], 0, now)
    redis.call('ZADD', KEYS[i], now + ARGV[2], ARGV[1])
    redis.call('PEXPIRE', KEYS[i], ARGV[2])
end
"""

# Redis' own words for a state that it leaves again; some versions put them behind the name of the script.
_PASSING = re.compile(
    r"\b(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOAUTH|NOREPLICAS|OOM|READONLY|TRYAGAIN|WRONGPASS)\b"
)


def redis_client(settings: TaskSettings, *, timeout: float) -> "redis.Redis":
    """Return a client that retries nothing: failures raise at once, and no command is executed late.

    Raises:
        ImproperlyConfigured: a value in the URL's query cannot be used.
    """
    try:
        client = redis.Redis.from_url(
            settings.url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
        )
        pool: Any = client.connection_pool
        connection = pool.connection_class(**pool.connection_kwargs)  # which connects nothing
    except (ValueError, TypeError, redis.RedisError) as error:
        raise ImproperlyConfigured(f'TASKS["broker_url"]: {error}') from None
    if isinstance(connection, redis.SSLConnection):
        _check_tls_files(connection)
    return client


def _check_tls_files(connection: Any) -> None:
    """Load what the URL names for TLS, as each connection does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusted = connection.ca_certs, connection.ca_path, connection.ca_data
    own = connection.certfile, connection.keyfile
    names = ("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data")
    try:
        if any(trusted):
            context.load_verify_locations(*trusted)
        names = ("ssl_certfile", "ssl_keyfile", "ssl_password")
        if any(own):
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(*own, password=connection.certificate_password or "")
    except (OSError, ValueError, TypeError) as error:
        given = " or ".join(names)
        raise ImproperlyConfigured(f'TASKS["broker_url"]: {given} cannot be used: {error}') from None


def may_pass(error: "redis.RedisError") -> bool:
    """True if the same command may succeed later, as the server's state or the connection was at fault.

    False if its data or the user's rights were (WRONGTYPE, NOPERM, DataError): waiting does not mend that.
    """
    passing = (
        redis.ConnectionError,
        redis.TimeoutError,
        redis.OutOfMemoryError,
        redis.ReadOnlyError,
        redis.exceptions.ClusterDownError,
        redis.exceptions.TryAgainError,
    )
    return isinstance(error, passing) or (isinstance(error, redis.ResponseError) and bool(_PASSING.search(str(error))))


def presence_key(namespace: str, queue_name: str) -> str:
    """Return the key of a sorted set: the queue's consumers, each with the server's time (ms) until which it counts."""
    return f"{namespace}:consumers:{queue_name}"


def make_redis_broker(settings: TaskSettings) -> RedisBroker:
    """Make the broker of ``settings``; it connects at first use."""
    broker = _RedisBroker(
        client=redis_client(settings, timeout=5.0),
        namespace=settings.namespace,
        heartbeat_timeout=int(settings.heartbeat_timeout * 1000),
    )
    broker.add_middleware(_Heartbeat())
    return broker


class _RedisBroker(RedisBroker):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.in_progress: set[tuple[str, str]] = set()  # (queue, id) of messages that a worker of this process has
        self.settled: set[tuple[str, str]] = set()  # those that their actor has acknowledged
        self.scripts["dispatch"] = _Dispatch(self.client, _scripts["dispatch"])
        self.presence = self.client.register_script(_PRESENCE)
        self._enqueueing = threading.local()
        self.holds: Callable[[str], bool] = lambda _queue: False  # True: nothing may be taken from the queue now

    @property
    def consumer_class(self) -> "type[_Consumer]":
        return _Consumer

    def renew_after_fork(self) -> None:
        self.broker_id = str(uuid.uuid4())

    def enqueue(self, message: "Message[Any]", *, delay: int | None = None) -> "Message[Any]":
        """Enqueue a message; above maxmemory only one that takes the place of another.

        A retry does, and a delayed message whose time has come: Dramatiq acknowledges the other one in any case.
        """
        self._enqueueing.again = "retries" in message.options or isinstance(threading.current_thread(), ConsumerThread)
        return super().enqueue(message, delay=delay)

    def do_enqueue(self, queue_name: str, name: str, data: bytes) -> None:
        """Run Dramatiq's script for ``enqueue``."""
        self._dispatch("enqueue")(queue_name, name, data, "again" if getattr(self._enqueueing, "again", False) else "")

    def _should_do_maintenance(self, command: str) -> int:
        # With the heartbeat instead of by chance: in time on an idle queue, and seldom on a busy one.
        return int(command == "qsize")

    def orphaned_ids(self, queue_name: str) -> list[bytes]:
        """Return the ids that the server counts as ours although we lack them: the answer to a fetch was lost."""
        members: Any = self.client.smembers(f"{self.namespace}:__acks__.{self.broker_id}.{queue_name}")
        return [raw for raw in members if (queue_name, raw.decode(errors="replace")) not in self.in_progress]


class _Dispatch:
    """Dramatiq's script behind ours, with a key that is below the namespace's prefix."""

    def __init__(self, client: "redis.Redis", script: bytes) -> None:
        self._script = client.register_script(_BEFORE_DISPATCH + script)

    def __call__(self, *, args: list[Any], keys: list[str]) -> Any:
        return self._script(keys=[f"{keys[0]}:"], args=args)


class _Consumer(_RedisConsumer):
    """Reports a silent server as a lost connection, and requeues at first what an earlier consumer has lost.

    What is not a message becomes a dead letter: it would come back for ever, and Dramatiq's threads would end by it.
    """

    def __init__(self, broker: _RedisBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)
        self._recovered = False
        self._refusal = ""  # Redis' last reason not to give any message
        if queue_name.endswith(".DQ"):
            # Dramatiq forgets the delayed messages of a consumer that lost its connection.
            broker.in_progress = {pair for pair in broker.in_progress if pair[0] != queue_name}

    def __next__(self) -> Any:
        """Return the next message; None after a pause, or instead of a dead letter."""
        if self.broker.holds(self.queue_name):
            time.sleep(self.timeout / 1000)
            return None
        if not self.message_cache and self.outstanding_message_count < self.prefetch:
            self._fetch()
        if not self.message_cache:
            self.misses, pause = compute_backoff(self.misses, max_backoff=self.timeout)
            time.sleep(pause / 1000)
            return None
        self.misses = 0
        data = self.message_cache.pop(0)
        message = None if data is None else self._read(data)
        if message is None:
            self._dead_letter(data)
            return None
        self.queued_message_ids.add(message.message_id)
        self.broker.in_progress.add(self._key(message))
        return MessageProxy(message)

    def _fetch(self) -> None:
        """Fill the cache; where Redis refuses that for good, log it once and pause."""
        try:
            if not self._recovered and (ids := self.broker.orphaned_ids(self.queue_name)):
                self.broker.do_requeue(self.queue_name, *ids)
            self._recovered = True
            self.message_cache = self.broker.do_fetch(self.queue_name, self.prefetch - self.outstanding_message_count)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise ConnectionClosed(error) from None
        except redis.RedisError as error:
            if str(error) != self._refusal:
                self._refusal = str(error)
                self.logger.error("no message can be fetched from queue %r: %s", self.queue_name, error)
            time.sleep(_REFUSED_PAUSE)
        else:
            self._refusal = ""

    def _read(self, data: bytes) -> "Message[Any] | None":
        """Return the message; None if it is none, or not one of this queue."""
        try:
            message: Message[Any] = Message.decode(data)
            message.options["redis_message_id"].encode()
        except (DecodeError, KeyError, AttributeError, UnicodeError):
            return None
        # A worker thread would end by "throws" that are not exceptions, and no JSON can hold those.
        return message if message.queue_name == self.queue_name and "throws" not in message.options else None

    def ack(self, message: Any) -> None:
        if (key := self._key(message)) in self.broker.settled:
            self.broker.settled.discard(key)
            self.queued_message_ids.discard(message.message_id)
        else:
            with _lost_connections():
                super().ack(message)
        self.broker.in_progress.discard(key)

    def nack(self, message: Any) -> None:
        with _lost_connections():
            super().nack(message)
        self.broker.in_progress.discard(self._key(message))

    def requeue(self, messages: Iterable[Any]) -> None:
        messages = list(messages)
        try:
            super().requeue(messages)
        except redis.RedisError as error:
            raise ConnectionClosed(error) from None
        self.broker.in_progress.difference_update(map(self._key, messages))

    def _dead_letter(self, data: bytes | None) -> None:
        """Move what is not a message to the dead letters; forget the id of a message that is gone (``data`` None)."""
        messages = f"{self.broker.namespace}:{self.queue_name}.msgs"
        with _lost_connections():
            for name in self.broker.orphaned_ids(self.queue_name):
                if self.broker.client.hget(messages, name) == data:
                    self.broker.do_nack(self.queue_name, name)
                    if data is not None:
                        self.logger.error(
                            "%s on queue %r is not a valid message; it is dead-lettered", shown(name), self.queue_name
                        )

    def _key(self, message: Any) -> tuple[str, str]:
        return self.queue_name, message.options["redis_message_id"]


@contextmanager
def _lost_connections() -> Iterator[None]:
    """Translate errors that pass, so that Dramatiq repeats the command."""
    try:
        yield
    except redis.RedisError as error:
        if not may_pass(error):
            raise
        raise ConnectionClosed(error) from None


class _Heartbeat(Middleware):
    """Writes a worker's heartbeat every few seconds, and requeues the messages of workers that have none.

    Dramatiq's consumers write theirs only while they fetch, and a busy worker does not fetch.
    """

    def __init__(self) -> None:
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def after_worker_boot(self, broker: Broker, worker: Any) -> None:
        self._end.clear()
        self._thread = threading.Thread(target=self._run, args=(broker, worker), name="heartbeat", daemon=True)
        self._thread.start()

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(10)
        if isinstance(broker, _RedisBroker):
            try:
                for name in worker.consumers:
                    broker.client.zrem(presence_key(broker.namespace, name), broker.broker_id)
            except redis.RedisError as error:
                broker.logger.debug("the worker's presence was not removed: %s", error)

    def _run(self, broker: _RedisBroker, worker: Any) -> None:
        failed = False
        while True:
            started = time.monotonic()
            try:
                self._beat(broker, tuple(worker.consumers))
                failed = False
            except redis.RedisError as error:
                if not failed:
                    broker.logger.warning("the worker's heartbeat failed: %s", error)
                failed = True
            if self._end.wait(max(0.0, (1.0 if failed else _HEARTBEAT) - (time.monotonic() - started))):
                return

    def _beat(self, broker: _RedisBroker, queues: tuple[str, ...]) -> None:
        keys = [f"{broker.namespace}:", *(presence_key(broker.namespace, name) for name in queues)]
        broker.presence(keys=keys, args=[broker.broker_id, int(_PRESENT * 1000), current_millis()])
        for name in queues:
            broker.do_qsize(name)
