"""Give each request an outbox, and flush it when the application call has ended."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openviper.core.email.asgi.lifespan import LifespanConversation
from openviper.core.email.asgi.runtime import Running, Runtime
from openviper.core.email.delivery import apart_from_other_requests, stay_with, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.inbox import is_inbox_path
from openviper.core.email.sending.single import send_email

__all__ = ["Email", "EmailMiddleware", "Layer"]

# In the scope, so that a layer around a mounted application finds the outbox of the outermost layer.
_OUTBOX = "openviper.email.outbox"


class Layer:
    """Gives each request an outbox and flushes it when the application call has returned or raised."""

    surrounded = False
    """True where the application's own error handling may stand around it."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        running = await self._runtime.running()
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

    async def _request(self, running: Running, scope: Scope, receive: Receive, send: Send) -> None:
        outbox = scope[_OUTBOX] = RequestOutbox()
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
            if self.surrounded and "app" in scope:
                # The application's own error handling stands around this layer; its 500 handler may still send.
                stay_with(running.mailer, outbox)
            raise
        except BaseException:
            # Cancelled, usually because the client left: what was accepted goes out all the same.
            await _end(running, outbox, failure=None)
            raise
        await _end(running, outbox, failure=f"status {status}" if status >= 500 else None)


class Email:
    """The extension for OpenViper applications: ``app.add_extension(Email())``.

    ``settings`` override the environment and the setting ``EMAIL``, key by key. On startup it validates the settings,
    opens the backend and logs which delivery mode mail will take; on shutdown it delivers deferred mail within
    ``shutdown_timeout`` and closes. It puts ``send_email`` and ``email`` (the mailer) on ``request.state``.

    Raises:
        ImproperlyConfigured: at startup, listing every fault of the settings.
    """

    name = "email"

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self._runtime = Runtime(settings, call="Email(")

    def lifespan(self, _app: object) -> AbstractAsyncContextManager[None]:
        """Open and close with the application."""
        return self._lifespan()

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        async with self._runtime.lifespan():
            yield

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Wrap the whole application, so that mail leaves after all of its own code has run."""
        return Layer(app, self._runtime)


class EmailMiddleware(Layer):
    """Mail for any ASGI application: ``app = EmailMiddleware(app)``.

    It answers the lifespan scope as well, also for an application that does not support it. ``settings`` are those of
    :class:`Email`.
    """

    surrounded = True  # by ServerErrorMiddleware, with add_middleware()

    # Every framework has its own types for the three arguments of an ASGI application.
    def __init__(
        self, app: Callable[[Any, Any, Any], Awaitable[None]], settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(app, Runtime(settings, call="EmailMiddleware(app, "))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        startup = await receive()
        lifespan = self._runtime.lifespan()
        try:
            await lifespan.__aenter__()
        except Exception as error:  # noqa: BLE001 - the server logs the text; a traceback would bury it
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        conversation = LifespanConversation(startup, receive, send)
        try:
            await conversation.run(self.app, scope)
        finally:
            await lifespan.__aexit__(None, None, None)
            await conversation.finish()


async def _end(running: Running, outbox: RequestOutbox, *, failure: str | None) -> None:
    """Flush the outbox, then wait until the dispatcher has room.

    The wait ends after ``shutdown_timeout``, because a server that stops waits for its requests before it lets mail be
    drained. Without a lifespan, and with an immediate transport, wait for the delivery itself.
    """
    if failure is not None and running.mailer.settings.discard_on_error:
        outbox.discard(f'the request failed ({failure}) and EMAIL["discard_on_error"] is set')
        return
    deliveries = outbox.flush()
    waits = running.waits or any(delivery.transport.immediate for delivery in deliveries)
    if futures := [delivery.done if waits else delivery.admitted for delivery in deliveries]:
        await asyncio.wait(futures, timeout=None if waits else running.mailer.settings.shutdown_timeout)
