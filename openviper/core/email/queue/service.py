"""The broker as a process sees it: one spool, one detector, and the threads in which both block."""

import asyncio
import atexit
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from openviper.core.email.backends.interception import interceptor_for
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.message.serialiser import outgoing
from openviper.core.email.message.storage import decode, encode
from openviper.core.email.queue.detection import Detector
from openviper.core.email.queue.job import Parcel, Progress, job_key
from openviper.core.email.settings import EmailSettings
from openviper.tasks.settings import TaskSettings

if TYPE_CHECKING:
    from openviper.core.email.queue.job import Spool

__all__ = ["QueueService", "close_queue", "queue_service"]

_LIMIT = 1.8  # seconds that one send waits for the broker
_MARGIN = 0.3  # seconds between the last moment at which the broker may take a message, and giving up on it
_SLOWEST = 4_000_000  # bytes a second of a large message
_THREADS = 4
_SLACK = 3600.0


class QueueService:
    """What ``settings`` describe; made at first use, nothing is connected or imported before."""

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings
        self.detector = Detector(self._probe, settings.address)
        self._spool: Spool | None = None
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="openviper-queue")

    @property
    def spool(self) -> "Spool":
        """Where queued mail lies. The first call imports the client library: not on an event loop.

        Raises:
            MissingDependency: it is not installed.
        """
        with self._lock:
            if self._spool is None:
                self._spool = _make_spool(self.settings)
            return self._spool

    def close(self) -> None:
        """Let go of connections and threads. What is being queued is finished."""
        self._threads.shutdown()
        with self._lock:
            if self._spool is not None:
                self._spool.close()

    def consumers(self) -> int:
        """How many workers consume queued mail at this moment; blocks.

        Raises:
            QueueUnavailable: the broker does not answer.
        """
        return self.spool.consumers()

    def _probe(self) -> None:
        self.spool.probe()

    async def enqueue(
        self,
        message: OutgoingMessage,
        settings: EmailSettings,
        *,
        due_at: float | None = None,
        expires_at: float | None = None,
    ) -> None:
        """Return when the broker has ``message``.

        Raises:
            QueueUnavailable: it has not, and will not take it later (RabbitMQ may, see the documentation).
        """
        limit = _LIMIT + message.size / _SLOWEST
        deadline = time.monotonic() + limit
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(
            self._threads, self._enqueue, message, settings, due_at, expires_at, deadline - _MARGIN
        )
        done.add_done_callback(_forget)  # nobody asks for its error when the sender is cancelled
        await asyncio.wait([done], timeout=limit)
        if not done.done():
            self.detector.failed("no answer in time")
            raise QueueUnavailable(f"{self.settings.address} gave no answer in time")
        try:
            done.result()
        except QueueUnavailable as error:
            self.detector.failed(str(error))
            raise
        self.detector.succeeded()

    def _enqueue(
        self,
        message: OutgoingMessage,
        settings: EmailSettings,
        due_at: float | None,
        expires_at: float | None,
        deadline: float,
    ) -> None:
        if time.monotonic() > deadline:
            raise QueueUnavailable(f"{self.settings.address} is too slow")
        now = time.time()
        begin = now if due_at is None else max(now, due_at)
        parcel = Parcel(
            key=job_key(message.message_id, message.envelope.recipients),
            message_id=message.message_id,
            payload=encode(message.prepared),
            progress=Progress(since=begin, expires_at=expires_at),
            keep=begin - now + settings.retry_max_age + settings.failed_keep + _SLACK,
            due_at=due_at,
        )
        self.spool.enqueue(parcel, deadline=deadline)


class _InterceptedQueue(QueueService):
    """No broker is asked: the interceptor takes each message as a worker would read it."""

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        self.detector.succeeded()

    def consumers(self) -> int:
        return 1

    def _probe(self) -> None:
        pass

    async def enqueue(
        self,
        message: OutgoingMessage,
        settings: EmailSettings,
        *,
        due_at: float | None = None,
        expires_at: float | None = None,
    ) -> None:
        interceptor = interceptor_for(message.message_id)
        if interceptor is None:
            raise QueueUnavailable(f"{self.settings.address} is asked no longer: the interception has ended")
        prepared = await asyncio.to_thread(lambda: decode(encode(message.prepared)))
        read = await outgoing(prepared, max_message_bytes=settings.max_message_bytes)
        await interceptor.enqueue(read, settings, due_at=due_at, expires_at=expires_at)


def queue_service() -> QueueService | None:
    """The service of the project's ``TASKS`` in this process; None where no real broker is configured.

    While mail is intercepted, any broker that is configured seems to answer, the stub as well.
    """
    global _service
    settings = TaskSettings.from_settings()
    if interceptor_for() is not None:
        return _InterceptedQueue(settings) if settings.enabled else None
    if not settings.real:
        return None
    if _service is None or _service[0] != os.getpid() or _service[1].settings != settings:
        if _service is not None and _service[0] == os.getpid():
            threading.Thread(target=_service[1].close, name="openviper-queue-close").start()  # it may block
        _service = os.getpid(), QueueService(settings)
    return _service[1]


def close_queue() -> None:
    """Close what this process has opened to the broker; the next use opens it again. May block for two seconds."""
    global _service
    before, _service = _service, None
    if before is not None and before[0] == os.getpid():  # a parent's connections are the parent's
        before[1].close()


atexit.register(close_queue)

_service: tuple[int, QueueService] | None = None


def _make_spool(settings: TaskSettings) -> "Spool":
    # Imported here, so that mail alone needs no broker's client library.
    from openviper.tasks.broker import get_broker

    get_broker()  # says which extra is missing
    if settings.broker == "redis":
        from openviper.core.email.queue.redis_spool import RedisSpool

        return RedisSpool(settings)
    from openviper.core.email.queue.rabbitmq_spool import RabbitmqSpool

    return RabbitmqSpool(settings)


def _forget(done: "asyncio.Future[None]") -> None:
    if not done.cancelled():
        done.exception()
