"""The mailer: what delivers the messages of one event loop."""

import asyncio
import logging
from weakref import ref

from jinja2 import Environment

from openviper.conf.imports import import_string
from openviper.core.email.backends import get_backend
from openviper.core.email.backends.base import DeliveryReport
from openviper.core.email.backends.interception import interceptor_for
from openviper.core.email.backends.memory import MemoryBackend
from openviper.core.email.delivery.dispatcher import Dispatcher
from openviper.core.email.errors import DeliveryError, QueueUnavailable
from openviper.core.email.events import Receipt, Way, listening, publish
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue import QueueService, queue_service
from openviper.core.email.settings import EmailSettings, debug, settings_version, template_dirs
from openviper.core.email.templates import TemplateRenderer
from openviper.exceptions import ImproperlyConfigured

__all__ = ["Mailer"]

logger = logging.getLogger("openviper.email")

_DETECTION_LIMIT = 2.0  # seconds that a startup waits for the broker


class Mailer:
    """A backend, a dispatcher and templates for one event loop of one process.

    ``follows_settings``: made from the project's settings, and ``outdated`` when these change. ``opened``: the backend
    is open. ``in_memory``: what is sent stays in this process, so that it never goes to a worker.
    """

    def __init__(self, settings: EmailSettings, *, follows_settings: bool = False) -> None:
        self.settings = settings
        self._loop = ref(asyncio.get_running_loop())  # weak: what is kept for a loop may not keep the loop
        self._version = settings_version() if follows_settings else None
        self.backend = get_backend(settings=settings)
        self.in_memory = isinstance(self.backend, MemoryBackend)
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
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop it belongs to, where that is running: here, or in another thread."""
        loop = self._loop()
        return loop if loop is not None and loop.is_running() else None

    @property
    def here(self) -> bool:
        """True when it belongs to the running loop."""
        return self._loop() is asyncio.get_running_loop()

    @property
    def reachable(self) -> bool:
        """True when it can be given messages: not closed, and its loop runs, perhaps in another thread."""
        return not self.closed and self.loop is not None

    @property
    def queue(self) -> QueueService | None:
        """Where mail is given to workers; None where no broker is in use."""
        # A worker's memory is not this one's, and mail that is kept in memory shall open no socket.
        return None if self.in_memory else queue_service()

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
        if listening():
            publish("delivered", message, report.outcome, refused=tuple(report.refused))
        return report

    async def attempt(self, message: OutgoingMessage, *, overlap: bool = False) -> Receipt:
        """``deliver``, with a failed delivery as a receipt that has its error."""
        try:
            report = await self.deliver(message, overlap=overlap)
        except DeliveryError as error:
            publish("failed", message, str(error))
            return Receipt(message.message_id, Way.INLINE, refused=error.refused, error=error)
        return Receipt(message.message_id, Way.INLINE, report.accepted, report.refused, report.response)

    async def detect_broker(self) -> None:
        """At startup: ask whether the broker answers, and warn when nobody takes mail from it. Never fails."""
        service = self.queue
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


def _environment(settings: EmailSettings) -> Environment | None:
    given = settings.template_environment
    if not isinstance(given, str):
        return given
    environment = import_string(given, setting='EMAIL["template_environment"]')
    if not isinstance(environment, Environment):
        raise ImproperlyConfigured(f'EMAIL["template_environment"]: {given!r} is not a jinja2.Environment')
    return environment
