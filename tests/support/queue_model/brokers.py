"""The brokers of a run: the troubles that they can be given, junk, and what they say that they keep."""

import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import dramatiq
import redis
from pika.exceptions import AMQPError
from redis.backoff import NoBackoff
from redis.retry import Retry

from openviper.tasks.encoder import BytesEncoder
from support.broker_server import BrokerServer
from support.rabbitmq import RabbitmqServer
from support.redis import RedisServer
from support.server_clock import ServerClock

__all__ = ["BrokerUnderTest", "RabbitmqUnderTest", "RedisUnderTest"]

_JUNK = b"\x00\x01 no message"
_BALLAST = 20_000_000  # bytes, beside which the clients' buffers do not matter
_ROOM = 400_000  # bytes until Redis is full
_DELIVERY_LIMIT = 5
_QUEUES = ("emails", "emails_bulk")


class BrokerUnderTest(ABC):
    """A server, its clock, and its trouble of the moment."""

    server: BrokerServer
    is_database = False
    """True when it is the outbox's database, whose mail relays deliver."""

    def __init__(self, folder: Path) -> None:
        self.clock = ServerClock(folder)
        self._end: Callable[[], object] | None = None

    def start(self) -> None:
        """Start the server for the first time."""
        self.server.more_environment = self.clock.environment
        self.server.start()

    def settings(self) -> dict[str, Any]:
        """The settings by which processes use it."""
        return {"TASKS": self.server.tasks()}

    def email_settings(self) -> dict[str, Any]:
        """What ``EMAIL`` says for it."""
        return {}

    def restart(self) -> None:
        """SIGKILL, and start it again."""
        self.server.kill()
        self.server.start()

    def close(self) -> None:
        """Stop it."""
        self.server.close()

    def let_leases_end(self) -> None:
        """Take as passed the time for which a killed process has its mail, where there is such a time."""
        raise NotImplementedError

    def begin(self, trouble: str) -> None:
        """Begin a trouble, until ``end``."""
        if trouble == "broker down":
            self.server.kill()
            self._end = self.server.start
        elif trouble == "pause broker":
            self.server.pause()
            self._end = self.server.resume
        else:
            self._end = self._begin(trouble)

    def end(self) -> None:
        """End the trouble, if there is one."""
        end, self._end = self._end, None
        if end is not None:
            end()

    @abstractmethod
    def _begin(self, trouble: str) -> Callable[[], object]:
        """Begin a trouble of this kind of broker, and return what ends it."""

    @abstractmethod
    def add_junk(self, variant: int) -> bool:
        """Put something into the queue that is no mail; False when the server does not take it."""

    @abstractmethod
    def in_hand(self) -> "set[str] | None":
        """The Message-IDs that workers have and have not recorded as sent; None: the broker cannot tell."""

    @abstractmethod
    def scheduled(self) -> set[str]:
        """The Message-IDs that wait for their time. Asked when no worker runs any more."""

    def over_limit(self) -> float:
        """How much more memory it uses than its limit allows, as a part of the limit; 0 without one."""
        return 0.0

    def leftovers(self) -> dict[str, int]:
        """What a queue that is empty must not keep, and how much of it there is."""
        return {}


