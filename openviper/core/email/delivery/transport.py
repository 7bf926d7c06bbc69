"""Carry messages away: deliver them now through a backend, or give them to the workers of a queue."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from contextvars import Context
from typing import Any
from weakref import finalize, ref

from openviper.core.email.backends import get_backend
from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.backends.failover import FailoverBackend
from openviper.core.email.backends.memory import MemoryBackend
from openviper.core.email.backends.null import NullBackend
from openviper.core.email.backends.shared import SharedBackend
from openviper.core.email.delivery.held import HeldMessage
from openviper.core.email.delivery.journal import OUTCOMES, Journal, Outcome
from openviper.core.email.delivery.pause.watch import PauseWatch, pause_watch
from openviper.core.email.delivery.recipients import RecipientRules
from openviper.core.email.delivery.shared_rate import shared_rate, unshared_text
from openviper.core.email.delivery.signing import Signing
from openviper.core.email.delivery.stats import DeliveryStats
from openviper.core.email.errors import DeliveryError, InvalidMessage, QueueUnavailable
from openviper.core.email.events import NOTHING, Circumstances, DeliveryMode, EventKind, Listener, publish
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.message.model import MUST_MAILER
from openviper.core.email.message.redaction import is_sensitive, redact
from openviper.core.email.queue import JobQueue, QueueEntry, current_key_store, current_queue, using_queue
from openviper.core.email.queue.job import AddResult
from openviper.core.email.queue.keys import KeyStore, process_keys
from openviper.core.email.settings import DEFAULT_MAILER, EmailSettings

__all__ = ["NO_ATTEMPT", "BackendTransport", "Transport", "TransportFactory", "installed_transports", "using_transport"]

logger = logging.getLogger("openviper.email")

NO_ATTEMPT = Circumstances()
"""Of an event outside any attempt."""
_CHOSEN: dict[EventKind, Circumstances] = {
    "held": Circumstances(DeliveryMode.HELD),
    "deferred": Circumstances(DeliveryMode.DEFERRED),
    "queued": Circumstances(DeliveryMode.QUEUED),
}


class Transport(ABC):
    """Carries the messages of one event loop.

    A message keeps the transport that accepted it through every attempt, also when another one has been installed
    since.
    """

    immediate = False
    """True when retries need no pause and a request waits for its own mail, because nothing leaves the process."""
    pipelines = False
    """True when ``send`` with ``pipeline`` gains anything."""
    observed = False
    """True when ``publish`` has a purpose besides calling those that subscribed in this process."""
    listeners: Sequence[Listener] = ()
    """Functions to call with each event, besides those that subscribed."""
    rules: RecipientRules | None = None
    """Who is mailed in place of the recipients; None: they are."""
    pause: PauseWatch | None = None
    """Whether sending is paused; None: it never is."""
    journal: Journal | None = None
    """Where the final answer to each recipient is recorded; None: nowhere."""
    in_memory = False
    """True when what is sent stays in this process, whose memory workers do not share."""
    durable = False
    """True when messages are kept in the outbox until they are delivered, where the settings name one."""
    enqueues = False
    """True when ``send`` gives messages to a queue, and not to a mail server."""
    opened = False
    """True between ``open`` and ``aclose``."""

    @property
    @abstractmethod
    def queue(self) -> JobQueue | None:
        """Return the queue that workers consume; None where mail cannot be queued."""

    @property
    def key_store(self) -> KeyStore:
        """Return where the idempotency keys of its messages are kept."""
        return process_keys

    async def open(self) -> None:
        """Open what ``send`` needs."""
        self.opened = True

    async def aclose(self) -> None:
        """Close what ``open`` opened, after the last ``send``."""
        self.opened = False

    @abstractmethod
    async def send(self, message: OutgoingMessage, *, pipeline: bool = False) -> DeliveryReport:
        """Deliver ``message`` now; ``pipeline`` lets it follow others without waiting for their replies.

        Raises:
            DeliveryError: nobody received it, or it is uncertain.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return where mail goes, in a few words without secrets."""

    def remedy(self, error: Exception | None, mailer: str = DEFAULT_MAILER) -> str | None:  # noqa: ARG002 - for others
        """Return what may be done about a failed delivery by ``mailer``, without secrets; None if nothing is known."""
        return None

    def server(self, mailer: str) -> tuple[str, int] | None:  # noqa: ARG002 - for others
        """Return host and port of the server that mail of ``mailer`` goes to; None where there is none."""
        return None

    async def enqueue_unsent(self, entries: Sequence[QueueEntry]) -> Sequence[AddResult]:  # noqa: ARG002 - for others
        """Give messages that may not be sent to what outlives this process; return for each True, or why it was not.

        Raises:
            QueueUnavailable: there is no such thing, or it does not answer.
        """
        raise QueueUnavailable("no message broker keeps mail after the stop")

    def hold(self, message: OutgoingMessage, held: HeldMessage) -> None:  # noqa: ARG002 - for transports that list them
        """Note that a transaction holds ``message``; ``held`` releases or drops it."""
        self.publish("held", message)

    def record(self, message: OutgoingMessage, outcome: Outcome) -> None:
        """Record the final answer to every recipient of ``message`` outside an attempt, where there is a journal."""
        if self.journal is not None:
            self.journal.record(message, outcome)

    def publish(
        self,
        kind: EventKind,
        message: OutgoingMessage,
        detail: str = "",
        *,
        refused: tuple[str, ...] = (),
        circumstances: Circumstances = NO_ATTEMPT,
    ) -> None:
        """Publish an event of a message that this transport carries."""
        if kind in OUTCOMES:
            self.record(message, OUTCOMES[kind])
        if circumstances is NO_ATTEMPT:
            circumstances = _CHOSEN.get(kind, NO_ATTEMPT)
        publish(
            kind,
            message,
            detail,
            refused=refused,
            circumstances=circumstances,
            listeners=self.listeners,
            redact=redact if is_sensitive(message.prepared) else None,
        )


class BackendTransport(Transport):
    """Delivers through the backend of each message's mailer, and queues on the broker of ``TASKS``.

    The backends of ``EMAIL["mailers"]`` are built at once, so that a wrong one is told at the start, and opened at
    their first message.
    """

    durable = True

    def __init__(self, settings: EmailSettings) -> None:
        """Build the backends: ``backends`` of each mailer's own server, ``routes`` with their failovers."""
        self._settings = settings
        self._own = _build_backend(settings)
        self._others = {name: SharedBackend(_build_backend(own)) for name, own in settings.mailers.items()}
        self.backends: Mapping[str, EmailBackend] = {DEFAULT_MAILER: self._own, **self._others}
        self.routes = {name: _route(name, settings.of_mailer(name), self.backends) for name in self.backends}
        self.backend: EmailBackend = self.routes[DEFAULT_MAILER]
        self._abandoned: (
            finalize[[tuple[EmailBackend, ...], ref[asyncio.AbstractEventLoop]], BackendTransport] | None
        ) = None
        kinds = (self._own, *(shared.backend for shared in self._others.values()))
        self.pipelines = all(backend.supports_pipelining for backend in kinds)
        self.in_memory = any(isinstance(backend, MemoryBackend | NullBackend) for backend in kinds)
        self.pause = None if self.in_memory else pause_watch(settings)  # mail in memory asks no broker
        for backend in kinds:
            backend.brake = self.pause
        self.listeners = settings.functions("listeners")
        self._limited = [each.settings for each in kinds if each.limits_rate]
        self.rules = RecipientRules.from_settings(settings)
        self.observed = bool(self.listeners)
        self._signing: Signing | None = None

    @property
    def queue(self) -> JobQueue | None:
        """Return the project's queue; None without a broker, and for mail that is kept in memory."""
        return None if self.in_memory else current_queue()

    @property
    def key_store(self) -> KeyStore:
        """Return the project's keys, or this process's for mail that is kept in memory."""
        return process_keys if self.in_memory else current_key_store()

    async def open(self) -> None:
        """Open the backend; it is closed by ``aclose``, or when nothing can send through this transport any more."""
        redirect = None if self.rules is None else self.rules.redirect
        self.journal = await Journal.open(self._settings, redirect)
        if self._settings.dkim:
            self._signing = await Signing.load(self._settings)
        if self.pause is not None:
            # Before anything can be sent; afterwards a thread follows the flag.
            await asyncio.to_thread(self.pause.start)
        await self._own.open()
        for unshared in dict.fromkeys(map(unshared_text, self._limited)):
            if unshared is not None:
                logger.warning("%s", unshared)
        backends = (self._own, *self._others.values())
        self._abandoned = finalize(self, _close_abandoned, backends, ref(asyncio.get_running_loop()))
        self._abandoned.atexit = False
        await super().open()

    async def aclose(self) -> None:
        """Close all backends that are open."""
        if self._abandoned is not None:
            self._abandoned.detach()
        await super().aclose()
        if self.journal is not None:
            await self.journal.aclose()
        await _close_all((self._own, *self._others.values()))

    def send(self, message: OutgoingMessage, *, pipeline: bool = False) -> Coroutine[Any, Any, DeliveryReport]:
        """Send through the backend of the message's mailer; see :meth:`Transport.send`."""
        backend = self.backend
        must = message.prepared.must
        if must is not NOTHING and MUST_MAILER in must:
            backend = self._backend_of(must[MUST_MAILER])
        if self._signing is not None:
            return _send_signed(message, self._signing, backend, pipeline)
        return backend.send_pipelined(message) if pipeline else backend.send(message)

    async def enqueue_unsent(self, entries: Sequence[QueueEntry]) -> Sequence[AddResult]:
        """Queue messages that may not be sent, for the workers."""
        queue = self.queue
        if queue is None:
            return await super().enqueue_unsent(entries)
        if not await queue.answers():
            raise QueueUnavailable(f"the broker ({queue.address}) does not answer")
        results = await queue.enqueue_many(entries, self._settings)
        for entry, result in zip(entries, results, strict=True):
            if result is True:
                self.publish("queued", entry.message)
        return results

    def remedy(self, error: Exception | None, mailer: str = DEFAULT_MAILER) -> str | None:
        """Return the remedy of the mailer's backend for a delivery error."""
        backend = self.routes.get(mailer)
        return backend.remedy(error) if backend is not None and isinstance(error, DeliveryError) else None

    def stats(self) -> DeliveryStats:
        """Return the stats of the mailers' pools that are open on the running loop."""
        found = {name: backend.stats for name, backend in self.backends.items()}
        return DeliveryStats({name: stats for name, stats in found.items() if stats is not None})

    def server(self, mailer: str) -> tuple[str, int] | None:
        """Return the server of the mailer's own backend."""
        backend = self.backends.get(mailer)
        return None if backend is None else backend.server

    def describe(self) -> str:
        """Return the backend's own description."""
        return self.backend.describe()

    def _backend_of(self, mailer: object) -> EmailBackend:
        backend = self.routes.get(mailer) if isinstance(mailer, str) else None
        if backend is None:
            try:
                self._settings.of_mailer(mailer)
            except InvalidMessage as error:
                text = f"{error}; another process accepted the message for it"
                raise DeliveryError(text, temporary=True, summary=text) from None
        assert backend is not None, "each mailer of the settings has a backend"
        return backend


