"""Hold what one event loop needs to send mail: its transport, dispatcher and templates."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from weakref import ref

from jinja2 import Environment

from openviper.conf.imports import import_string
from openviper.core.email.backends import EmailBackend
from openviper.core.email.delivery.dispatcher import Dispatcher
from openviper.core.email.delivery.keyed_send import record_pending
from openviper.core.email.delivery.outbox import Outbox
from openviper.core.email.delivery.relay import Relay
from openviper.core.email.delivery.stats import DeliveryStats, add_stats_source
from openviper.core.email.delivery.transport import BackendTransport, Transport, TransportFactory, installed_transports
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.events import drain_listeners
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue import queue_of
from openviper.core.email.settings import DEFAULT_MAILER, EmailSettings, debug, settings_version, template_dirs
from openviper.core.email.templates import TemplateRenderer
from openviper.exceptions import ImproperlyConfigured
from openviper.loops import accepts
from openviper.text import function_name, shown

__all__ = ["Mailer"]

logger = logging.getLogger("openviper.email")

_DETECTION_LIMIT = 2.0  # seconds that a startup waits for the broker
_RECORDED_WITHIN = 1.0  # seconds for the results of a drain that has taken all of shutdown_timeout


class Mailer:
    """A transport, a dispatcher and templates for one event loop of one process.

    ``follows_settings``: made from the project's settings, and ``outdated`` when these change.
    """

    def __init__(self, settings: EmailSettings, *, follows_settings: bool = False) -> None:
        self.settings = settings
        self._loop = ref(asyncio.get_running_loop())  # weak: what is kept for a loop may not keep the loop
        self._version = settings_version() if follows_settings else None
        self.own_transport = BackendTransport(settings)
        self.before_send = _hooks(settings)
        self._installed: tuple[TransportFactory, Transport] | None = None
        self.renderer = TemplateRenderer(
            template_dirs(), debug=debug(), inline_css=settings.inline_css, environment=_environment(settings)
        )
        self.dispatcher = Dispatcher(
            concurrency=settings.pool_size,
            max_messages=settings.dispatcher_messages,
            max_bytes=settings.dispatcher_bytes,
            retry_delays=settings.retry_delays,
            allow_partial=settings.allow_partial,
            mailers={name: own.pool_size for name, own in settings.mailers.items()},
        )
        self.outbox: Outbox | None = None
        self._relay: Relay | None = None
        self._opening = asyncio.Lock()
        self._prepared = False
        add_stats_source(self)

    def stats(self) -> DeliveryStats:
        """Return the numbers of the pools and of the dispatcher."""
        return DeliveryStats(self.own_transport.stats().pools, self.dispatcher.pending, self.dispatcher.pending_bytes)

    @property
    def closed(self) -> bool:
        """True after ``aclose``."""
        return self.dispatcher.closed

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the mailer's event loop if it is running, here or in another thread; else None."""
        loop = self._loop()
        return loop if loop is not None and loop.is_running() else None

    @property
    def here(self) -> bool:
        """True when it belongs to the running loop."""
        return self._loop() is asyncio.get_running_loop()

    @property
    def reachable(self) -> bool:
        """True when it accepts messages: it is not closed, and its loop runs, perhaps in another thread."""
        return not self.closed and self.loop is not None

    @property
    def transport(self) -> Transport:
        """Return the transport for a new message: the one installed for this process, or else the mailer's own."""
        if not installed_transports:
            return self.own_transport
        make = installed_transports[-1]
        if self._installed is None or self._installed[0] is not make:
            self._installed = make, make(self.settings, self.own_transport)
        return self._installed[1]

    @property
    def backend(self) -> EmailBackend:
        """Return the backend of the mailer's own transport."""
        return self.own_transport.backend

    @property
    def opened(self) -> bool:
        """True when a message can be prepared and sent at once."""
        return self._prepared and (self.transport if installed_transports else self.own_transport).opened

    @property
    def outdated(self) -> bool:
        """True when it was made from the project's settings and these have changed since."""
        return self._version is not None and self._version != settings_version()

    async def open(self) -> None:
        """Open the transport and load what templates need; may be called again, and by several tasks at once.

        Raises:
            ImproperlyConfigured: a setting cannot be used, or the library that it needs is not installed.
        """
        if self.opened:
            return
        if not self.here and (loop := self.loop) is not None:  # called in a thread of the application that it serves
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.open(), loop))
            return
        async with self._opening:
            if not self._prepared:
                await self.renderer.prepare()
                self.outbox = await Outbox.open(self.settings)
                queue = self.transport.queue
                if queue is not None and self.settings.use_background_worker is not False:
                    await asyncio.to_thread(queue.load)
                self._prepared = True
            transport = self.transport
            if not transport.opened:
                await transport.open()

    async def aclose(self) -> None:
        """Deliver what the dispatcher holds, and close: all within ``shutdown_timeout`` and a second more."""
        if self.closed:
            return
        loop, timeout = asyncio.get_running_loop(), self.settings.shutdown_timeout
        deadline = loop.time() + timeout
        if self.outbox is not None:
            await self.outbox.settled(timeout / 2)  # the deliveries need time as well, if the database does not answer
        relay_ended = None
        if self._relay is not None:
            relay_ended = asyncio.create_task(self._relay.stop(max(0.0, deadline - loop.time())))
        await self.dispatcher.drain(timeout, deadline=deadline)
        # What has been sent is sent again if that is not recorded.
        deadline = max(deadline, loop.time() + _RECORDED_WITHIN)
        await record_pending(max(0.0, deadline - loop.time()))
        if relay_ended is not None:
            await relay_ended
        if self.outbox is not None:
            await self.outbox.aclose(max(0.0, deadline - loop.time()))
        await drain_listeners(max(0.0, deadline - loop.time()))
        if self.own_transport.opened:
            await self.own_transport.aclose()

    async def start_relay(self) -> None:
        """Deliver what the outbox holds and no living process has, until the open mailer is closed."""
        if self.outbox is not None and self._relay is None:
            self._relay = Relay(self.outbox, self.own_transport, self.settings)
            await self._relay.start()

    def deliver_soon(self, message: OutgoingMessage, detail: str) -> None:
        """Give ``message`` to the dispatcher outside any request; ``detail`` says why, for listeners."""
        transport = self.transport
        transport.publish("deferred", message, detail)
        self.dispatcher.accept(message, transport)

    async def detect_broker(self) -> None:
        """At startup: ask whether the broker answers, and warn when no worker consumes its mail. Never fails."""
        queue = self.transport.queue
        if queue is None or self.settings.use_background_worker is False:
            return
        if not await asyncio.to_thread(queue.available):
            return
        for name in (DEFAULT_MAILER, *self.settings.mailers):
            mail_queue = queue_of(name)
            try:
                counting = asyncio.to_thread(queue.consumers, mail_queue)
                consumers = await asyncio.wait_for(counting, _DETECTION_LIMIT)
            except (QueueUnavailable, TimeoutError):
                return
            if not consumers:
                logger.warning(
                    "mail%s is queued on %s, but no worker consumes the queue %s now: start one with `viperctl "
                    "runworker`%s (docs: troubleshooting#stays-queued)",
                    "" if name == DEFAULT_MAILER else f" of the mailer {name}",
                    queue.address,
                    mail_queue,
                    "" if name == DEFAULT_MAILER else ", or restart those that do not know this mailer",
                )


def _environment(settings: EmailSettings) -> Environment | None:
    given = settings.template_environment
    if not isinstance(given, str):
        return given
    environment = import_string(given, setting='EMAIL["template_environment"]')
    if not isinstance(environment, Environment):
        raise ImproperlyConfigured(f'EMAIL["template_environment"]: {shown(given)} is not a jinja2.Environment')
    return environment


def _hooks(settings: EmailSettings) -> tuple[Callable[..., Any], ...]:
    """Return the functions of ``before_send``.

    Raises:
        ImproperlyConfigured: one of them is no function, or takes other arguments.
    """
    hooks = settings.functions("before_send")
    for hook in hooks:
        if not accepts(hook, 1):
            raise ImproperlyConfigured(
                f'EMAIL["before_send"]: {function_name(hook)}() is called with one argument; write it as '
                "(message: EmailMessageData)"
            )
    return hooks
