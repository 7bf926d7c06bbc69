"""A Starlette application with route decorators and extensions that take part in its lifespan."""

import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, TypeVar, cast

from starlette.applications import Starlette
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from openviper.exceptions import ImproperlyConfigured, OpenViperError
from openviper.text import shown

__all__ = ["Extension", "OpenViper"]

Handler = TypeVar("Handler", bound=Callable[..., Any])


class Extension(Protocol):
    """An extension for :meth:`OpenViper.add_extension`: a name, and any of three optional methods.

    - ``lifespan(app)`` returns an async context manager, entered at startup and exited at shutdown. If it yields a
      mapping, that is added to the lifespan state.
    - ``wrap(asgi_app)`` returns an ASGI application around ``asgi_app``, outside all middleware and error handling.
    - ``routes()`` returns routes to add to the application.
    """

    @property
    def name(self) -> str:
        """Return the extension's name; an application takes one extension of each name."""


class OpenViper(Starlette):
    """A Starlette application. ``title`` names it in logs; all other options are Starlette's."""

    def __init__(self, title: str = "OpenViper", **starlette_options: Any) -> None:
        super().__init__(**starlette_options)
        self.title = title
        self._extensions: dict[str, Extension] = {}
        self._application_lifespan = self.router.lifespan_context
        self.router.lifespan_context = cast("Lifespan[Any]", self._lifespan)

    def add_extension(self, extension: Extension) -> None:
        """Add ``extension``. Lifespans nest in the order added, with the application's own innermost.

        Raises:
            ImproperlyConfigured: an extension of that name was added before, or the application has started.
        """
        if isinstance(extension, type):
            name = extension.__name__
            raise ImproperlyConfigured(f"add_extension({name}): this is a class; give an object: {name}(...)")
        if not isinstance(getattr(extension, "name", None), str):
            kind = type(extension).__name__
            raise ImproperlyConfigured(f"add_extension({kind}): this is not an extension, since it has no name")
        if self.middleware_stack is not None:
            raise ImproperlyConfigured(
                f"add_extension({shown(extension.name)}): the application has already started; add it before the start"
            )
        if extension.name in self._extensions:
            raise ImproperlyConfigured(
                f"add_extension({shown(extension.name)}): this extension has already been added; add it only once"
            )
        self._extensions[extension.name] = extension
        if routes := getattr(extension, "routes", None):
            self.router.routes.extend(routes())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, _without_traceback(send) if scope["type"] == "lifespan" else send)

    def build_middleware_stack(self) -> ASGIApp:
        app = super().build_middleware_stack()
        # Reversed, so that the extension added first is outermost, like its lifespan.
        for extension in reversed(self._extensions.values()):
            if wrap := getattr(extension, "wrap", None):
                app = wrap(app)
        return app

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[Mapping[str, Any] | None]:
        state: dict[str, Any] = {}
        async with AsyncExitStack() as stack:
            lifespans: list[Callable[[Any], AbstractAsyncContextManager[Any]]] = [
                extension.lifespan for extension in self._extensions.values() if hasattr(extension, "lifespan")
            ]
            for lifespan in (*lifespans, self._application_lifespan):
                if yielded := await stack.enter_async_context(lifespan(app)):
                    state.update(yielded)
            # Not an empty mapping: Starlette refuses any mapping on a server without lifespan state.
            yield state or None

    def route(
        self, path: str, methods: Sequence[str] = ("GET",), name: str | None = None
    ) -> Callable[[Handler], Handler]:
        """Register the decorated function for ``path``; a plain ``def`` runs in the thread pool."""

        def register(handler: Handler) -> Handler:
            self.router.add_route(path, handler, methods=list(methods), name=name)
            return handler

        return register

    def get(self, path: str, name: str | None = None) -> Callable[[Handler], Handler]:
        """Register the decorated function for GET and HEAD."""
        return self.route(path, ["GET"], name)

    def post(self, path: str, name: str | None = None) -> Callable[[Handler], Handler]:
        """Register the decorated function for POST."""
        return self.route(path, ["POST"], name)

    def put(self, path: str, name: str | None = None) -> Callable[[Handler], Handler]:
        """Register the decorated function for PUT."""
        return self.route(path, ["PUT"], name)

    def patch(self, path: str, name: str | None = None) -> Callable[[Handler], Handler]:
        """Register the decorated function for PATCH."""
        return self.route(path, ["PATCH"], name)

    def delete(self, path: str, name: str | None = None) -> Callable[[Handler], Handler]:
        """Register the decorated function for DELETE."""
        return self.route(path, ["DELETE"], name)


def _without_traceback(send: Send) -> Send:
    """Report a start that one of our own errors stopped by the error's text, which Starlette puts below a traceback."""

    async def report(message: Message) -> None:
        error = sys.exc_info()[1]  # Starlette sends the failure while it handles the error
        if message["type"] == "lifespan.startup.failed" and isinstance(error, OpenViperError):
            message = {**message, "message": str(error)}
        await send(message)

    return report
