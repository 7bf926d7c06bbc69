"""Queued mail on RabbitMQ: each message travels whole, in a Dramatiq message on durable queues."""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pika
from dramatiq import Message
from dramatiq.common import dq_name, xq_name
from dramatiq.errors import DecodeError
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError, ChannelClosedByBroker

from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.payload import UnknownPayload, join, split
from openviper.core.email.queue.job import ACTOR, QUEUE, FailedJob, Held, Parcel, Progress, QueueFigures, message_id_of
from openviper.core.email.queue.publisher import Declaration, Publisher, reason_of
from openviper.tasks import TaskSettings, get_broker
from openviper.tasks.encoder import Sealed
from openviper.tasks.rabbitmq_broker import connection_parameters

__all__ = ["LONGEST_HOP", "RabbitmqSpool"]

# RabbitMQ closes a channel that holds a message unacknowledged for 30 minutes, and a delayed one is held by a worker.
LONGEST_HOP = 900.0

_FAILED_QUEUE = f"{QUEUE}.failed"
_MOST_FAILED = 1000
_DEAD_MS = 7 * 24 * 3600 * 1000  # as Dramatiq declares it
_STORE_LIMIT = 30.0


class RabbitmqSpool:
    """The spool of ``settings``; connects at first use."""

    def __init__(self, settings: TaskSettings) -> None:
        self._settings = settings
        dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": xq_name(QUEUE)}
        self._publisher = Publisher(
            connection_parameters(settings, limit=1.0),
            (
                Declaration(QUEUE, dead),
                Declaration(dq_name(QUEUE), dead),
                Declaration(xq_name(QUEUE), {"x-message-ttl": _DEAD_MS}),
                Declaration(_FAILED_QUEUE, {}),
            ),
        )

    def probe(self) -> None:
        """Connect and log in."""
        with self._connection(limit=1.0):
            pass

    def enqueue(self, parcel: Parcel, *, deadline: float) -> None:
        """Return when RabbitMQ has confirmed it. What a paused server has received, it takes when it goes on."""
        get_broker()  # sets the encoder
        delay = 0.0 if parcel.due_at is None else parcel.due_at - time.time()
        body = Sealed(join(parcel.payload))
        future = self._send(parcel.key, parcel.message_id, parcel.progress, body, parcel.due_at, delay)
        try:
            future.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            future.cancel()
            self._publisher.drop()
            raise QueueUnavailable("RabbitMQ did not confirm the message in time") from None
        except CancelledError:
            raise QueueUnavailable("the message was withdrawn") from None

    def receive(self, key: str, sealed_about: Sealed, sealed: Sealed) -> Held | None:
        """The message itself; one whose time has not come is put off by a further hop."""
        damage, payload, due_at = "", None, None
        message_id, progress = message_id_of(key), Progress(time.time())
        try:
            about = _read_about(sealed_about)
            message_id, due_at = about["message_id"], about["due_at"]
            progress = Progress.from_json(about["progress"])
            payload = split(sealed)
        except UnknownPayload as error:
            damage = str(error)
        held = Held(key, message_id, progress, payload, False, damage, sealed)
        if due_at is not None and due_at > time.time():
            self._store(lambda: self._send(key, held.message_id, progress, sealed, due_at, due_at - time.time()))
            return None
        return held

    def sent(self, held: Held, *, remember: float) -> None:
        """Nothing to do: Dramatiq acknowledges it, and there is no memory of it."""

    def again(self, held: Held, progress: Progress, *, delay: float) -> None:
        """Publish it anew, confirmed before the old one is acknowledged."""
        due_at = time.time() + delay
        self._store(lambda: self._send(held.key, held.message_id, progress, held.token, due_at, delay))

    def fail(self, held: Held, progress: Progress, reason: str, *, keep: float, uncertain: bool) -> None:
        """Publish it to the queue of failed ones, where it expires."""
        if keep == 0:
            return
        about = {
            "message_id": held.message_id,
            "progress": progress.to_json(),
            "reason": reason,
            "failed_at": time.time(),
            "uncertain": uncertain,
        }
        body = _encode(held.key, about, held.token)
        self._store(lambda: self._publisher.publish(_FAILED_QUEUE, body, expires_ms=int(keep * 1000)))

    def close(self) -> None:
        """Close the publisher's connection."""
        self._publisher.close()

    def consumers(self) -> int:
        """As the queue tells it."""
        with self._connection(limit=1.0) as connection:
            return _passive(connection, QUEUE)[0]

    def figures(self) -> QueueFigures:
        """As the queues tell it: the delayed ones are in workers' hands and not counted."""
        with self._connection(limit=5.0) as connection:
            consumers, waiting = _passive(connection, QUEUE)
            _, later = _passive(connection, dq_name(QUEUE))
            _, failed = _passive(connection, _FAILED_QUEUE)
        return QueueFigures(consumers, waiting, later, failed, None)

    def failed(self, limit: int) -> list[FailedJob]:
        """Read at most 1,000 and put them back."""
        return [job for job, _ in self._each_failed(min(limit, _MOST_FAILED), lambda *_: False)]

    def retry_failed(self, message_ids: frozenset[str] | None, looked_at: Callable[[], object] = lambda: None) -> int:
        """Of the first 1,000, publish those anew, then take them off the queue of failed ones."""

        def retry(job: FailedJob, message: "Message[Any]") -> bool:
            looked_at()
            if message_ids is not None and job.message_id not in message_ids:
                return False
            key, _, sealed = message.args
            progress = job.progress.again(now=time.time())
            self._send(key, job.message_id, progress, sealed, None, 0.0).result(_STORE_LIMIT)
            return True

        return sum(taken for _, taken in self._each_failed(_MOST_FAILED, retry))

    def purge_failed(self, message_ids: frozenset[str] | None, looked_at: Callable[[], object] = lambda: None) -> int:
        """Of the first 1,000, drop those."""

        def drop(job: FailedJob, _message: "Message[Any]") -> bool:
            looked_at()
            return message_ids is None or job.message_id in message_ids

        return sum(taken for _, taken in self._each_failed(_MOST_FAILED, drop))

    def _each_failed(
        self, limit: int, take: Callable[[FailedJob, "Message[Any]"], bool]
    ) -> list[tuple[FailedJob, bool]]:
        get_broker()
        seen: list[tuple[FailedJob, bool]] = []
        with self._connection(limit=5.0) as connection:
            if _passive(connection, _FAILED_QUEUE)[1] == 0:
                return []
            channel = connection.channel()
            back: list[int] = []
            while len(seen) < limit:
                method, _, body = channel.basic_get(_FAILED_QUEUE)
                if method is None:
                    break
                try:
                    message = Message.decode(body)
                    job = _failed_job(message)
                except (DecodeError, UnknownPayload, KeyError, ValueError, TypeError):
                    back.append(method.delivery_tag)
                    continue
                taken = take(job, message)
                seen.append((job, taken))
                if taken:
                    channel.basic_ack(method.delivery_tag)
                else:
                    back.append(method.delivery_tag)
            for tag in reversed(back):  # the last first, so that they stand as before
                channel.basic_nack(tag, requeue=True)
        return seen

    def _send(
        self, key: str, message_id: str, progress: Progress, sealed: Sealed, due_at: float | None, delay: float
    ) -> Any:
        about = {"message_id": message_id, "progress": progress.to_json(), "due_at": due_at}
        if delay <= 0:
            return self._publisher.publish(QUEUE, _encode(key, about, sealed))
        eta = math.ceil((time.time() + min(delay, LONGEST_HOP)) * 1000)
        return self._publisher.publish(dq_name(QUEUE), _encode(key, about, sealed, eta=eta))

    def _store(self, send: Callable[[], Any]) -> None:
        """Publish until it is confirmed: the old message may be acknowledged only then."""
        pause = 0.2
        while True:
            try:
                send().result(_STORE_LIMIT)
            except (QueueUnavailable, TimeoutError) as error:
                if isinstance(error, TimeoutError):
                    self._publisher.drop()
                threading.Event().wait(pause)
                pause = min(5.0, pause * 2)
            else:
                return

    @contextlib.contextmanager
    def _connection(self, *, limit: float) -> "Iterator[pika.BlockingConnection]":
        try:
            connection = pika.BlockingConnection(connection_parameters(self._settings, limit=limit))
            try:
                yield connection
            finally:
                with contextlib.suppress(AMQPError):
                    connection.close()
        except (AMQPError, AMQPConnectorException, OSError) as error:
            raise QueueUnavailable(f"RabbitMQ: {reason_of(error)}") from error


