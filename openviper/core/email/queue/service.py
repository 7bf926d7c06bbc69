"""Connect a process to the queue: one job store, one detector, and the threads in which both block."""

import asyncio
import atexit
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from openviper import tracing
from openviper.core.email.errors import EmailError, QueueUnavailable
from openviper.core.email.events import NOTHING
from openviper.core.email.message import OutgoingMessage, PreparedMessage
from openviper.core.email.message.model import MUST_REDIRECT
from openviper.core.email.message.storage import encode
from openviper.core.email.message.tracing import start_enqueueing, with_context
from openviper.core.email.queue.detection import Detector
from openviper.core.email.queue.job import Accepted, AddResult, NewJob, Progress, job_key
from openviper.core.email.queue.keys import KEY_LEASE, KeyClaim, KeyRecord, KeyStore, claim_for, process_keys
from openviper.core.email.queue.names import QUEUE, queue_of
from openviper.core.email.queue.remedy import START_BROKER, broker_remedy
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import OpenViperError
from openviper.tasks.settings import TaskSettings
from openviper.text import counted
from openviper.tracing import Tracer

if TYPE_CHECKING:
    from openviper.core.email.queue.job import JobStore
    from openviper.core.email.queue.redis_keys import RedisKeys

__all__ = [
    "JobQueue",
    "QueueEntry",
    "QueueService",
    "RedisKeyStore",
    "close_queue",
    "configured_broker",
    "current_key_store",
    "current_queue",
    "mark_redirected",
    "queue_service",
    "using_queue",
]

logger = logging.getLogger("openviper.email")

T = TypeVar("T")

_LIMIT = 1.8  # seconds that one send waits for the broker
_MARGIN = 0.3  # seconds from the last moment at which the broker may accept a message to giving up on it
_SLOWEST = 4_000_000  # bytes a second at which a large message must get through
_THREADS = 4
_SLACK = 3600.0  # seconds for which parts are kept beyond the time in which they can be needed


class QueueEntry(NamedTuple):
    """A message for the queue; ``due_at`` and ``expires_at`` as in :meth:`JobQueue.enqueue`.

    ``progress``: that of earlier attempts, of a message that was deferred; its age begins anew. None: there were none.
    """

    message: OutgoingMessage
    due_at: float | None = None
    expires_at: float | None = None
    progress: Progress | None = None


class JobQueue(ABC):
    """Accepts messages for the workers. Any thread and event loop may use it."""

    reads_content = True
    """True if it reads the bytes of messages; False if workers make them."""

    @property
    @abstractmethod
    def address(self) -> str:
        """Return the broker's address, without a password."""

    @property
    def keeps_keys(self) -> bool:
        """True when idempotency keys are kept here, too: a message and its key are then accepted together."""
        return False

    @property
    @abstractmethod
    def known(self) -> bool:
        """True once the broker has answered; before, ``available`` waits for an answer."""

    @abstractmethod
    def available(self) -> bool:
        """True when the broker answered the last time it was asked. The first call may block for a second."""

    def load(self) -> None:  # noqa: B027 - optional: most queues need no library
        """Import what the queue needs, which blocks, so that the first probe or send does not wait for it.

        Raises:
            MissingDependency: a library is not installed.
        """

    def ask(self) -> bool:
        """Ask the broker now, and return whether it answers; blocks, for two seconds at most."""
        return self.available()

    async def answers(self) -> bool:
        """Return ``available()`` without blocking the event loop."""
        return self.available() if self.known else await asyncio.to_thread(self.available)

    @property
    def held(self) -> bool:
        """True when what it accepts is sent only if the open transaction is committed."""
        return False

    @abstractmethod
    def consumers(self, queue: str = QUEUE) -> int:
        """Count the workers that consume ``queue`` now; blocks.

        Raises:
            QueueUnavailable: the broker does not answer.
        """

    @abstractmethod
    async def enqueue(
        self,
        message: OutgoingMessage,
        settings: EmailSettings,
        *,
        due_at: float | None = None,
        expires_at: float | None = None,
    ) -> Accepted:
        """Return once the queue has accepted ``message``; False if it had accepted the same message before.

        A record instead of True: another send has the message's idempotency key; only if ``keeps_keys``.

        ``due_at`` and ``expires_at`` are Unix seconds: not before, not after; None sets no limit.

        Raises:
            InvalidMessage: another message with its Message-ID was accepted for the same recipients, or it does not
                accept messages of this size.
            QueueUnavailable: it has not accepted the message, and will not do so later.
        """

    async def enqueue_many(self, entries: Sequence[QueueEntry], settings: EmailSettings) -> list[AddResult]:
        """Enqueue several messages, and return for each what ``enqueue`` returns or raises."""
        results: list[AddResult] = []
        for message, due_at, expires_at, _ in entries:
            try:
                results.append(await self.enqueue(message, settings, due_at=due_at, expires_at=expires_at))
            except EmailError as error:
                results.append(error)
        return results


