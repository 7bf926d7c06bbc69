"""Read failed mail on RabbitMQ without using up deliveries: take, publish again with a confirm, then acknowledge.

A message that is given back counts as delivered, and a quorum queue drops it above its delivery limit. So nothing is
given back: each message moves to the tail of its queue as a new one. A crash between confirm and acknowledgement leaves
two copies under one job key, which the next walk merges.
"""

import contextlib
import hashlib
import json
import struct
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dramatiq import Message
from dramatiq.common import dq_name, xq_name
from dramatiq.errors import DecodeError
from pika.data import encode_value
from pika.exceptions import ChannelClosedByBroker, UnsupportedAMQPFieldException

from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.message.storage import DamagedPayload, NewerPayload, Payload, join, split
from openviper.core.email.queue.job import ACTOR, FailedJob, Progress, message_id_of
from openviper.core.email.queue.names import QUEUE, is_mail_queue
from openviper.core.email.queue.publisher import Publisher
from openviper.tasks.encoder import Sealed

if TYPE_CHECKING:
    import pika

__all__ = [
    "DEAD_MS",
    "FAILED_QUEUE",
    "FailedMessage",
    "FailedQueue",
    "confirmed",
    "encode",
    "own_queue",
    "read_details",
    "stored_queue",
]

FAILED_QUEUE = f"{QUEUE}.failed"
DEAD_MS = 7 * 24 * 3600 * 1000  # as Dramatiq declares it

_READER = f"{FAILED_QUEUE}.reader"
_READER_LIMIT = 120.0  # RabbitMQ ends the connection of a silent reader after 60 seconds
_PROBE_LIMIT = 5.0
_CONFIRM_LIMIT = 30.0
# A quorum queue's acknowledgements wait in the channel when 32 are pending, and are lost if it closes then: the
# messages would come back beside their copies. The next basic_get waits for the pending ones.
_BATCH_MESSAGES = 16
_BATCH_BYTES = 8_000_000
_FAR_FUTURE = 1e11  # Unix seconds

_EXPIRES_AT = "openviper-expires-at"  # Unix milliseconds
_WALK = "openviper-walk"

