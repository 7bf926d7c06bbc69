"""Keep jobs on RabbitMQ: each message travels whole, in a Dramatiq message on durable queues."""

import contextlib
import hashlib
import json
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from functools import reduce
from typing import Any, NoReturn

import pika
from dramatiq.common import dq_name, xq_name
from dramatiq.middleware import SkipMessage
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError, ChannelClosedByBroker

from openviper.backoff import Backoff
from openviper.core.email.errors import InvalidMessage, QueueUnavailable
from openviper.core.email.message.storage import DamagedPayload, NewerPayload, Payload, join, split
from openviper.core.email.queue.found import Erased, FoundMail, Wanted
from openviper.core.email.queue.job import (
    AddResult,
    ClaimedJob,
    FailedJob,
    NewJob,
    Progress,
    QueueStats,
    RejectedTicket,
    message_id_of,
)
from openviper.core.email.queue.names import QUEUE, configured_queues
from openviper.core.email.queue.publisher import Declaration, Publisher, PublishRefused, alarm_text, reason_of
from openviper.core.email.queue.rabbitmq_claims import Claims
from openviper.core.email.queue.rabbitmq_failed import (
    DEAD_MS,
    FAILED_QUEUE,
    FailedMessage,
    FailedQueue,
    confirmed,
    encode,
    own_queue,
    read_details,
    stored_queue,
)
from openviper.core.email.queue.traces import (
    concern,
    erase_from_head,
    erase_from_progress,
    erase_from_text,
    found_failed,
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

_Unconfirmed = tuple[int, str, "Future[None]"]
"""A published job: its position, its queue, and the confirm."""


class RabbitmqJobStore:
    """The job store of ``settings``; connects at first use."""

    def __init__(self, settings: TaskSettings) -> None:
        self._settings = settings
        self._claims = Claims(self._connect)
        self._told: set[str] = set()
        self._parameters = connection_parameters(settings, limit=1.0)
        self._parameters.blocked_connection_timeout = (
            None  # what a worker has published is accepted when the alarm ends
        )
        self._lock = threading.Lock()
        self._publisher = Publisher(self._parameters, (*_declarations(QUEUE), Declaration(FAILED_QUEUE, {})))
        self._publishers = {QUEUE: self._publisher}

    def probe(self, *, draining: bool = False) -> None:
        """Publish to a short-lived queue and wait for the confirm, which alarms and missing rights prevent.

        ``draining``: only ask whether the queues can be read, which an alarm does not prevent.
        """
        with self._connection(limit=1.0, blocked_limit=1.0) as connection:
            for queue in configured_queues() if draining else (QUEUE,):
                _require_readable(connection, queue)
            if draining:
                return
            alarms: list[str] = []
            connection.add_on_connection_blocked_callback(
                lambda _connection, frame: alarms.append(str(frame.method.reason))
            )
            for declaration in (*_declarations(QUEUE), Declaration(FAILED_QUEUE, {})):
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
        return self._await_confirm(self._send_job(job), job.queue, deadline)

    def add_many(self, jobs: Iterable[NewJob], *, deadline: float) -> Iterator[tuple[int, AddResult]]:
        """Publish jobs one after another, and wait for confirms only when some megabytes are unconfirmed."""
        get_broker()  # sets the encoder
        unconfirmed: list[_Unconfirmed] = []
        size = 0
        for position, job in enumerate(jobs):
            if time.monotonic() > deadline:
                yield position, QueueUnavailable("RabbitMQ is too slow")
                continue
            unconfirmed.append((position, job.queue, self._send_job(job)))
            size += len(job.payload.head) + sum(map(len, job.payload.parts))
            if size >= _MOST_UNCONFIRMED:
                yield from self._results(unconfirmed, deadline)
                unconfirmed, size = [], 0
        yield from self._results(unconfirmed, deadline)

    def _results(self, unconfirmed: "list[_Unconfirmed]", deadline: float) -> Iterator[tuple[int, AddResult]]:
        for position, queue, future in unconfirmed:
            try:
                yield position, self._await_confirm(future, queue, deadline)
            except (InvalidMessage, QueueUnavailable) as error:
                yield position, error

    def _send_job(self, job: NewJob) -> "Future[None]":
        delay = 0.0 if job.due_at is None else job.due_at - time.time()
        sealed = Sealed(join(job.payload))
        return self._send(job.queue, job.key, job.message_id, job.progress, sealed, job.due_at, delay)

    def _await_confirm(self, future: "Future[None]", queue: str, deadline: float) -> bool:
        """Return True once RabbitMQ has confirmed what was published to ``queue``.

        Raises:
            InvalidMessage: it is too large.
            QueueUnavailable: it was not confirmed by ``deadline``, or the connection has ended.
        """
        try:
            future.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            future.cancel()
            self._publisher_of(queue).drop()
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
        payload, due_at, queue = None, None, QUEUE
        problem: DamagedPayload | NewerPayload | None = None
        message_id, progress = message_id_of(key), Progress(time.time())
        try:
            details = read_details(sealed_details)
            message_id, due_at, queue = details["message_id"], details["due_at"], stored_queue(details)
            progress = Progress.from_json(details["progress"])
            payload = split(sealed)
        except (DamagedPayload, NewerPayload) as error:
            problem = error
        if due_at is not None and due_at > time.time():
            due = due_at
            self._publish(
                queue,
                lambda: self._send(queue, key, message_id, progress, sealed, due, due - time.time(), patient=True),
            )
            return None
        redelivered = bool(self._broker().redelivered)
        if redelivered or progress.uncertain:
            deaths = self._claims.begin(key)
            # The first death leaves no record: the message may have been delivered, or never begun.
            progress = replace(progress, attempts=progress.attempts + deaths, uncertain=True)
            return ClaimedJob(key, message_id, progress, payload, deaths > 0, problem, sealed, queue)
        return ClaimedJob(key, message_id, progress, payload, False, problem, sealed, queue)

    def finish(self, job: ClaimedJob, *, remember: float) -> None:  # noqa: ARG002 - RabbitMQ cannot
        """Leave the message to Dramatiq, which acknowledges it."""
        self._end_claim(job)

    def retry(self, job: ClaimedJob, progress: Progress, *, delay: float) -> None:
        """Publish it anew, confirmed before the old one is acknowledged."""
        self._end_claim(job)  # before: a worker that dies between publishing and acknowledging leaves a copy
        due_at = time.time() + delay
        self._publish(
            job.queue,
            lambda: self._send(job.queue, job.key, job.message_id, progress, job.token, due_at, delay, patient=True),
        )

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
            **own_queue(job.queue),
        }
        sealed = job.token
        if job.payload is not None and job.sensitive:
            sealed = Sealed(join(job.payload.without_content()))
        body, keep_ms = encode(job.key, details, sealed), int(keep * 1000)
        self._publish(QUEUE, lambda: self._publisher.publish(FAILED_QUEUE, body, expires_ms=keep_ms, patient=True))

    def close(self) -> None:
        """Close the publishers' connections."""
        with self._lock:
            publishers = list(self._publishers.values())
        for publisher in publishers:
            publisher.close()

    def consumers(self, queue: str = QUEUE) -> int:
        """Count the consumers of ``queue``."""
        with self._connection(limit=1.0) as connection:
            return _declare_passively(connection, queue)[0]

    def queues(self) -> tuple[str, ...]:
        """Return the queues of the mailers that the settings name, and those to which this process has published."""
        with self._lock:
            return tuple(dict.fromkeys((*configured_queues(), *self._publishers)))

    def stats(self, queue: str | None = None) -> QueueStats:
        """Count as the queues do: without delayed mail that workers hold, and with dead letters as failed.

        Of one queue, mail that was given up does not count as failed: the queue of failed mail is shared by all.
        """
        names = self.queues() if queue is None else (queue,)
        with self._connection(limit=5.0) as connection:
            counts = [_declare_passively(connection, name) for name in names]
            later = sum(_declare_passively(connection, dq_name(name))[1] for name in names)
            failed = sum(_declare_passively(connection, xq_name(name))[1] for name in names)
            failed += _declare_passively(connection, FAILED_QUEUE)[1] if queue is None else 0
        return QueueStats(counts[0][0], sum(waiting for _, waiting in counts), later, failed, None)

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

    def find(self, wanted: Wanted) -> list[FoundMail]:
        """Return failed messages only: no queue of RabbitMQ can be read without taking what is in it."""
        return [found_failed(job) for job in self.failed(_MOST_FAILED) if wanted.fits(job.message_id, job.head)]

    def erase(self, address: str) -> Erased:
        """Erase an address from failed messages only."""
        done: dict[str, Erased] = {}

        def erase(message: FailedMessage) -> "Future[None] | bytes | None":
            job = message.job
            how = concern(job.head, job.progress, address)
            if how == "alone":
                done[message.identity] = Erased(removed=1)
                return confirmed()
            if how == "named":
                done[message.identity] = Erased(named=1)
            if how != "shared":
                return None
            done[message.identity] = Erased(changed=1)
            payload = split(message.sealed)
            details = {
                "message_id": job.message_id,
                "progress": erase_from_progress(job.progress, address).to_json(),
                "due_at": message.due_at,
                "reason": erase_from_text(job.reason, address),
                "failed_at": job.failed_at,
                "uncertain": job.uncertain,
                **own_queue(job.queue),
            }
            return encode(
                message.key, details, Sealed(join(Payload(erase_from_head(payload.head, address), payload.parts)))
            )

        with self._failed_queue() as queue:
            queue.walk(erase)
        return reduce(Erased.plus, done.values(), Erased())

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
            progress, due_at, delay = job.progress.restart(now=now), None, 0.0
            if message.due_at is not None and message.due_at > now and job.progress.attempts == 0:
                progress, due_at, delay = job.progress, message.due_at, message.due_at - now
            return self._send(job.queue, message.key, job.message_id, progress, message.sealed, due_at, delay)

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
            yield FailedQueue(connection, self._publisher, self.queues())

    def _end_claim(self, job: ClaimedJob) -> None:
        if job.progress.uncertain:  # else none was begun
            self._claims.end(job.key)

    def _broker(self) -> Any:
        return get_broker()

    def _publisher_of(self, queue: str) -> Publisher:
        """Return the publisher of ``queue``: each has a connection of its own, so that mail does not wait for bulk."""
        with self._lock:
            if queue not in self._publishers:
                self._publishers[queue] = Publisher(self._parameters, _declarations(queue))
            return self._publishers[queue]

    def _send(
        self,
        queue: str,
        key: str,
        message_id: str,
        progress: Progress,
        sealed: Sealed,
        due_at: float | None,
        delay: float,
        *,
        patient: bool = False,
    ) -> "Future[None]":
        details = {"message_id": message_id, "progress": progress.to_json(), "due_at": due_at, **own_queue(queue)}
        publisher = self._publisher_of(queue)
        if delay <= 0:
            return publisher.publish(queue, encode(key, details, sealed, queue=queue), patient=patient)
        eta = math.ceil((time.time() + min(delay, LONGEST_HOP)) * 1000)
        return publisher.publish(dq_name(queue), encode(key, details, sealed, queue=queue, eta=eta), patient=patient)

    def _publish(self, queue: str, send: "Callable[[], Future[None]]") -> None:
        """Publish through the publisher of ``queue`` until RabbitMQ confirms.

        Only then may the old message be acknowledged.

        Raises:
            RejectedTicket: it refuses the message for good; the old one then becomes a dead letter.
            SkipMessage: the worker stops; the next one gets the old message.
        """
        backoff, refusals = Backoff(first=0.2, longest=5.0), 0
        while True:
            future = send()
            try:
                self._wait_confirmed(future, self._publisher_of(queue))
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

    def _wait_confirmed(self, future: "Future[None]", publisher: Publisher) -> None:
        deadline = time.monotonic() + _CONFIRM_LIMIT
        stopping = self._broker().stopping
        while not future.done():
            with contextlib.suppress(TimeoutError):
                future.result(_STEP)
                return
            if publisher.blocked:  # it is accepted when the alarm ends; a second one would be a duplicate
                deadline = time.monotonic() + _CONFIRM_LIMIT
                if stopping.is_set() and future.cancel():
                    self._give_back()
            elif time.monotonic() > deadline:
                publisher.drop()
                raise QueueUnavailable("RabbitMQ did not confirm a message in time")
        future.result()

    def _give_back(self) -> NoReturn:
        self._broker().leave_unacknowledged()
        raise SkipMessage("the worker is stopping while RabbitMQ accepts no messages")

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


def _declarations(queue: str) -> tuple[Declaration, ...]:
    """Return ``queue`` with its queues of delayed mail and of dead letters, as Dramatiq declares them."""
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": xq_name(queue)}
    return (
        Declaration(queue, dead),
        Declaration(dq_name(queue), dead),
        Declaration(xq_name(queue), {"x-message-ttl": DEAD_MS}),
    )


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
