"""Which way a message goes, decided in one function, and the mailer that takes it there."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple
from weakref import ref

from jinja2 import Environment

from openviper.conf.imports import import_string
from openviper.core.email.backends import get_backend
from openviper.core.email.backends.base import DeliveryReport
from openviper.core.email.backends.interception import HeldMessage, interceptor_for
from openviper.core.email.backends.memory import MemoryBackend
from openviper.core.email.errors import DeliveryError, InvalidMessage, QueueUnavailable, RecipientsRefused
from openviper.core.email.events import publish
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.outbox import Dispatcher, Outbox, current_outbox, stay_current
from openviper.core.email.queue import QueueService, queue_service
from openviper.core.email.receipt import Receipt, Way
from openviper.core.email.schedule import AT_ONCE, Schedule
from openviper.core.email.settings import EmailSettings, debug, settings_version, template_dirs
from openviper.core.email.templates import TemplateRenderer
from openviper.db.transaction import current_record, entered, hold
from openviper.exceptions import ImproperlyConfigured
from openviper.loops import PerLoop, at_loop_end

__all__ = [
    "Mailer",
    "Receipt",
    "Way",
    "Ways",
    "apart_from_other_requests",
    "choose_way",
    "current_mailer",
    "current_ways",
    "describe_ways",
    "serving_event_loop",
    "serving_loop",
    "stay_with",
    "using_mailer",
]

logger = logging.getLogger("openviper.email")

_DETECTION_LIMIT = 2.0  # seconds that a startup waits for the broker


class Ways(NamedTuple):
    """The way of a message that says nothing about it and is not held; ``backend`` and ``reason`` are for people."""

    in_request: Way
    elsewhere: Way
    backend: str
    reason: str


def choose_way(
    *,
    background: bool | None,
    use_background_worker: bool | None,
    broker: bool,
    in_request: bool,
    room: bool,
) -> Way:
    """The way of a message that is not held.

    ``background`` is the argument of the call and beats the setting ``use_background_worker``; ``broker``: one is
    configured and answers; ``in_request``: an http request's outbox is there; ``room``: the dispatcher has room,
    without which a new message is delivered inline so that memory stays bounded.
    """
    if background is False:
        return Way.INLINE
    if broker and (background or use_background_worker is not False):
        return Way.QUEUED
    if in_request and room:
        return Way.DEFERRED
    return Way.INLINE


class Mailer:
    """A backend, a dispatcher and templates for one event loop of one process."""

    def __init__(self, settings: EmailSettings, *, follows_settings: bool = False) -> None:
        self.settings = settings
        self._loop = ref(asyncio.get_running_loop())  # weak: what is kept for a loop may not keep the loop
        self._version = settings_version() if follows_settings else None
        self.backend = get_backend(settings=settings)
        self._in_memory = isinstance(self.backend, MemoryBackend)
        self.renderer = TemplateRenderer(
            template_dirs(), debug=debug(), inline_css=settings.inline_css, environment=_environment(settings)
        )
        self.dispatcher = Dispatcher(
            self.deliver,
            concurrency=settings.pool_size,
            max_messages=settings.dispatcher_messages,
            max_bytes=settings.dispatcher_bytes,
            retry_delays=settings.retry_delays,
        )
        self._opening = asyncio.Lock()
        self.opened = False

    @property
    def closed(self) -> bool:
        """True after ``aclose``."""
        return self.dispatcher.closed

    @property
    def here(self) -> bool:
        """True when it belongs to the running loop."""
        return self._loop() is asyncio.get_running_loop()

    @property
    def reachable(self) -> bool:
        """True when it can be given messages: not closed, and its loop runs, perhaps in another thread."""
        loop = self._loop()
        return not self.closed and loop is not None and loop.is_running()

    @property
    def outdated(self) -> bool:
        """True when it was made from the project's settings and these have changed since."""
        return self._version is not None and self._version != settings_version()

    async def open(self) -> None:
        """Open the backend and load what templates need; may be called again, and by several tasks at once."""
        if self.opened:
            return
        async with self._opening:
            if not self.opened:
                await self.renderer.prepare()
                if interceptor_for() is not None:
                    return  # the backend is opened when something is to leave through it
                await self.backend.open()
                self.opened = True

    async def aclose(self) -> None:
        """Deliver what the dispatcher holds within ``shutdown_timeout``, then close the backend."""
        if self.closed:
            return
        await self.dispatcher.drain(self.settings.shutdown_timeout)
        if self.opened:
            await self.backend.aclose()

    async def deliver(self, message: OutgoingMessage, *, overlap: bool = False) -> DeliveryReport:
        """One attempt, now; ``overlap`` lets the backend send it behind others without waiting for their answers.

        Raises:
            DeliveryError: nobody got it.
        """
        publish("sending", message)
        interceptor = interceptor_for(message.message_id)
        if interceptor is not None:
            report = await interceptor.send(message, self.settings)
        elif overlap:
            report = await self.backend.send_overlapped(message)
        else:
            report = await self.backend.send(message)
        publish("delivered", message, report.outcome, refused=tuple(report.refused))
        return report

    async def attempt(self, message: OutgoingMessage, *, overlap: bool = False) -> Receipt:
        """``deliver``, with a failed delivery as a receipt that has its error."""
        try:
            report = await self.deliver(message, overlap=overlap)
        except DeliveryError as error:
            publish("failed", message, str(error))
            refused = error.refused if isinstance(error, RecipientsRefused) else {}
            return Receipt(message.message_id, Way.INLINE, refused=refused, error=error)
        return Receipt(message.message_id, Way.INLINE, report.accepted, report.refused, report.response)

    async def detect_broker(self) -> None:
        """At startup: ask whether the broker answers, and warn when nobody takes mail from it. Never fails."""
        service = self._queue()
        if service is None or self.settings.use_background_worker is False:
            return
        if not await asyncio.to_thread(service.detector.available):
            return
        try:
            consumers = await asyncio.wait_for(asyncio.to_thread(service.consumers), _DETECTION_LIMIT)
        except (QueueUnavailable, TimeoutError):
            return
        if not consumers:
            logger.warning(
                "mail is queued on %s, but no worker consumes it now: start one with `viperctl runworker`",
                service.settings.address,
            )

    async def submit(
        self,
        message: OutgoingMessage,
        *,
        background: bool | None,
        fail_silently: bool,
        schedule: Schedule = AT_ONCE,
    ) -> Receipt:
        """Send ``message`` the way that fits, or hold it while a transaction is open.

        Raises:
            DeliveryError: the inline attempt failed and ``fail_silently`` is off.
            InvalidMessage: ``schedule`` asks for later, and there is no broker to keep the message until then.
            QueueUnavailable: likewise, and the broker does not answer.
        """
        loop = self._loop()
        if loop is not asyncio.get_running_loop() and loop is not None and loop.is_running():
            # A thread of a request has a loop of its own, which may end before the message is on its way.
            elsewhere = self.submit(message, background=background, fail_silently=fail_silently, schedule=schedule)
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(elsewhere, loop))
        outbox = current_outbox()
        if schedule.later:
            await self._check_that_it_can_wait(background)
        if background is not False and self._held(message, background, outbox, schedule):
            return Receipt(message.message_id, Way.HELD)
        if await self._enqueued(message, background, schedule):
            return Receipt(message.message_id, Way.QUEUED)
        if outbox is not None and self._way(background, outbox, room=not self.dispatcher.full) is Way.DEFERRED:
            outbox.add(self.dispatcher, message)
            return Receipt(message.message_id, Way.DEFERRED)
        receipt = await self.attempt(message)
        if receipt.error is not None:
            if not fail_silently:
                raise receipt.error
            logger.warning("message %s was not delivered (fail_silently): %s", message.message_id, receipt.error)
        return receipt

    def _held(
        self, message: OutgoingMessage, background: bool | None, outbox: Outbox | None, schedule: Schedule
    ) -> bool:
        """True when a transaction keeps ``message`` until its commit."""
        if current_record() is None:
            return False
        held = HeldMessage(partial(self._release, message, background, outbox, schedule), partial(_drop, message))
        if not hold(held.release, held.drop):
            return False
        publish("held", message)
        if (interceptor := interceptor_for(message.message_id)) is not None:
            interceptor.hold(message, held)
        return True

    def _way(self, background: bool | None, outbox: Outbox | None, *, room: bool) -> Way:
        """The way of a message that the broker does not take."""
        return choose_way(
            background=background,
            use_background_worker=self.settings.use_background_worker,
            broker=False,
            in_request=outbox is not None and not self.closed,
            room=room,
        )

    def _queue(self) -> QueueService | None:
        # A worker's memory is not this one's, and mail that is kept in memory shall open no socket.
        return None if self._in_memory else queue_service()

    async def _enqueued(self, message: OutgoingMessage, background: bool | None, schedule: Schedule) -> bool:
        """True when the broker has taken it.

        Raises:
            QueueUnavailable: it did not, and the message cannot go another way because it must wait.
        """
        use = self.settings.use_background_worker
        if choose_way(background=background, use_background_worker=use, broker=True, in_request=False, room=False) is (
            Way.INLINE
        ):
            return False
        asked_for = background or use is True
        service = self._queue()
        if service is None:
            if asked_for and not self._in_memory:
                logger.warning("message %s is not queued: TASKS names no real broker", message.message_id)
            return False
        detector = service.detector
        try:
            if not (detector.available() if detector.known else await asyncio.to_thread(detector.available)):
                raise QueueUnavailable(f"the broker ({service.settings.address}) does not answer")
            await service.enqueue(message, self.settings, due_at=schedule.due_at, expires_at=schedule.expires_at)
        except QueueUnavailable as error:
            if schedule.later:
                raise
            logger.log(
                logging.WARNING if asked_for else logging.DEBUG,
                "message %s is not queued: %s",
                message.message_id,
                error,
            )
            return False
        publish("queued", message)
        return True

    async def _check_that_it_can_wait(self, background: bool | None) -> None:
        if background is False or (background is None and self.settings.use_background_worker is False):
            raise InvalidMessage("send_at, delay: only the queue keeps a message until then, and it is not to be used")
        service = self._queue()
        if service is None:
            raise InvalidMessage('send_at, delay: no broker can keep the message until then; set TASKS["broker"]')
        if not await asyncio.to_thread(service.detector.available):
            raise QueueUnavailable(
                f"send_at, delay: the broker ({service.settings.address}) does not answer, and nothing else can keep "
                "the message until then"
            )

    async def _release(
        self, message: OutgoingMessage, background: bool | None, outbox: Outbox | None, schedule: Schedule
    ) -> None:
        # After the commit. The commit stands whatever happens to the mail, so nothing here raises a delivery error,
        # and a full dispatcher is waited for after the response instead of holding the response up.
        if self.closed or not self.here:
            # Sent by a thread whose own loop, and this mailer with it, has ended before the transaction.
            await (await current_mailer())._release(message, background, outbox, schedule)
            return
        try:
            if await self._enqueued(message, background, schedule):
                return
        except QueueUnavailable as error:
            logger.error("message %s was not queued, and it must wait: it is lost: %s", message.message_id, error)
            publish("failed", message, str(error))
            return
        if self._way(background, outbox, room=True) is Way.DEFERRED and outbox is not None:
            outbox.add(self.dispatcher, message)
        else:
            (handed,) = self.dispatcher.hand_over((message,))
            await asyncio.shield(handed.done)