def _build_backend(settings: EmailSettings) -> EmailBackend:
    backend = get_backend(settings=settings)
    if backend.limits_rate:
        backend.reserve = shared_rate(settings)
    return backend


async def _send_signed(
    message: OutgoingMessage, signing: Signing, backend: EmailBackend, pipeline: bool
) -> DeliveryReport:
    signed = await signing.sign(message)
    return await (backend.send_pipelined(signed) if pipeline else backend.send(signed))


def _route(name: str, settings: EmailSettings, built: Mapping[str, EmailBackend]) -> EmailBackend:
    """Return what sends the mail of a mailer: its own backend, or that with its failover."""
    if not settings.failover:
        return built[name]
    backends = {each: built[each] for each in (name, *settings.failover)}
    return FailoverBackend(backends, retry_period=settings.retry_period)


_closing: set["asyncio.Task[None]"] = set()


async def _close_all(backends: Sequence[EmailBackend]) -> None:
    """Close each, also after one that fails, whose error is raised at the end."""
    async with AsyncExitStack() as stack:
        for backend in backends:
            stack.push_async_callback(backend.aclose)


def _close_abandoned(backends: tuple[EmailBackend, ...], kept: "ref[asyncio.AbstractEventLoop]") -> None:
    """Close ``backends`` on their event loop; called on any thread."""
    loop = kept()
    if loop is not None and loop.is_running():
        with suppress(RuntimeError):  # the loop has ended in this moment, and its connections with it
            loop.call_soon_threadsafe(_start_closing, backends, context=Context())


def _start_closing(backends: tuple[EmailBackend, ...]) -> None:
    task = asyncio.get_running_loop().create_task(_close_all(backends))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


TransportFactory = Callable[[EmailSettings, Transport], Transport]
"""Builds a transport from a mailer's settings and its own transport."""
installed_transports: list[TransportFactory] = []
"""The factories of ``using_transport``, the innermost one last; empty outside any."""


@contextmanager
def using_transport(make: TransportFactory, *, queue: JobQueue) -> Iterator[None]:
    """Have every mailer of this process use the transport that ``make`` builds for it.

    Concerns messages accepted in this block, from any thread and event loop. ``queue`` takes what is queued meanwhile.
    Inside another such block the inner one counts.
    """
    installed_transports.append(make)
    try:
        with using_queue(queue):
            yield
    finally:
        installed_transports.remove(make)