def _encode(key: str, about: dict[str, Any], sealed: Sealed, *, eta: int | None = None) -> bytes:
    message: Message[Any] = Message(
        queue_name=QUEUE if eta is None else dq_name(QUEUE),
        actor_name=ACTOR,
        args=(key, Sealed(json.dumps(about).encode()), sealed),
        kwargs={},
        options={} if eta is None else {"eta": eta},
    )
    return message.encode()


def _read_about(sealed: Sealed) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(sealed)
        texts = isinstance(about["message_id"], str) and isinstance(about["progress"], str)
        if texts and isinstance(about["due_at"], int | float | None):
            return about
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise UnknownPayload("what goes with it cannot be read")


def _failed_job(message: "Message[Any]") -> FailedJob:
    _, sealed_about, sealed = message.args
    about = json.loads(sealed_about)
    progress = Progress.from_json(about["progress"])
    job = FailedJob(
        message_id=about["message_id"],
        failed_at=float(about["failed_at"]),
        reason=about["reason"],
        uncertain=bool(about["uncertain"]) or bool(progress.held),
        progress=progress,
    )
    with contextlib.suppress(UnknownPayload):
        return job._replace(payload=split(sealed))
    return job


def _passive(connection: "pika.BlockingConnection", queue: str) -> tuple[int, int]:
    """Consumers and messages of ``queue``; none of either when it was never declared."""
    channel = connection.channel()
    try:
        declared = channel.queue_declare(queue, passive=True).method
    except ChannelClosedByBroker:
        return 0, 0
    channel.close()
    return declared.consumer_count, declared.message_count