def _environment(settings: EmailSettings) -> Environment | None:
    given = settings.template_environment
    if not isinstance(given, str):
        return given
    environment = import_string(given, setting='EMAIL["template_environment"]')
    if not isinstance(environment, Environment):
        raise ImproperlyConfigured(f'EMAIL["template_environment"]: {given!r} is not a jinja2.Environment')
    return environment


def _drop(message: OutgoingMessage) -> None:
    logger.info("message %s is discarded: its transaction was rolled back", message.message_id)
    publish("discarded", message, "the transaction was rolled back")


_of_loop: PerLoop[Mailer] = PerLoop()
_serving: list[asyncio.AbstractEventLoop] = []
_of_request: ContextVar[Mailer | None] = ContextVar("openviper.email.mailer", default=None)


@contextmanager
def using_mailer(mailer: Mailer) -> Iterator[None]:
    """Make ``mailer`` the one that a request's sends use, also in the tasks and threads that it starts."""
    token = _of_request.set(mailer)
    try:
        yield
    finally:
        _of_request.reset(token)


def stay_with(mailer: Mailer, outbox: Outbox) -> None:
    """Have the rest of this context send as the request did that has just failed: an error handler around the layer."""
    if current_outbox() is None:
        _of_request.set(mailer)
        stay_current(outbox)


