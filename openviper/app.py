"""``OpenViper``: a Starlette application with route decorators and lifespan-managed extensions."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, TypeVar, cast

from starlette.applications import Starlette
from starlette.types import ASGIApp, Lifespan

from openviper.exceptions import ImproperlyConfigured
from openviper.text import shown

__all__ = ["Extension", "OpenViper"]

Handler = TypeVar("Handler", bound=Callable[..., Any])


class Extension(Protocol):
    """What ``add_extension`` takes: a name, and any of these three methods.

    - ``lifespan(app)`` returns an async context manager: entered at startup, left at shutdown; a mapping that it
      yields is added to the lifespan state.
    - ``wrap(asgi_app)`` returns an ASGI application around it, outside all middleware and error handling.
    - ``routes()`` returns routes to add to the application.
    """

    @property
    def name(self) -> str:
        """Names the extension; an application has one of each name."""


class OpenViper(Starlette):
    """A Starlette application. ``title`` names it in logs; every other option is Starlette's own."""

    def __init__(self, title: str = "OpenViper", **starlette_options: Any) -> None:
        super().__init__(**starlette_options)
        self.title = title
        self._extensions: dict[str, Extension] = {}
        self._application_lifespan = self.router.lifespan_context
        self.router.lifespan_context = cast("Lifespan[Any]", self._lifespan)

    def add_extension(self, extension: Extension) -> None:
        """Add ``extension``. Lifespans nest in the order added, the application's own inside them all.

        Raises:
            ImproperlyConfigured: one of that name was added before, or the application has started.
        """
        if self.middleware_stack is not None:
            raise ImproperlyConfigured(f"add_extension({shown(extension.name)}): the application has already started")
        if extension.name in self._extensions:
            raise ImproperlyConfigured(f"add_extension({shown(extension.name)}): this extension was added before")
        self._extensions[extension.name] = extension
        if routes := getattr(extension, "routes", None):
            self.router.routes.extend(routes())

    def build_middleware_stack(self) -> ASGIApp:
        app = super().build_middleware_stack()
        # Reversed, so that the one added first stands outermost, as its lifespan does.
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
            # None, not an empty mapping: servers without lifespan state refuse a mapping.
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
        """Register for GET (and HEAD)."""
        return self.route(path, ["GET"], name)

    def post(self, path: str, name: str | None = None) -> Callable[[Handler], Handler]:
        """Register for POST."""
        return self.route(path, ["POST"], name)

    def put(self, path: str, name: str | None = None) -> Callable[[Handler], Handler]:
        """Register for PUT."""
        return self.route(path, ["PUT"], name)

    def patch(self, path: str, name: str | None = None) -> Callable[[Handler], Handler]:
        """Register for PATCH."""
        return self.route(path, ["PATCH"], name)

    def delete(self, path: str, name: str | None = None) -> Callable[[Handler], Handler]:
        """Register for DELETE."""
        return self.route(path, ["DELETE"], name)
