"""Give each request an outbox, and flush it when the application call has ended."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Never, TypeVar

from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openviper.core.email.asgi.applications import (
    FailedStart,
    called_by_add_middleware,
    check_application,
    check_attachable,
    wrap_when_built,
)
from openviper.core.email.asgi.lifespan import LifespanConversation
from openviper.core.email.asgi.notice import print_page
from openviper.core.email.asgi.runtime import Running, Runtime
from openviper.core.email.delivery import apart_from_other_requests, stay_with, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.delivery.wrappers import wrappers
from openviper.core.email.inbox import is_inbox_path
from openviper.core.email.sending.single import send_email
from openviper.exceptions import ImproperlyConfigured
from openviper.loops import mark_coroutine_function
from openviper.text import shown

__all__ = ["Email", "EmailMiddleware", "Layer", "LifespanLayer"]

Application = TypeVar("Application", bound=Starlette)

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
            await self.app(scope, receive, self._runtime.watch_start(send) if scope["type"] == "lifespan" else send)
            return
        running = await self._runtime.running()
        if self._runtime.page_unknown:
            self._runtime.page_unknown = False
            print_page(scope)
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
        outbox = scope[_OUTBOX] = RequestOutbox(running.mailer.outbox)
        stores_first = running.mailer.outbox is not None and running.mailer.settings.outbox_wait
        status = 0

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif stores_first and message["type"] == "http.response.body" and not message.get("more_body"):
                await outbox.store()
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
    """Mail for an application: ``Email().attach(app)`` for Starlette and FastAPI.

    For OpenViper it is an extension: ``app.add_extension(Email())``. ``settings`` override the environment and the
    setting ``EMAIL``, key by key. At startup it validates the settings, opens the backend and logs which delivery mode
    mail will use; at shutdown it delivers deferred mail within ``shutdown_timeout`` and closes the backend. It puts
    ``send_email`` and ``email`` (the mailer) on ``request.state``.

    Raises:
        ImproperlyConfigured: ``settings`` is not a dict or, at startup, a setting is wrong; lists every fault.
    """

    name = "email"

    if not TYPE_CHECKING:

        def __new__(cls, settings=None, *_more, **_unknown):
            if callable(settings) and called_by_add_middleware():
                return FailedStart(
                    "add_middleware(Email): Email is not a middleware; write Email(settings).attach(app), or "
                    "app.add_middleware(EmailMiddleware, settings=...)"
                )
            return super().__new__(cls)

    def __init__(self, settings: Mapping[str, Any] | None = None, *more: Never, **unknown: Never) -> None:
        if more:
            raise TypeError(f"Email() takes one dict of settings, and was given {1 + len(more)} arguments")
        _check_settings(settings, unknown, call="Email(")
        self._settings = settings
        self._runtime = Runtime(settings, call="Email(")
        wrappers.note("Email(settings)", settings)

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            remedy = "; write Email(settings).attach(app)" if name == "init_app" else ""
            raise AttributeError(f"{shown(type(self).__name__)} object has no attribute {shown(name)}{remedy}")

    def attach(self, app: Application) -> Application:
        """Add mail to a Starlette or FastAPI application, and return the application.

        Mail wraps all middleware and error handling of ``app``, and takes part in its lifespan; the server still runs
        ``app`` itself. Applications mounted in ``app`` use the same mailer.

        Raises:
            ImproperlyConfigured: ``app`` is another kind of object, has already started, or already has mail.
        """
        check_attachable(app, layer=Layer)
        if (add_extension := getattr(app, "add_extension", None)) is not None:
            add_extension(self)  # an OpenViper application, which orders its extensions
        else:
            # A runtime for each application: several may start and stop on one event loop.
            runtime = Runtime(self._settings, call="Email(")
            wrap_when_built(app, lambda stack: LifespanLayer(stack, runtime), layer=Layer)
        return app

    def lifespan(self, _app: object) -> AbstractAsyncContextManager[None]:
        """Open and close with the application."""
        return self._lifespan()

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        wrappers.reached = True
        async with self._runtime.lifespan():
            yield

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Wrap the whole application, so that mail leaves after all of its own code has run."""
        return Layer(app, self._runtime)