def apart_from_other_requests() -> AbstractContextManager[None]:
    """For the time of a request, leave the transaction of another request that this one's context is a copy of.

    A server that has read the next request of a connection already may start it while the one before sends the end of
    its response, and that may be inside a ``transaction()``.
    """
    return nullcontext() if current_outbox() is None else entered(None)


@contextmanager
def serving_loop(mailer: Mailer) -> Iterator[None]:
    """Make ``mailer`` the one of the running loop for the time of a lifespan."""
    before = _of_loop.get()
    _of_loop.set(mailer)
    loop = asyncio.get_running_loop()
    _serving.append(loop)
    try:
        yield
    finally:
        _serving.remove(loop)
        if _of_loop.get() is mailer:
            _of_loop.discard()
            if before is not None and not before.closed:
                _of_loop.set(before)


def serving_event_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop on which applications of this process are served; None when there is none, or more than one."""
    loops = set(_serving)
    return loops.pop() if len(loops) == 1 else None


async def current_mailer() -> Mailer:
    """The mailer of the request, else the loop's, else a new one that is closed when the loop ends."""
    mailer = _of_request.get()
    if mailer is None or not mailer.reachable:
        mailer = _of_loop.get()
    if mailer is None or mailer.closed or mailer.outdated:
        mailer = Mailer(EmailSettings.from_settings(), follows_settings=True)
        _of_loop.set(mailer)
        at_loop_end(partial(_close, mailer))
    if not mailer.opened:
        await mailer.open()
    return mailer


