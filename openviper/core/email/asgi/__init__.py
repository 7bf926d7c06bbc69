"""``Email`` for OpenViper applications and ``EmailMiddleware`` for every other ASGI application."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from openviper.core.email.asgi.lifespan import LifespanConversation
from openviper.core.email.asgi.middleware import Layer
from openviper.core.email.asgi.runtime import Service

__all__ = ["Email", "EmailMiddleware"]


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
        self._service = Service(settings, call="Email(")

    def lifespan(self, _app: object) -> AbstractAsyncContextManager[None]:
        """Open and close with the application."""
        return self._lifespan()

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        async with self._service.lifespan():
            yield

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Stand around everything, so that mail leaves after all of the application's own code has run."""
        return Layer(app, self._service)


class EmailMiddleware(Layer):
    """The same for any ASGI application: ``app = EmailMiddleware(app)``.

    It answers the lifespan scope as well, also for an application that does not know it. ``settings`` as for
    :class:`Email`.
    """

    surrounded = True  # by ServerErrorMiddleware, with add_middleware()

    # Every framework has its own types for the three arguments of an ASGI application.
    def __init__(
        self, app: Callable[[Any, Any, Any], Awaitable[None]], settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(app, Service(settings, call="EmailMiddleware(app, "))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
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
        conversation = LifespanConversation(startup, receive, send)
        try:
            await conversation.run(self.app, scope)
        finally:
            await lifespan.__aexit__(None, None, None)
            await conversation.finish()