_UNREADABLE = (
    DecodeError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


@dataclass(frozen=True, slots=True)
class FailedMessage:
    """A failed message as it is stored. ``due_at``: Unix seconds for which it was scheduled; None: at once."""

    key: str
    job: FailedJob
    due_at: float | None
    sealed: Sealed

    @property
    def identity(self) -> str:
        """Return what copies share, and other messages to which a sender gave the same Message-ID do not."""
        return f"{self.key} {hashlib.sha256(self.sealed).hexdigest()}"


class FailedQueue:
    """The failed messages, for as long as ``connection`` is open; one reader at a time.

    Those of all mailers are in one queue. Dead letters of ``queues`` are moved there first.

    Raises:
        QueueUnavailable: another reader does not end, or RabbitMQ confirms nothing. Nothing has been taken.
    """

    def __init__(self, connection: "pika.BlockingConnection", publisher: Publisher, queues: Iterable[str]) -> None:
        self._connection = connection
        self._publisher = publisher
        self._walk_id = ""
        self._lock()
        # During a memory or disk alarm, messages that were taken could only be given back, which counts as a delivery.
        # RabbitMQ blocks a connection at its first message, which it still confirms.
        for _ in range(2):
            self._confirmed([publisher.publish(_READER, b"")], _PROBE_LIMIT)
        for queue in queues:
            self._adopt_dead_letters(queue)

    def walk(
        self,
        decide: "Callable[[FailedMessage], Future[None] | bytes | None]",
        latest: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """Call ``decide`` for each message, not for copies, and return when each message failed last.

        ``decide`` returns None to keep the message, its new body, or a future: once that has a result, the message is
        dropped.
        ``latest``: the result of an earlier walk; copies that are older are dropped undecided. Without it an older copy
        may be decided before the newer one.

        Raises:
            QueueUnavailable: RabbitMQ confirms nothing any more. What was not confirmed is still in the queue.
        """
        failed_at = dict(latest or {})
        seen: set[str] = set()

        def settle(properties: "pika.BasicProperties", body: bytes) -> "Future[None]":
            message = _read_failed(body)
            now = time.time()
            expires_at = _expires_at(properties, now if message is None else message.job.failed_at)
            if expires_at is not None and expires_at <= now:
                return confirmed()
            if message is not None:
                identity = message.identity
                when = failed_at.get(identity, message.job.failed_at)
                if message.job.failed_at < when or (identity in seen and message.job.failed_at == when):
                    return confirmed()
                failed_at[identity] = message.job.failed_at
                seen.add(identity)
                decided = decide(message)
                if isinstance(decided, bytes):
                    body = decided
                elif decided is not None:
                    return decided
            return self._publish(FAILED_QUEUE, body, expires_at)

        self._walk(FAILED_QUEUE, settle)
        return failed_at

    def _adopt_dead_letters(self, queue: str) -> None:
        """Move mail of ``queue`` that RabbitMQ gave up, or a worker rejected, to the failed mail.

        Other messages stay.
        """

        def adopt(properties: "pika.BasicProperties", body: bytes) -> "Future[None]":
            death = _Death.of(properties)
            expires_at = _expires_at(properties, death.at)
            expires_at = death.at + DEAD_MS / 1000 if expires_at is None else expires_at
            adopted = _adopted(body, death, queue)
            if adopted is None:
                return self._publish(xq_name(queue), body, expires_at, properties.headers)
            return self._publish(FAILED_QUEUE, adopted, expires_at)

        self._walk(xq_name(queue), adopt)

    def _walk(self, queue: str, settle: "Callable[[pika.BasicProperties, bytes], Future[None]]") -> None:
        self._walk_id = uuid.uuid4().hex
        channel = self._connection.channel()
        futures: list[Future[None]] = []
        tag, size, ended = 0, 0, False
        while not ended:
            try:
                method, properties, body = channel.basic_get(queue)
            except ChannelClosedByBroker as error:
                if error.reply_code == 404:  # never declared
                    return
                raise
            ended = method is None
            if method is not None:
                tag, size = method.delivery_tag, size + len(body)
                if (properties.headers or {}).get(_WALK) == self._walk_id:
                    # The walk has come round to its own first message.
                    ended = True
                    futures.append(self._publish(queue, body, _expires_at(properties, time.time()), properties.headers))
                else:
                    futures.append(settle(properties, body))
            if futures and (ended or len(futures) >= _BATCH_MESSAGES or size >= _BATCH_BYTES):
                self._confirmed(futures, _CONFIRM_LIMIT)
                channel.basic_ack(tag, multiple=True)
                futures, size = [], 0
        channel.close()

    def _publish(
        self, queue: str, body: bytes, expires_at: float | None, headers: Mapping[str, Any] | None = None
    ) -> "Future[None]":
        more = {
            name: value for name, value in (headers or {}).items() if name != "x-delivery-count" and _can_send(value)
        }
        more[_WALK] = self._walk_id
        expires_ms = None
        if expires_at is not None:
            more[_EXPIRES_AT] = int(expires_at * 1000)
            expires_ms = max(1, int((expires_at - time.time()) * 1000))
        return self._publisher.publish(queue, body, expires_ms=expires_ms, headers=more)

    def _confirmed(self, futures: "list[Future[None]]", limit: float) -> None:
        deadline = time.monotonic() + limit
        while wait(futures, min(1.0, limit)).not_done:
            self._connection.process_data_events(0)  # answers heartbeats
            if time.monotonic() > deadline:
                self._publisher.drop()
                raise QueueUnavailable(
                    f"RabbitMQ confirmed nothing for {limit:.0f} s (a memory or disk alarm?); no failed message is lost"
                )
        for future in futures:
            future.result()

    def _lock(self) -> None:
        """Wait until no other process reads: the messages that it has taken would be missing here."""
        deadline = time.monotonic() + _READER_LIMIT
        while True:
            channel = self._connection.channel()
            try:
                channel.queue_declare(_READER, exclusive=True, arguments={"x-queue-type": "classic"})
            except ChannelClosedByBroker as error:
                if error.reply_code != 405:  # RESOURCE_LOCKED
                    raise
                if time.monotonic() > deadline:
                    raise QueueUnavailable(
                        "RabbitMQ: another command is reading the failed messages; repeat yours when it has ended"
                    ) from None
                self._connection.sleep(0.1)
            else:
                channel.close()
                return


@dataclass(frozen=True, slots=True)
class _Death:
    """Why RabbitMQ moved a message to the dead letters, from which queue, and when (Unix seconds)."""

    reason: str
    queue: str
    at: float

    @classmethod
    def of(cls, properties: "pika.BasicProperties") -> "_Death":
        deaths = (properties.headers or {}).get("x-death")
        last = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
        at = last.get("time")
        moment = at.timestamp() if isinstance(at, datetime) else time.time()
        return cls(str(last.get("reason", "unknown")), str(last.get("queue", "")), moment)

    @property
    def text(self) -> str:
        """Return the reason as words for a person."""
        if self.reason == "delivery_limit":
            return "RabbitMQ gave it up: workers died or stopped with it more often than the delivery limit allows"
        if self.reason == "rejected":
            return "a worker could not process it; the worker's log says why"
        return f"RabbitMQ gave it up: {self.reason}"


def encode(
    key: str, details: Mapping[str, Any], sealed: Sealed, *, queue: str = QUEUE, eta: int | None = None
) -> bytes:
    """Return the Dramatiq message that carries a job. ``eta``: Unix milliseconds before which no worker begins it."""
    message: Message[Any] = Message(
        queue_name=queue if eta is None else dq_name(queue),
        actor_name=ACTOR,
        args=(key, Sealed(json.dumps(details).encode()), sealed),
        kwargs={},
        options={} if eta is None else {"eta": eta},
    )
    return message.encode()


def own_queue(queue: str) -> dict[str, str]:
    """Return what a message's details say of its queue: nothing of the default mailer's, as earlier versions do."""
    return {} if queue == QUEUE else {"queue": queue}


def stored_queue(details: Mapping[str, Any]) -> str:
    """Return the queue that a message's details name; the default mailer's if they name none."""
    queue = details.get("queue")
    return queue if is_mail_queue(queue) else QUEUE


def read_details(sealed: Sealed) -> dict[str, Any]:
    """Return a queued message's details: Message-ID, progress and due time.

    Raises:
        DamagedPayload: they cannot be read.
    """
    try:
        details: dict[str, Any] = json.loads(sealed)
        texts = isinstance(details["message_id"], str) and isinstance(details["progress"], str)
        if texts and isinstance(details["due_at"], int | float | None):
            return details
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise DamagedPayload("its details cannot be read")


def _read_failed(body: bytes) -> FailedMessage | None:
    """Return the failed message; None if it cannot be read."""
    try:
        key, sealed_details, sealed = Message.decode(body).args
        details = json.loads(sealed_details)
        progress = Progress.from_json(details["progress"])
        job = FailedJob(
            message_id=details["message_id"],
            failed_at=float(details["failed_at"]),
            reason=details["reason"],
            uncertain=bool(details["uncertain"]) or progress.uncertain or bool(progress.unconfirmed),
            progress=progress,
            queue=stored_queue(details),
        )
        due_at = details.get("due_at")
        texts = all(isinstance(text, str) for text in (key, job.message_id, job.reason))
        if not texts or not 0 <= job.failed_at < _FAR_FUTURE or not isinstance(due_at, int | float | None):
            return None
    except _UNREADABLE:
        return None
    with contextlib.suppress(DamagedPayload, NewerPayload):
        # Without bodies and attachments: a list of a thousand fits into memory whatever they weigh.
        job = job._replace(payload=Payload(split(sealed).head, ()))
    return FailedMessage(key, job, due_at, sealed)


def _adopted(body: bytes, death: _Death, queue: str) -> bytes | None:
    """Return a dead letter of ``queue`` as a failed message; None if it is not queued mail."""
    try:
        message: Message[Any] = Message.decode(body)
        key, sealed_details, sealed = message.args
        if message.actor_name != ACTOR or not isinstance(key, str) or not isinstance(sealed, Sealed):
            return None
    except _UNREADABLE:
        return None
    details: dict[str, Any] = {
        "message_id": message_id_of(key),
        "progress": Progress(death.at).to_json(),
        "due_at": None,
    }
    with contextlib.suppress(DamagedPayload):
        details = read_details(sealed_details)
    with contextlib.suppress(DamagedPayload, NewerPayload):
        payload = split(sealed)
        if payload.sensitive:
            sealed = Sealed(join(payload.without_content()))
    return encode(
        key,
        {
            "message_id": details["message_id"],
            "progress": details["progress"],
            "due_at": details["due_at"],
            "reason": death.text,
            "failed_at": death.at,
            # No worker had begun with a message that was still waiting for its time.
            "uncertain": death.queue != dq_name(queue),
            **own_queue(queue),
        },
        sealed,
    )


def _expires_at(properties: "pika.BasicProperties", stored_at: float) -> float | None:
    """Return the Unix seconds at which the message expires; None: never. Publishing it again does not renew it."""
    recorded = (properties.headers or {}).get(_EXPIRES_AT)
    if type(recorded) is int:
        return recorded / 1000
    if properties.expiration is None:
        return None
    return stored_at + int(properties.expiration) / 1000


def _can_send(value: Any) -> bool:
    """True if pika can write the header's value: it reads more types than it writes, among them floats."""
    try:
        encode_value([], value)
    except (UnsupportedAMQPFieldException, struct.error, ValueError, TypeError, OverflowError):
        return False
    return True


def confirmed() -> "Future[None]":
    """Return a resolved future: with it ``decide`` drops a message at once."""
    future: Future[None] = Future()
    future.set_result(None)
    return future
