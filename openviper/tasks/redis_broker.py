"""Dramatiq's Redis broker, which also recovers messages of lost answers and idle queues, and survives a fork."""

import threading
import time
import uuid
from collections.abc import Iterable
from typing import Any

import redis
from dramatiq import Broker, Middleware
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.common import current_millis
from dramatiq.errors import ConnectionClosed, DecodeError
from redis.backoff import NoBackoff
from redis.retry import Retry

from openviper.exceptions import ImproperlyConfigured
from openviper.tasks.settings import TaskSettings

__all__ = ["make_redis_broker", "presence_key", "redis_client"]

_HEARTBEAT = 5.0  # seconds between two heartbeats of a worker
_PRESENT = 20.0  # seconds for which one heartbeat counts

# By the server's clock, since those of workers and web processes may differ.
_PRESENCE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, key in ipairs(KEYS) do
    redis.call('ZREMRANGEBYSCORE', key, 0, now)
    redis.call('ZADD', key, now + ARGV[2], ARGV[1])
    redis.call('PEXPIRE', key, ARGV[2])
end
"""


def redis_client(settings: TaskSettings, *, timeout: float) -> "redis.Redis":
    """Return a client that retries nothing: failures raise at once, and no command is executed late.

    Raises:
        ImproperlyConfigured: a value in the URL's query cannot be read.
    """
    try:
        return redis.Redis.from_url(
            settings.url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
        )
    except ValueError as error:
        raise ImproperlyConfigured(f'TASKS["broker_url"]: {error}') from None


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

    @property
    def consumer_class(self) -> "type[_Consumer]":
        return _Consumer

    def renew_after_fork(self) -> None:
        self.broker_id = str(uuid.uuid4())

    def _should_do_maintenance(self, command: str) -> int:
        # With the heartbeat instead of by chance: in time on an idle queue, and seldom on a busy one.
        return int(command == "qsize")

    def orphaned_ids(self, queue_name: str) -> list[str]:
        """Return the ids that the server counts as ours although we lack them: the answer to a fetch was lost."""
        members: Any = self.client.smembers(f"{self.namespace}:__acks__.{self.broker_id}.{queue_name}")
        return [found for raw in members if (queue_name, found := raw.decode()) not in self.in_progress]


class _Consumer(_RedisConsumer):
    """Reports a silent server as a lost connection, and requeues at first what an earlier consumer has lost."""

    def __init__(self, broker: _RedisBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)
        if queue_name.endswith(".DQ"):
            # Dramatiq forgets the delayed messages of a consumer that lost its connection.
            broker.in_progress = {pair for pair in broker.in_progress if pair[0] != queue_name}
        try:
            if ids := broker.orphaned_ids(queue_name):
                broker.do_requeue(queue_name, *ids)
        except redis.RedisError as error:
            raise ConnectionClosed(error) from None

    def __next__(self) -> Any:
        try:
            message = super().__next__()
        except redis.TimeoutError as error:
            raise ConnectionClosed(error) from None
        except DecodeError as error:
            self._dead_letter(error.data)
            return None
        if message is not None:
            self.broker.in_progress.add(self._key(message))
        return message

    def ack(self, message: Any) -> None:
        if (key := self._key(message)) in self.broker.settled:
            self.broker.settled.discard(key)
            self.broker.in_progress.discard(key)
            self.queued_message_ids.discard(message.message_id)
            return
        try:
            super().ack(message)
        except redis.TimeoutError as error:
            raise ConnectionClosed(error) from None
        self.broker.in_progress.discard(self._key(message))

    def nack(self, message: Any) -> None:
        try:
            super().nack(message)
        except redis.TimeoutError as error:
            raise ConnectionClosed(error) from None
        self.broker.in_progress.discard(self._key(message))

    def requeue(self, messages: Iterable[Any]) -> None:
        messages = list(messages)
        try:
            super().requeue(messages)
        except redis.RedisError as error:
            raise ConnectionClosed(error) from None
        self.broker.in_progress.difference_update(map(self._key, messages))

    def _dead_letter(self, data: bytes) -> None:
        """Move what is not a message to the dead letters; it would come back for ever."""
        messages = f"{self.broker.namespace}:{self.queue_name}.msgs"
        try:
            for name in self.broker.orphaned_ids(self.queue_name):
                if self.broker.client.hget(messages, name) == data:
                    self.broker.do_nack(self.queue_name, name)
                    self.logger.error("%s on queue %r is not a message; it is dead-lettered", name, self.queue_name)
        except redis.RedisError as error:
            raise ConnectionClosed(error) from None

    def _key(self, message: Any) -> tuple[str, str]:
        return self.queue_name, message.options["redis_message_id"]


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
        broker.client.zadd(f"{broker.namespace}:__heartbeats__", {broker.broker_id: current_millis()})
        keys = [presence_key(broker.namespace, name) for name in queues]
        broker.client.eval(_PRESENCE, len(keys), *keys, broker.broker_id, int(_PRESENT * 1000))
        for name in queues:
            broker.do_qsize(name)