class QueueService(JobQueue):
    """The queue on the broker that ``settings`` name; nothing is connected or imported before its first use."""

    reads_content = False

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings
        self.detector = Detector(self._probe, settings.address)
        self.key_store = RedisKeyStore(self) if self.keeps_keys else None
        self._store: JobStore | None = None
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="openviper-queue")

    @property
    def store(self) -> "JobStore":
        """Return the job store. The first call imports the client library: not on an event loop.

        Raises:
            MissingDependency: it is not installed.
        """
        with self._lock:
            if self._store is None:
                self._store = _make_store(self.settings)
            return self._store

    @property
    def address(self) -> str:
        """Return the broker's address, without a password."""
        return self.settings.address

    @property
    def known(self) -> bool:
        """True once the broker has answered."""
        return self.detector.known

    @property
    def keeps_keys(self) -> bool:
        """True on Redis."""
        return self.settings.broker == "redis"

    async def use_keys(self, use: "Callable[[RedisKeys, float], T]") -> T:
        """Call ``use`` in a thread with the keys on Redis and the moment at which this gives up.

        Raises:
            QueueUnavailable: Redis does not answer, or has not done it.
        """
        if not await self.answers():
            raise QueueUnavailable(f"{self.settings.address} does not answer")
        deadline = time.monotonic() + _LIMIT
        done = asyncio.get_running_loop().run_in_executor(self._threads, self._use_keys, use, deadline - _MARGIN)
        return await self._answer(done, _LIMIT)

    def _use_keys(self, use: "Callable[[RedisKeys, float], T]", deadline: float) -> T:
        if time.monotonic() > deadline:
            raise QueueUnavailable(f"{self.settings.address} is too slow")
        store: Any = self.store  # Redis's, the only one that keeps keys
        result: T = store.use_keys(lambda keys: use(keys, deadline))
        return result

    def load(self) -> None:
        """Import the broker's client library; blocks.

        Raises:
            MissingDependency: it is not installed.
        """
        try:
            self.store.probe  # noqa: B018 - making the store imports its client
        except OpenViperError:
            raise
        except Exception:  # of a library; the probe meets it again, and reports it
            logger.debug("the broker's client could not be made", exc_info=True)

    def available(self) -> bool:
        """True when the broker answered the last time it was asked."""
        return self.detector.available()

    def ask(self) -> bool:
        """Probe the broker, and return whether it answers; blocks."""
        return self.detector.ask()

    def close(self) -> None:
        """Finish what is being queued, then close connections and threads."""
        self._threads.shutdown()
        with self._lock:
            if self._store is not None:
                self._store.close()

    def consumers(self, queue: str = QUEUE) -> int:
        """Count the workers that consume ``queue`` now; blocks.

        Raises:
            QueueUnavailable: the broker does not answer.
        """
        return self.store.consumers(queue)

    def _probe(self) -> None:
        self.store.probe()

    def enqueue(
        self,
        message: OutgoingMessage,
        settings: EmailSettings,
        *,
        due_at: float | None = None,
        expires_at: float | None = None,
    ) -> Coroutine[Any, Any, Accepted]:
        """Return once the broker has accepted ``message``; see :meth:`JobQueue.enqueue`.

        Raises:
            InvalidMessage: another message with its Message-ID was accepted for the same recipients, or it does not
                accept messages of this size.
            QueueUnavailable: it has not, and will not do so later (RabbitMQ may, see the documentation).
        """
        if tracing.tracer is not None:
            return self._enqueue_traced(tracing.tracer, message, settings, due_at, expires_at)
        return self._enqueue(message, settings, due_at, expires_at)

    async def _enqueue_traced(
        self,
        tracer: Tracer,
        message: OutgoingMessage,
        settings: EmailSettings,
        due_at: float | None,
        expires_at: float | None,
    ) -> Accepted:
        """Enqueue in a span, which the worker's span is below."""
        queue = queue_of(message.mailer)
        with start_enqueueing(tracer, [message.prepared], self.settings.broker, queue) as span:
            traced = message._replace(prepared=with_context(message.prepared, span.context()))
            return await self._enqueue(traced, settings, due_at, expires_at)

    async def _enqueue(
        self, message: OutgoingMessage, settings: EmailSettings, due_at: float | None, expires_at: float | None
    ) -> Accepted:
        limit = _LIMIT + message.size / _SLOWEST
        deadline = time.monotonic() + limit
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(
            self._threads, self._add_job, message, settings, due_at, expires_at, deadline - _MARGIN
        )
        accepted = await self._answer(done, limit)
        if accepted is False:
            logger.warning(
                "message %s is not queued again: the same message with this Message-ID was queued before",
                message.message_id,
            )
        return accepted

    async def _answer(self, done: "asyncio.Future[T]", limit: float) -> T:
        """Wait up to ``limit`` seconds for what a thread asks the broker, and note whether it answers.

        Raises:
            QueueUnavailable: it does not.
        """
        done.add_done_callback(_retrieve_error)  # nobody else does when the sender is cancelled
        await asyncio.wait([done], timeout=limit)
        if not done.done():
            self.detector.failed("no answer in time")
            raise QueueUnavailable(f"{self.settings.address} gave no answer in time")
        try:
            result = done.result()
        except QueueUnavailable as error:
            self.detector.failed(str(error), broker_remedy(error) or START_BROKER)
            raise
        self.detector.succeeded()
        return result

    async def enqueue_many(self, entries: Sequence[QueueEntry], settings: EmailSettings) -> list[AddResult]:
        """Enqueue several messages in few round trips; those without an answer in time have QueueUnavailable."""
        if tracing.tracer is None or not entries:
            return await self._enqueue_many(entries, settings)
        messages = [entry.message.prepared for entry in entries]
        with start_enqueueing(tracing.tracer, messages, self.settings.broker, queue_of(messages[0].mailer)):
            return await self._enqueue_many(entries, settings)

    async def _enqueue_many(self, entries: Sequence[QueueEntry], settings: EmailSettings) -> list[AddResult]:
        limit = _LIMIT + sum(entry.message.size for entry in entries) / _SLOWEST
        found: dict[int, AddResult] = {}
        done = asyncio.get_running_loop().run_in_executor(
            self._threads, self._add_jobs, entries, settings, time.monotonic() + limit - _MARGIN, found
        )
        done.add_done_callback(_retrieve_error)
        await asyncio.wait([done], timeout=limit)
        if done.done():
            done.result()
        late = f"{self.settings.address} gave no answer in time"
        results = [found.get(position) for position in range(len(entries))]
        answers = [QueueUnavailable(late) if result is None else result for result in results]
        failures = [answer for answer in answers if isinstance(answer, QueueUnavailable)]
        if failures:
            self.detector.failed(str(failures[-1]))
        else:
            self.detector.succeeded()
        known = sum(answer is False for answer in answers)
        if known:
            logger.warning("%s not queued again, since queued before", counted(known, "message"))
        return answers

    def _add_jobs(
        self, entries: Sequence[QueueEntry], settings: EmailSettings, deadline: float, found: dict[int, AddResult]
    ) -> None:
        # Filled one by one: of a batch that takes too long, the results so far count.
        found.update(self.store.add_many(_jobs(entries, settings), deadline=deadline))

    def _add_job(
        self,
        message: OutgoingMessage,
        settings: EmailSettings,
        due_at: float | None,
        expires_at: float | None,
        deadline: float,
    ) -> Accepted:
        if time.monotonic() > deadline:
            raise QueueUnavailable(f"{self.settings.address} is too slow")
        (job,) = _jobs([QueueEntry(message, due_at, expires_at)], settings)
        return self.store.add(job, deadline=deadline)