async def _close(mailer: Mailer) -> None:
    await mailer.aclose()
    if _of_loop.get() is mailer:
        _of_loop.discard()


def current_ways(mailer: Mailer) -> Ways:
    """Which way mail will go, and why. Tells of the broker what the last probe has found."""
    settings = mailer.settings
    service = mailer._queue()
    answers = service is not None and service.detector.known and service.detector.available()
    use = settings.use_background_worker
    request, elsewhere = (
        choose_way(background=None, use_background_worker=use, broker=answers, in_request=in_request, room=True)
        for in_request in (True, False)
    )
    if service is None:
        reason = "no message broker is in use"
    elif use is False:
        reason = 'the broker is not used: EMAIL["use_background_worker"] is False'
    elif answers:
        reason = f"workers take it from {service.settings.address}"
    else:
        reason = f"the broker ({service.settings.address}) does not answer; mail is queued as soon as it does"
    return Ways(request, elsewhere, mailer.backend.describe(), reason)


def describe_ways(mailer: Mailer) -> str:
    """``current_ways`` as one line for the log."""
    ways = current_ways(mailer)
    explained = " (delivered after the response)" if ways.in_request is Way.DEFERRED else ""
    return (
        f"mail: {ways.in_request} in requests{explained}, {ways.elsewhere} elsewhere, through {ways.backend}; "
        f"{ways.reason}"
    )
