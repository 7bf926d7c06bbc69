"""Keep jobs on RabbitMQ: each message travels whole, in a Dramatiq message on durable queues."""

import contextlib
import hashlib
import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Any, NoReturn

import pika
from dramatiq.common import dq_name, xq_name
from dramatiq.middleware import SkipMessage
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError, ChannelClosedByBroker

from openviper.backoff import Backoff
from openviper.core.email.errors import InvalidMessage, QueueUnavailable
from openviper.core.email.message.storage import DamagedPayload, NewerPayload, join, split
from openviper.core.email.queue.job import (
    QUEUE,
    AddResult,
    ClaimedJob,
    FailedJob,
    NewJob,
    Progress,
    QueueStats,
    RejectedTicket,
    message_id_of,
)
from openviper.core.email.queue.publisher import Declaration, Publisher, PublishRefused, alarm_text, reason_of
from openviper.core.email.queue.rabbitmq_claims import Claims
from openviper.core.email.queue.rabbitmq_failed import (
    DEAD_MS,
    FAILED_QUEUE,
    FailedMessage,
    FailedQueue,
    confirmed,
    encode,
    read_details,
)
from openviper.tasks import TaskSettings, get_broker
from openviper.tasks.encoder import Sealed
from openviper.tasks.rabbitmq_broker import NOBODY, connection_parameters

__all__ = ["LONGEST_HOP", "RabbitmqJobStore"]

# RabbitMQ closes a channel with a message unacknowledged for 30 minutes, and workers hold delayed ones.
LONGEST_HOP = 900.0

logger = logging.getLogger("openviper.email")

_ACCESS_REFUSED, _NOT_FOUND = 403, 404
_MOST_FAILED = 1000
_CONFIRM_LIMIT = 30.0
_MOST_UNCONFIRMED = 4_000_000  # bytes of a batch
_STEP = 1.0  # seconds between two looks at an alarm and at the worker's end
_MOST_REFUSALS = 5  # in a row, of one message