class LifespanLayer(Layer):
    """A layer that answers the lifespan scope as well, also for an application that does not support it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        wrappers.reached = True
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        send = self._runtime.watch_start(send)
        startup = await receive()
        lifespan = self._runtime.lifespan()
        failure: Exception | None = None
        try:
            await lifespan.__aenter__()
        except Exception as error:  # noqa: BLE001 - sent, and raised, outside of this block: servers raise errors too
            failure = error
        if failure is not None:
            await send({"type": "lifespan.startup.failed", "message": str(failure)})
            raise failure  # for Starlette's TestClient; servers log the text alone
        conversation = LifespanConversation(startup, receive, send)
        try:
            await conversation.run(self.app, scope)
        finally:
            await lifespan.__aexit__(None, None, None)
            await conversation.finish()


class EmailMiddleware(LifespanLayer):
    """Mail for any ASGI application: ``app = EmailMiddleware(app)``.

    It also handles the lifespan scope, even if the application does not support it. ``settings`` are as for
    :class:`Email`.

    Raises:
        ImproperlyConfigured: ``app`` is not an ASGI application, or ``settings`` is not a dict.
    """

    surrounded = True  # by ServerErrorMiddleware, with add_middleware()

    if TYPE_CHECKING:
        # Every framework has its own types for the three arguments of an ASGI application.
        def __init__(
            self, app: Callable[[Any, Any, Any], Awaitable[None]], settings: Mapping[str, Any] | None = None
        ) -> None: ...
    else:

        def __init__(self, app, settings=None, **unknown):
            _check_settings(settings, unknown, call="EmailMiddleware(app, ")
            check_application(app, call="EmailMiddleware(app)")
            super().__init__(app, Runtime(settings, call="EmailMiddleware(app, "))
            wrappers.note("EmailMiddleware(app, settings)", settings)

        def __call__(self, scope, receive=None, send=None):
            if send is None and called_by_add_middleware():
                return FailedStart(
                    "add_middleware(EmailMiddleware(app)): give the class, with its settings by name: "
                    "app.add_middleware(EmailMiddleware, settings=...)"
                )
            return super().__call__(scope, receive, send)

        mark_coroutine_function(__call__)  # servers take an application for one of ASGI 2 otherwise

        def __getattr__(self, name):
            raise AttributeError(
                f"'EmailMiddleware' object has no attribute {shown(name)}; use the application itself before it is "
                "wrapped, or for Quart: app.asgi_app = EmailMiddleware(app.asgi_app)"
            )


def _check_settings(settings: object, unknown: Mapping[str, Any], *, call: str) -> None:
    """Refuse settings that are not given as one dict; ``call`` is the source text of the call up to them."""
    if unknown:
        name = next(iter(unknown))
        raise ImproperlyConfigured(f'{call}{name}=...): settings are given as one dict: {call}{{"{name}": ...}})')
    if settings is None or isinstance(settings, Mapping):
        return
    remedy = "give a dict of settings"
    if callable(settings):
        remedy = "these are settings; an application is given to Email(settings).attach(app), or EmailMiddleware(app)"
    raise ImproperlyConfigured(f"{call}{type(settings).__name__}): {remedy}")


async def _end(running: Running, outbox: RequestOutbox, *, failure: str | None) -> None:
    """Flush the outbox, then wait until the dispatcher has room.

    The wait ends after ``shutdown_timeout``, because a server that stops waits for its requests before it lets mail be
    drained. Without a lifespan, and with an immediate transport, wait for the delivery itself, but for no pause's end.
    """
    if failure is not None and running.mailer.settings.discard_on_error:
        outbox.discard(f'the request failed ({failure}) and EMAIL["discard_on_error"] is set')
        return
    deliveries = outbox.flush() if running.mailer.outbox is None else await outbox.store_and_flush()
    waits = running.waits or any(delivery.transport.immediate for delivery in deliveries)
    if futures := [delivery.wait_settled() if waits else delivery.admitted for delivery in deliveries]:
        await asyncio.wait(futures, timeout=None if waits else running.mailer.settings.shutdown_timeout)