def _jobs(entries: Iterable[QueueEntry], settings: EmailSettings) -> Iterator[NewJob]:
    now = time.time()
    at_once = Progress(since=now)
    keep = settings.retry_max_age + settings.failed_keep + _SLACK
    for message, due_at, expires_at, before in entries:
        begin = now if due_at is None else max(now, due_at)
        plain = due_at is None and expires_at is None
        yield NewJob(
            job_key(message.message_id, message.envelope.recipients),
            message.message_id,
            encode(mark_redirected(message.prepared, settings)),
            at_once if plain and before is None else replace(before or at_once, since=begin, expires_at=expires_at),
            begin - now + keep,
            due_at,
            queue_of(message.mailer),
            None
            if message.prepared.must is NOTHING
            else claim_for(message.prepared, ttl=settings.key_ttl, due_at=due_at),
        )


def mark_redirected(message: PreparedMessage, settings: EmailSettings) -> PreparedMessage:
    """Have no process deliver it that does not redirect: a worker of staging may lack the setting."""
    return message._replace(must={**message.must, MUST_REDIRECT: True}) if settings.redirect_to else message


class RedisKeyStore:
    """Keeps keys on the Redis of a service, for all processes of the project."""

    shared = True

    def __init__(self, service: QueueService, *, lease: float = KEY_LEASE) -> None:
        self._service = service
        self._lease = lease

    def describe(self) -> str:
        """Return the address of Redis."""
        return self._service.address

    async def claim(self, claim: KeyClaim) -> KeyRecord | None:
        """Claim a key; see :class:`KeyStore`."""
        return await self._service.use_keys(
            lambda keys, deadline: keys.claim(claim, lease=self._lease, deadline=deadline)
        )

    async def renew(self, claims: Sequence[KeyClaim]) -> list[bool]:
        """Begin leases anew; see :class:`KeyStore`."""
        return await self._service.use_keys(lambda keys, _: keys.renew(claims, lease=self._lease))

    async def finish(self, claim: KeyClaim, result: str) -> None:
        """Record a receipt; see :class:`KeyStore`."""
        await self._service.use_keys(lambda keys, _: keys.finish(claim, result))

    async def release(self, claim: KeyClaim) -> None:
        """Free a key; see :class:`KeyStore`."""
        await self._service.use_keys(lambda keys, _: keys.release(claim))


