"""``Email`` for OpenViper applications and ``EmailMiddleware`` for every other ASGI application."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openviper.core.email.backends.interception import interceptor_for
from openviper.core.email.delivery import (
    Mailer,
    apart_from_other_requests,
    describe_ways,
    serving_loop,
    stay_with,
    using_mailer,
)
from openviper.core.email.mailbox import Inbox, is_inbox_path
from openviper.core.email.outbox import Outbox, collecting
from openviper.core.email.sender import send_email
from openviper.core.email.settings import EmailSettings, debug
from openviper.loops import PerLoop, at_loop_end

__all__ = ["Email", "EmailMiddleware"]

logger = logging.getLogger("openviper.email")

# In the scope, so that a layer around a mounted application finds the outbox of the layer around the whole.
_OUTBOX = "openviper.email.outbox"


@dataclass(frozen=True, slots=True)
class _Running:
    """What serves one event loop; ``waits``: no lifespan will drain it, so each request waits for its own mail."""

    mailer: Mailer
    inbox: Inbox | None
    waits: bool

    async def aclose(self) -> None:
        await self.mailer.aclose()
        if self.inbox is not None:
            await self.inbox.aclose()


class _Service:
    """What ``Email`` and ``EmailMiddleware`` share: a mailer and an inbox page for each event loop.

    ``call``: how the call that gives ``overrides`` is written, up to them.
    """

    def __init__(self, overrides: Mapping[str, Any] | None, *, call: str) -> None:
        self._overrides = overrides
        self._call = call
        self._running: PerLoop[_Running] = PerLoop()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[_Running]:
        """Validate the settings, open, say which way mail goes; on leaving deliver what is left, and close."""
        running = await self._start(waits=False)
        await running.mailer.detect_broker()
        logger.info("%s", describe_ways(running.mailer))
        with serving_loop(running.mailer):
            try:
                yield running
            finally:
                self._running.discard()
                await running.aclose()

    async def running(self) -> _Running:
        """What serves the running loop; opened here when no lifespan was run."""
        running = self._running.get()
        if running is None:
            logger.warning(
                "the application's lifespan was not run: mail is opened at first use, "
                "and each request waits for its own mail before it ends"
            )
            running = await self._start(waits=True)
            at_loop_end(self._close)
        await running.mailer.open()
        return running

    async def _close(self) -> None:
        running = self._running.get()
        if running is not None:
            self._running.discard()
            await running.aclose()

    async def _start(self, *, waits: bool) -> _Running:
        settings = EmailSettings.load(self._overrides, call=self._call)
        mailer = Mailer(settings)
        inbox = Inbox(mailer) if settings.inbox_enabled(debug=debug()) else None
        running = _Running(mailer, inbox, waits)
        self._running.set(running)
        if inbox is not None:
            if not debug():
                logger.warning(
                    'EMAIL["inbox"] is "always" and DEBUG is off: whoever reaches this application as %s reads all of '
                    "its mail",
                    " or ".join(("localhost", *(settings.inbox_hosts or ()))),
                )
            await inbox.open()
        await mailer.open()
        return running


class _Layer:
    """Gives each request an outbox and hands it over when the application call has returned."""

    _surrounded = False  # True where the application's own error handling may stand outside

    def __init__(self, app: ASGIApp, service: _Service) -> None:
        self.app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        running = await self._service.running()
        if running.inbox is not None and is_inbox_path(scope):
            await running.inbox(scope, receive, send)
            return
        # Not copies: what the application sets in them, its route and request.state, is read by middleware outside.
        scope.setdefault("state", {}).update(send_email=send_email, email=running.mailer)
        with using_mailer(running.mailer):
            if scope["type"] == "websocket" or _OUTBOX in scope:
                await self.app(scope, receive, send)
            else:
                try:
                    await self._request(running, scope, receive, send)
                finally:
                    scope.pop(_OUTBOX, None)  # middleware outside may try the same scope once more

    async def _request(self, running: _Running, scope: Scope, receive: Receive, send: Send) -> None:
        outbox = scope[_OUTBOX] = Outbox()
        status = 0

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with apart_from_other_requests(), collecting(outbox):
                await self.app(scope, receive, watched_send)
        except Exception as error:
            await _end(running, outbox, failure=type(error).__name__)
            if self._surrounded and "app" in scope:
                # The application's own error handling stands around this layer; its 500 handler may still send.
                stay_with(running.mailer, outbox)
            raise
        except BaseException:
            # Cancelled, usually because the client left: what was accepted goes out all the same.
            await _end(running, outbox, failure=None)
            raise
        await _end(running, outbox, failure=f"status {status}" if status >= 500 else None)


async def _end(running: _Running, outbox: Outbox, *, failure: str | None) -> None:
    """Hand over at once; then wait, without holding the messages, for room.

    No longer than ``shutdown_timeout``, since a server that is told to stop waits for its requests, and only then lets
    mail be drained. Without a lifespan, and in a test that looks at its mail, wait for delivery.
    """
    if failure is not None and running.mailer.settings.discard_on_error:
        outbox.discard(f'the request failed ({failure}) and EMAIL["discard_on_error"] is set')
        return
    handed = outbox.hand_over()
    waits = running.waits or interceptor_for() is not None
    if futures := [one.done if waits else one.admitted for one in handed]:
        await asyncio.wait(futures, timeout=None if waits else running.mailer.settings.shutdown_timeout)


class Email:
    """The extension: ``app.add_extension(Email())``.

    ``settings`` override the environment and the setting ``EMAIL``, key by key. On startup it validates the settings,
    opens the backend and logs which way mail will go; on shutdown it delivers deferred mail within
    ``shutdown_timeout`` and closes. It puts ``send_email`` and ``email`` (the mailer) on ``request.state``.

    Raises:
        ImproperlyConfigured: at startup, listing every fault of the settings.
    """

    name = "email"

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self._service = _Service(settings, call="Email(")

    def lifespan(self, _app: object) -> AbstractAsyncContextManager[None]:
        """Open and close with the application."""
        return self._lifespan()

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        async with self._service.lifespan():
            yield

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Stand around everything, so that mail leaves after all of the application's own code has run."""
        return _Layer(app, self._service)


