"""Run mail for an application: a mailer and an inbox page for each of its event loops."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Send

from openviper.core.email.asgi.notice import print_notice, served_address, shows_info
from openviper.core.email.delivery import Mailer, describe_modes, serving_loop
from openviper.core.email.delivery.wrappers import known_server
from openviper.core.email.errors import DeliveryError
from openviper.core.email.inbox import Inbox, make_store
from openviper.core.email.settings import EmailSettings, debug, settings_in_use, settings_origin, settings_were_read
from openviper.loops import PerLoop, at_loop_end

__all__ = ["Running", "Runtime"]

logger = logging.getLogger("openviper.email")


@dataclass(frozen=True, slots=True)
class Running:
    """The mailer and the inbox page of one event loop.

    ``waits``: no lifespan will drain the mailer, so each request waits for its own mail.
    """

    mailer: Mailer
    inbox: Inbox | None
    waits: bool

    async def aclose(self) -> None:
        """Deliver what is left within ``shutdown_timeout``, and close."""
        await self.mailer.aclose()
        if self.inbox is not None:
            await self.inbox.aclose()


class Runtime:
    """Opens mail for ``Email`` and ``EmailMiddleware``, once for each event loop.

    ``call`` is the source text of the call that gives ``overrides``, up to them; errors show it. ``page_unknown``: the
    first request is to show the inbox page's address.
    """

    def __init__(self, overrides: Mapping[str, Any] | None, *, call: str) -> None:
        self._overrides = overrides
        self._call = call
        self._running: PerLoop[Running] = PerLoop()
        self._start_is_watched = False
        self.page_unknown = False

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[Running]:
        """Validate the settings, open, log the delivery mode; on leaving deliver what is left, and close."""
        running = await self._start(waits=False)
        with serving_loop(running.mailer), settings_in_use():
            try:
                await running.mailer.detect_broker()
                if not self._start_is_watched:
                    await running.mailer.start_relay()
                self._log_modes(running)
                yield running
            finally:
                self._running.discard()
                await running.aclose()

    def watch_start(self, send: Send) -> Send:
        """Return ``send`` for the application's lifespan, which starts the relay once the application has started.

        Only then are the outbox's tables there, where the application creates them itself.
        """
        self._start_is_watched = True

        async def watched(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete" and (running := self._running.get()) is not None:
                await running.mailer.start_relay()
            await send(message)

        return watched

    def _log_modes(self, running: Running) -> None:
        modes = describe_modes(running.mailer)
        # A redirect is unusual and must not be missed where the log shows no INFO, as under uvicorn.
        logger.log(logging.WARNING if running.mailer.settings.redirect_to else logging.INFO, "%s", modes)
        if debug() and not shows_info(logger):
            address = served_address()
            print_notice(modes, inbox=running.inbox is not None, address=address)
            self.page_unknown = running.inbox is not None and address is None and known_server() is not None
        if not self._overrides and not settings_were_read() and not EmailSettings.sources():
            logger.warning(
                "no setting of EMAIL is given, so mail goes through %s; %s",
                running.mailer.transport.describe(),
                settings_origin(),
            )

    async def running(self) -> Running:
        """Return what runs on this loop; opens it when no lifespan was run."""
        running = self._running.get()
        if running is None:
            logger.warning(
                "the application's lifespan was not run: mail is opened at first use, "
                "and each request waits for its own mail before it ends; let the server run it "
                "(uvicorn --lifespan on), and wrap the whole application, app = EmailMiddleware(app), "
                "not as middleware of a framework"
            )
            running = await self._start(waits=True)
            at_loop_end(self._close)
        if not running.mailer.settings.fail_silently:  # else each send opens it, and keeps a delivery error to itself
            await running.mailer.open()
        return running

    async def _close(self) -> None:
        running = self._running.get()
        if running is not None:
            self._running.discard()
            await running.aclose()

    async def _start(self, *, waits: bool) -> Running:
        settings = EmailSettings.load(self._overrides, call=self._call)
        mailer = Mailer(settings)
        inbox = None
        if settings.inbox_enabled(debug=debug()):
            inbox = Inbox(mailer, make_store(settings, sensitive=debug()))
        running = Running(mailer, inbox, waits)
        self._running.set(running)
        if inbox is not None:
            if not debug():
                logger.warning(
                    'EMAIL["inbox"] is "always" and DEBUG is off: whoever reaches this application as %s reads all of '
                    "its mail",
                    " or ".join(("localhost", *(settings.inbox_hosts or ()))),
                )
            await inbox.open()
        try:
            await mailer.open()
        except DeliveryError as error:
            if not settings.fail_silently:
                raise
            logger.warning("the backend cannot be opened yet, and the next send tries again (fail_silently): %s", error)
        return running