class RedisUnderTest(BrokerUnderTest):
    """Redis keeps all on disk before it answers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server: RedisServer = RedisServer(folder)

    def start(self) -> None:
        """Start, with ballast, so that a limit of its memory can be exact."""
        super().start()
        with self.server.client() as client:
            client.setrange("ballast", _BALLAST, b"x")

    def _begin(self, trouble: str) -> Callable[[], object]:
        if trouble == "replica":
            self._execute("REPLICAOF", "127.0.0.1", "1")  # where no primary answers
            return lambda: self._execute("REPLICAOF", "NO", "ONE")
        if trouble == "no replicas":
            self._execute("CONFIG", "SET", "min-replicas-to-write", "1")
            return lambda: self._execute("CONFIG", "SET", "min-replicas-to-write", "0")
        assert trouble == "full memory"
        with self.server.client() as client:
            used: Any = client.info("memory")
        self._execute("CONFIG", "SET", "maxmemory", str(used["used_memory"] + _ROOM))
        return lambda: self._execute("CONFIG", "SET", "maxmemory", "0")

    def _execute(self, *words: str) -> None:
        with self.server.client() as client:
            client.execute_command(*words)

    def add_junk(self, variant: int) -> bool:
        name = f"junk-{variant}-{time.monotonic_ns()}"
        job = f"dramatiq:mail:job:{name}"
        contents: list[bytes] = [
            _JUNK,
            b"null",
            b"{}",
            _ticket(name, []),
            _ticket(name, [None, None, None]),
            _ticket(name, [{"a": 1}, [], "x"]),
            _ticket(name, [name, 1, name]),  # no such job
            _ticket(name, [name, 1, name]),  # a job of another type
            _ticket(name, [name, "one", name]),
        ]
        at = variant % len(contents)
        try:
            with self.server.client() as client:
                if at == 7:
                    client.set(job, "no hash")
                client.hset("dramatiq:emails.msgs", name, contents[at])
                client.rpush("dramatiq:emails", name)
        except redis.RedisError:
            return False
        return True

    def in_hand(self) -> "set[str] | None":
        try:
            with self._impatient() as client:
                return self._ids(client, b"claimed")
        except redis.RedisError:
            return None

    def scheduled(self) -> set[str]:
        with self.server.client() as client:
            return self._ids(client, b"waiting")

    def _impatient(self) -> "redis.Redis":
        return redis.Redis(port=self.server.port, socket_timeout=2, retry=Retry(NoBackoff(), 0))

    def _ids(self, client: "redis.Redis", wanted: bytes) -> set[str]:
        found = set()
        for key in client.scan_iter("dramatiq:mail:job:*", count=1000, _type="hash"):
            state, message_id = cast("list[bytes | None]", client.hmget(key, "state", "message_id"))
            if state == wanted and message_id is not None:
                found.add(message_id.decode())
        return found

    def over_limit(self) -> float:
        try:
            with self._impatient() as client:
                memory: Any = client.info("memory")
        except redis.RedisError:
            return 0.0
        limit = memory["maxmemory"]
        return max(0.0, memory["used_memory"] / limit - 1) if limit else 0.0

    def leftovers(self) -> dict[str, int]:
        with self.server.client() as client:
            counts: dict[str, Any] = {
                "tickets": sum(client.hlen(f"dramatiq:{queue}.msgs") for queue in _QUEUES),
                "queued tickets": sum(client.llen(f"dramatiq:{queue}") for queue in _QUEUES),
                # That of a killed process expires.
                "lasting uploads": sum(client.ttl(key) == -1 for key in client.scan_iter("dramatiq:mail:upload:*")),
                "claimed jobs": len(self._ids(client, b"claimed")),
                "queued jobs": len(self._ids(client, b"queued")),
                "unacknowledged": sum(client.scard(key) for key in client.scan_iter("dramatiq:__acks__.*.emails*")),
            }
        return {name: number for name, number in counts.items() if number}


def _ticket(name: str, args: list[Any]) -> bytes:
    message = {"queue_name": "emails", "actor_name": "deliver_email", "args": args, "kwargs": {}, "message_id": name}
    return json.dumps(message | {"options": {"redis_message_id": name}, "message_timestamp": 0}).encode()


class RabbitmqUnderTest(BrokerUnderTest):
    """RabbitMQ, with the queues as the application declares them, or with quorum queues that an operator declared."""

    def __init__(self, folder: Path, *, quorum: bool) -> None:
        super().__init__(folder)
        self.server: RabbitmqServer = RabbitmqServer(folder)
        self._quorum = quorum

    def start(self) -> None:
        super().start()
        if self._quorum:
            self.server.limit_deliveries(_DELIVERY_LIMIT)
            self.server.declare_quorum_queues()

    def _begin(self, trouble: str) -> Callable[[], object]:
        if trouble == "no rights":
            self.server.grant("guest", ".*", "", ".*")
            return lambda: self.server.grant("guest", ".*", ".*", ".*")
        self.server.raise_alarm(trouble.removesuffix(" alarm"))
        return self.server.end_alarms

    def add_junk(self, variant: int) -> bool:
        sealed = BytesEncoder()
        lists: list[tuple[Any, ...]] = [(), (None, None, None), ({}, [], "x"), ("key", "x", "y")]
        contents = [
            _JUNK,
            b"null",
            b"{}",
            b"",
            *(_message(sealed, args) for args in lists),
        ]
        try:
            with self.server.connect() as connection:
                channel = connection.channel()
                channel.basic_publish("", "emails", contents[variant % len(contents)])
        except (AMQPError, OSError):
            return False
        return True

    def in_hand(self) -> None:
        """None."""

    def scheduled(self) -> set[str]:
        found = set()
        with self.server.connect() as connection:
            channel = connection.channel()
            for queue in _QUEUES:
                while (got := channel.basic_get(f"{queue}.DQ", auto_ack=True))[0] is not None:
                    with contextlib.suppress(Exception):
                        details: Mapping[str, Any] = json.loads(BytesEncoder().decode(got[2])["args"][1])
                        found.add(details["message_id"])
        return found

    def leftovers(self) -> dict[str, int]:
        with self.server.connect() as connection:
            channel = connection.channel()
            waiting = sum(channel.queue_declare(queue, passive=True).method.message_count for queue in _QUEUES)
        return {"waiting": waiting} if waiting else {}


def _message(encoder: BytesEncoder, args: tuple[Any, ...]) -> bytes:
    message: dramatiq.Message[Any] = dramatiq.Message("emails", "deliver_email", args, {}, {})
    return encoder.encode(message.asdict())