def current_key_store() -> KeyStore:
    """Return where the project's keys are kept: on the Redis of ``TASKS``, else in the outbox, or in this process."""
    service = queue_service()
    if service is not None and service.key_store is not None:
        return service.key_store
    outbox = EmailSettings.from_settings().outbox
    return process_keys if outbox is None else _outbox_keys(outbox)


@lru_cache(maxsize=1)
def _outbox_keys(outbox: str) -> KeyStore:
    from openviper.core.email.queue.outbox_keys import OutboxKeyStore  # with the setting only

    return OutboxKeyStore(outbox)


_replacements: list[JobQueue] = []


@contextmanager
def using_queue(queue: JobQueue) -> Iterator[None]:
    """Use ``queue`` instead of the broker in this process for a block; the innermost one counts.

    It is used where ``TASKS`` names any broker, the stub included, and is enabled.
    """
    _replacements.append(queue)
    try:
        yield
    finally:
        _replacements.remove(queue)


def current_queue() -> JobQueue | None:
    """Return the queue that takes messages now: that of ``using_queue``, or else ``queue_service()``."""
    if _replacements:
        return _replacements[-1] if configured_broker() is not None else None
    return queue_service()


def configured_broker() -> str | None:
    """Return the address of the broker that ``TASKS`` names, the stub included; None where tasks are off."""
    settings = TaskSettings.from_settings()
    return settings.address if settings.enabled else None


def queue_service() -> QueueService | None:
    """Return this process's service for the project's ``TASKS``; None where no real broker is configured."""
    global _service
    settings = TaskSettings.from_settings()
    if not settings.real:
        return None
    if _service is None or _service[0] != os.getpid() or _service[1].settings != settings:
        if _service is not None and _service[0] == os.getpid():
            threading.Thread(target=_service[1].close, name="openviper-queue-close").start()  # it may block
        _service = os.getpid(), QueueService(settings)
    return _service[1]


def close_queue() -> None:
    """Close this process's connections to the broker; the next use opens them again. May block for two seconds."""
    global _service
    before, _service = _service, None
    if before is not None and before[0] == os.getpid():  # a parent's connections are the parent's
        before[1].close()


atexit.register(close_queue)

_service: tuple[int, QueueService] | None = None


def _make_store(settings: TaskSettings) -> "JobStore":
    # Imported here: without a broker, mail needs no client library.
    from openviper.tasks.broker import get_broker

    get_broker()  # says which extra is missing
    if settings.broker == "redis":
        from openviper.core.email.queue.redis_store import RedisJobStore

        return RedisJobStore(settings)
    from openviper.core.email.queue.rabbitmq_store import RabbitmqJobStore

    return RabbitmqJobStore(settings)


def _retrieve_error(done: "asyncio.Future[Any]") -> None:
    if not done.cancelled():
        done.exception()