class EmailMiddleware(_Layer):
    """The same for any ASGI application: ``app = EmailMiddleware(app)``.

    It answers the lifespan scope as well, also for an application that does not know it. ``settings`` as for
    :class:`Email`.
    """

    _surrounded = True  # with add_middleware()

    def __init__(self, app: ASGIApp, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(app, _Service(settings, call="EmailMiddleware(app, "))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        startup = await receive()
        lifespan = self._service.lifespan()
        try:
            await lifespan.__aenter__()
        except Exception as error:  # noqa: BLE001 - the server logs the text; a traceback would bury it
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        conversation = _Lifespan(startup, receive, send)
        try:
            await conversation.run(self.app, scope)
        finally:
            await lifespan.__aexit__(None, None, None)
            await conversation.finish()


class _Lifespan:
    """The lifespan messages between server and application, with the last answer kept back until mail is closed."""

    def __init__(self, startup: Message, receive: Receive, send: Send) -> None:
        self._first: Message | None = startup
        self._receive = receive
        self._send = send
        self._started = False
        self._last: Message | None = None

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._next, self._answer)
        except Exception:
            if self._started:
                raise
            # Applications that do not know the lifespan scope raise (ASGI specification, lifespan protocol).
            logger.debug("the application does not answer the lifespan scope; mail answers it", exc_info=True)
        if not self._started:
            await self._answer({"type": "lifespan.startup.complete"})
            await self._receive()
            self._last = {"type": "lifespan.shutdown.complete"}

    async def finish(self) -> None:
        if self._last is not None:
            await self._send(self._last)

    async def _next(self) -> Message:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await self._receive()

    async def _answer(self, message: Message) -> None:
        self._started = True
        if message["type"].startswith("lifespan.shutdown."):
            self._last = message
        else:
            await self._send(message)