class RabbitmqJobStore:
    """The job store of ``settings``; connects at first use."""

    def __init__(self, settings: TaskSettings) -> None:
        self._settings = settings
        self._claims = Claims(self._connect)
        self._told: set[str] = set()
        parameters = connection_parameters(settings, limit=1.0)
        parameters.blocked_connection_timeout = None  # what a worker has published is accepted when the alarm ends
        dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": xq_name(QUEUE)}
        self._declarations = (
            Declaration(QUEUE, dead),
            Declaration(dq_name(QUEUE), dead),
            Declaration(xq_name(QUEUE), {"x-message-ttl": DEAD_MS}),
            Declaration(FAILED_QUEUE, {}),
        )
        self._publisher = Publisher(parameters, self._declarations)

    def probe(self, *, draining: bool = False) -> None:
        """Publish to a short-lived queue and wait for the confirm, which alarms and missing rights prevent.

        ``draining``: only ask whether the queue can be read, which an alarm does not prevent.
        """
        with self._connection(limit=1.0, blocked_limit=1.0) as connection:
            _require_readable(connection, QUEUE)
            if draining:
                return
            alarms: list[str] = []
            connection.add_on_connection_blocked_callback(
                lambda _connection, frame: alarms.append(str(frame.method.reason))
            )
            for declaration in self._declarations:
                _ensure(connection, declaration)
            channel, own = _own_queue(connection)
            # With an alarm the first message is still confirmed, since it has no body, and nothing after it is read.
            channel.basic_publish("", own, b"")
            connection.process_data_events(0)
            if alarms:
                raise QueueUnavailable(f"RabbitMQ: {alarm_text(alarms[0])}")

    def add(self, job: NewJob, *, deadline: float) -> bool:
        """Return True once RabbitMQ has confirmed it. A paused server accepts, when it goes on, all it has received."""
        get_broker()  # sets the encoder
        return self._await_confirm(self._send_job(job), deadline)

    def add_many(self, jobs: Iterable[NewJob], *, deadline: float) -> Iterator[tuple[int, AddResult]]:
        """Publish jobs one after another, and wait for confirms only when some megabytes are unconfirmed."""
        get_broker()  # sets the encoder
        unconfirmed: list[tuple[int, Future[None]]] = []
        size = 0
        for position, job in enumerate(jobs):
            if time.monotonic() > deadline:
                yield position, QueueUnavailable("RabbitMQ is too slow")
                continue
            unconfirmed.append((position, self._send_job(job)))
            size += len(job.payload.head) + sum(map(len, job.payload.parts))
            if size >= _MOST_UNCONFIRMED:
                yield from self._results(unconfirmed, deadline)
                unconfirmed, size = [], 0
        yield from self._results(unconfirmed, deadline)

    def _results(
        self, unconfirmed: "list[tuple[int, Future[None]]]", deadline: float
    ) -> Iterator[tuple[int, AddResult]]:
        for position, future in unconfirmed:
            try:
                yield position, self._await_confirm(future, deadline)
            except (InvalidMessage, QueueUnavailable) as error:
                yield position, error

    def _send_job(self, job: NewJob) -> "Future[None]":
        delay = 0.0 if job.due_at is None else job.due_at - time.time()
        return self._send(job.key, job.message_id, job.progress, Sealed(join(job.payload)), job.due_at, delay)

    def _await_confirm(self, future: "Future[None]", deadline: float) -> bool:
        """Return True once RabbitMQ has confirmed it.

        Raises:
            InvalidMessage: it is too large.
            QueueUnavailable: it was not confirmed by ``deadline``, or the connection has ended.
        """
        try:
            future.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            future.cancel()
            self._publisher.drop()
            raise QueueUnavailable("RabbitMQ did not confirm the message in time") from None
        except CancelledError:
            raise QueueUnavailable("RabbitMQ: the message was withdrawn before it was sent") from None
        return True

    def claim(self, *ticket: Any) -> ClaimedJob | None:
        """Return the job; one whose time has not come is published for a further hop instead.

        What a worker may have died with is recorded before it is attempted again, so that each death counts.
        """
        if [type(part) for part in ticket] != [str, Sealed, Sealed]:
            return _unreadable(ticket)
        key, sealed_details, sealed = ticket
        payload, due_at = None, None
        problem: DamagedPayload | NewerPayload | None = None
        message_id, progress = message_id_of(key), Progress(time.time())
        try:
            details = read_details(sealed_details)
            message_id, due_at = details["message_id"], details["due_at"]
            progress = Progress.from_json(details["progress"])
            payload = split(sealed)
        except (DamagedPayload, NewerPayload) as error:
            problem = error
        if due_at is not None and due_at > time.time():
            due = due_at
            self._publish(lambda: self._send(key, message_id, progress, sealed, due, due - time.time(), patient=True))
            return None
        redelivered = bool(self._broker().redelivered)
        if redelivered or progress.uncertain:
            deaths = self._claims.begin(key)
            # The first death leaves no record: the message may have been delivered, or never begun.
            progress = replace(progress, attempts=progress.attempts + deaths, uncertain=True)
            return ClaimedJob(key, message_id, progress, payload, deaths > 0, problem, sealed)
        return ClaimedJob(key, message_id, progress, payload, False, problem, sealed)

    def finish(self, job: ClaimedJob, *, remember: float) -> None:  # noqa: ARG002 - RabbitMQ cannot
        """Leave the message to Dramatiq, which acknowledges it."""
        self._end_claim(job)

    def retry(self, job: ClaimedJob, progress: Progress, *, delay: float) -> None:
        """Publish it anew, confirmed before the old one is acknowledged."""
        self._end_claim(job)  # before: a worker that dies between publishing and acknowledging leaves a copy
        due_at = time.time() + delay
        self._publish(lambda: self._send(job.key, job.message_id, progress, job.token, due_at, delay, patient=True))

    def fail(self, job: ClaimedJob, progress: Progress, reason: str, *, keep: float, uncertain: bool) -> None:
        """Publish it to the queue of failed messages, where it expires."""
        self._end_claim(job)
        if keep == 0:
            return
        details = {
            "message_id": job.message_id,
            "progress": progress.to_json(),
            "reason": reason,
            "failed_at": time.time(),
            "uncertain": uncertain,
        }
        sealed = job.token
        if job.payload is not None and job.sensitive:
            sealed = Sealed(join(job.payload.without_content()))
        body = encode(job.key, details, sealed)
        self._publish(lambda: self._publisher.publish(FAILED_QUEUE, body, expires_ms=int(keep * 1000), patient=True))

    def close(self) -> None:
        """Close the publisher's connection."""
        self._publisher.close()

    def consumers(self) -> int:
        """Count the queue's consumers."""
        with self._connection(limit=1.0) as connection:
            return _declare_passively(connection, QUEUE)[0]

    def stats(self) -> QueueStats:
        """Count as the queues do: without delayed mail that workers hold, and with dead letters as failed."""
        with self._connection(limit=5.0) as connection:
            consumers, waiting = _declare_passively(connection, QUEUE)
            _, later = _declare_passively(connection, dq_name(QUEUE))
            _, failed = _declare_passively(connection, FAILED_QUEUE)
            _, dead = _declare_passively(connection, xq_name(QUEUE))
        return QueueStats(consumers, waiting, later, failed + dead, None)

    def failed(self, limit: int) -> list[FailedJob]:
        """Return the oldest, at most 1,000; mail that RabbitMQ itself gave up is among them."""
        limit = min(limit, _MOST_FAILED)
        jobs: dict[str, FailedJob] = {}

        def collect(message: FailedMessage) -> None:
            jobs[message.identity] = message.job
            if len(jobs) > 2 * limit:
                for key in sorted(jobs, key=lambda key: jobs[key].failed_at)[limit:]:
                    del jobs[key]

        with self._failed_queue() as queue:
            queue.walk(collect)
        return sorted(jobs.values(), key=lambda job: job.failed_at)[:limit]

    def retry_failed(
        self,
        message_ids: frozenset[str] | None,
        on_each: Callable[[], object] = lambda: None,
        *,
        on_dropped: Callable[[], object] = lambda: None,
    ) -> int:
        """Publish them anew, then acknowledge the failed ones. Scheduled mail waits for its time again."""
        count = 0

        def retry(message: FailedMessage) -> "Future[None] | None":
            nonlocal count
            on_each()
            job, now = message.job, time.time()
            if message_ids is not None and job.message_id not in message_ids:
                return None
            if job.content_dropped:
                on_dropped()
                return None
            count += 1
            if message.due_at is not None and message.due_at > now and job.progress.attempts == 0:
                delay = message.due_at - now
                return self._send(message.key, job.message_id, job.progress, message.sealed, message.due_at, delay)
            return self._send(message.key, job.message_id, job.progress.restart(now=now), message.sealed, None, 0.0)

        with self._failed_queue() as queue:
            queue.walk(retry, queue.walk(lambda _: None))
        return count

    def purge_failed(self, message_ids: frozenset[str] | None, on_each: Callable[[], object] = lambda: None) -> int:
        """Drop them, copies included."""
        purged: set[str] = set()

        def purge(message: FailedMessage) -> "Future[None] | None":
            on_each()
            if message_ids is not None and message.job.message_id not in message_ids:
                return None
            purged.add(message.identity)
            return confirmed()

        with self._failed_queue() as queue:
            queue.walk(purge)
        return len(purged)

    @contextlib.contextmanager
    def _failed_queue(self) -> Iterator[FailedQueue]:
        get_broker()  # sets the encoder
        with self._connection(limit=5.0) as connection:
            yield FailedQueue(connection, self._publisher)

    def _end_claim(self, job: ClaimedJob) -> None:
        if job.progress.uncertain:  # else none was begun
            self._claims.end(job.key)

    def _broker(self) -> Any:
        return get_broker()

    def _send(
        self,
        key: str,
        message_id: str,
        progress: Progress,
        sealed: Sealed,
        due_at: float | None,
        delay: float,
        *,
        patient: bool = False,
    ) -> "Future[None]":
        details = {"message_id": message_id, "progress": progress.to_json(), "due_at": due_at}
        if delay <= 0:
            return self._publisher.publish(QUEUE, encode(key, details, sealed), patient=patient)
        eta = math.ceil((time.time() + min(delay, LONGEST_HOP)) * 1000)
        return self._publisher.publish(dq_name(QUEUE), encode(key, details, sealed, eta=eta), patient=patient)

    def _publish(self, send: "Callable[[], Future[None]]") -> None:
        """Publish until RabbitMQ confirms: only then may the old message be acknowledged.

        Raises:
            RejectedTicket: it refuses the message for good; the old one then becomes a dead letter.
            SkipMessage: the worker stops; the next one gets the old message.
        """
        backoff, refusals = Backoff(first=0.2, longest=5.0), 0
        while True:
            future = send()
            try:
                self._wait_confirmed(future)
            except InvalidMessage as error:  # it is too large
                self._tell_once(str(error))
                raise RejectedTicket(str(error)) from error
            except QueueUnavailable as error:
                refusals = refusals + 1 if isinstance(error, PublishRefused) else 0
                self._tell_once(str(error))
                if refusals == _MOST_REFUSALS:
                    raise RejectedTicket(str(error)) from error
                if self._broker().stopping.wait(backoff.failed()):
                    self._give_back()
            else:
                self._told.clear()
                return

    def _wait_confirmed(self, future: "Future[None]") -> None:
        deadline = time.monotonic() + _CONFIRM_LIMIT
        stopping = self._broker().stopping
        while not future.done():
            with contextlib.suppress(TimeoutError):
                future.result(_STEP)
                return
            if self._publisher.blocked:  # it is accepted when the alarm ends; a second one would be a duplicate
                deadline = time.monotonic() + _CONFIRM_LIMIT
                if stopping.is_set() and future.cancel():
                    self._give_back()
            elif time.monotonic() > deadline:
                self._publisher.drop()
                raise QueueUnavailable("RabbitMQ did not confirm a message in time")
        future.result()

    def _give_back(self) -> NoReturn:
        self._broker().leave_unacknowledged()
        raise SkipMessage("the worker stops, and RabbitMQ accepts nothing")

    def _tell_once(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            logger.warning("a worker waits until RabbitMQ accepts an attempt's result: %s", reason)

    def _connect(self) -> "pika.BlockingConnection":
        parameters = connection_parameters(self._settings, limit=5.0)
        parameters.blocked_connection_timeout = 1.0
        return pika.BlockingConnection(parameters)

    @contextlib.contextmanager
    def _connection(self, *, limit: float, blocked_limit: float = 60.0) -> "Iterator[pika.BlockingConnection]":
        """``blocked_limit``: seconds that RabbitMQ may hold publishing up, as it does while it has an alarm."""
        try:
            parameters = connection_parameters(self._settings, limit=limit)
            parameters.blocked_connection_timeout = blocked_limit
            connection = pika.BlockingConnection(parameters)
            try:
                yield connection
            finally:
                with contextlib.suppress(AMQPError):
                    connection.close()
        except (AMQPError, AMQPConnectorException, OSError) as error:
            raise QueueUnavailable(f"RabbitMQ: {reason_of(error)}") from error


def _unreadable(ticket: tuple[Any, ...]) -> ClaimedJob:
    """Return a job for the arguments of a message that is not queued mail, so that it is kept as failed."""
    content = json.dumps(ticket, default=repr).encode()
    key = f"{hashlib.sha256(content).hexdigest()[:32]}@unreadable/0"
    problem = DamagedPayload("the message on the queue is not mail")
    return ClaimedJob(key, message_id_of(key), Progress(time.time()), None, False, problem, Sealed(content))


def _require_readable(connection: "pika.BlockingConnection", queue: str) -> None:
    """Ask about ``queue``, which may not be declared yet.

    Raises:
        ChannelClosedByBroker: it may not be used.
    """
    try:
        connection.channel().queue_declare(queue, passive=True)
    except ChannelClosedByBroker as error:
        if error.reply_code != _NOT_FOUND:
            raise


def _ensure(connection: "pika.BlockingConnection", declaration: Declaration) -> None:
    """Declare a queue as a send does, if it is not there.

    Raises:
        ChannelClosedByBroker: the user may not.
    """
    channel = connection.channel()
    try:
        channel.queue_declare(declaration.name, passive=True)
    except ChannelClosedByBroker as error:
        if error.reply_code != _NOT_FOUND:
            raise
        channel = connection.channel()
        channel.queue_declare(declaration.name, durable=True, arguments=declaration.arguments)
    channel.close()


def _own_queue(connection: "pika.BlockingConnection") -> tuple[Any, str]:
    """Return a channel with confirms and the name of a queue that ends with the connection.

    For a user who may declare no queue it is a name that no queue has: what is published to it is confirmed as well.
    """
    own = f"{QUEUE}.probe.{secrets.token_hex(8)}"
    channel = connection.channel()
    try:
        channel.queue_declare(own, exclusive=True, auto_delete=True)
    except ChannelClosedByBroker as error:
        if error.reply_code != _ACCESS_REFUSED:
            raise
        channel, own = connection.channel(), NOBODY
    channel.confirm_delivery()
    return channel, own


def _declare_passively(connection: "pika.BlockingConnection", queue: str) -> tuple[int, int]:
    """Return the numbers of consumers and messages of ``queue``; 0 and 0 when it was never declared."""
    channel = connection.channel()
    try:
        declared = channel.queue_declare(queue, passive=True).method
    except ChannelClosedByBroker:
        return 0, 0
    channel.close()
    return declared.consumer_count, declared.message_count
