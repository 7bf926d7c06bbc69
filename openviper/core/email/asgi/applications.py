"""Check what is given as an application, and wrap a Starlette application where it builds its middleware."""

import inspect
import logging
import sys
from collections.abc import Callable
from weakref import WeakSet

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from openviper.exceptions import ImproperlyConfigured
from openviper.text import shown

__all__ = ["FailedStart", "called_by_add_middleware", "check_application", "check_attachable", "wrap_when_built"]

logger = logging.getLogger("openviper.email")

_attached: WeakSet[Starlette] = WeakSet()


class FailedStart:
    """Takes the place of a middleware that cannot be used, and fails the start of the application with ``problem``.

    Starlette makes its middleware at the first call, which is the lifespan's. An exception there would tell the server
    that the application does not support the lifespan scope, and every request would fail instead.
    """

    def __init__(self, problem: str) -> None:
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.failed", "message": self._problem})
        raise ImproperlyConfigured(self._problem)


def called_by_add_middleware() -> bool:
    """Return True if this function's caller is called by Starlette or FastAPI where they make their middleware."""
    return sys._getframe(2).f_code.co_name == "build_middleware_stack"


def check_application(app: object, *, call: str) -> None:
    """Refuse what cannot be called as an ASGI application; errors begin with ``call``.

    Raises:
        ImproperlyConfigured: it is a class, a function with other arguments, no callable, or has mail already.
    """
    if isinstance(app, type):
        if not hasattr(app, "__await__"):  # as starlette.endpoints.HTTPEndpoint, whose class is the application
            name = app.__name__
            raise ImproperlyConfigured(f"{call}: {shown(name)} is a class, not an application; give {name}(...)")
    elif not callable(app):
        raise ImproperlyConfigured(f"{call}: {shown(app)} is not an ASGI application; give the application object")
    elif (count := _wrong_count(app)) is not None:
        name = getattr(app, "__name__", type(app).__name__)
        raise ImproperlyConfigured(
            f"{call}: {name}() takes {count} arguments, an ASGI application takes scope, receive and send; "
            "call a factory first, and adapt a WSGI application (a2wsgi)"
        )
    elif isinstance(app, Starlette) and app in _attached:
        raise ImproperlyConfigured(f"{call}: mail is attached to this application already; leave one of them out")


def check_attachable(app: object, *, layer: type) -> None:
    """Refuse what ``Email.attach`` cannot wrap; ``layer`` is the class of the wrappers that give mail.

    Raises:
        ImproperlyConfigured: it is no Starlette application, has started, or has mail already.
    """
    if isinstance(app, type):
        name = app.__name__
        raise ImproperlyConfigured(f"Email(...).attach({name}): this is a class, not an application; give {name}(...)")
    if isinstance(app, str):
        raise ImproperlyConfigured(f"Email(...).attach({shown(app)}): this is a name; give the application object")
    call = f"Email(...).attach({type(app).__name__})"
    if isinstance(app, layer):
        raise ImproperlyConfigured(f"{call}: this application already has mail; leave attach() out")
    if not isinstance(app, Starlette):
        raise ImproperlyConfigured(
            f"{call}: this is not a Starlette or FastAPI application; wrap it: app = EmailMiddleware(app)"
        )
    if app in _attached:
        raise ImproperlyConfigured(f"{call}: mail was attached to this application before; attach it once")
    if app.middleware_stack is not None:
        raise ImproperlyConfigured(f"{call}: the application has already started; attach mail before the start")
    if added := _added(app, layer):
        raise ImproperlyConfigured(f"{call}: add_middleware({added}) already adds mail to it; leave one of them out")


def wrap_when_built(app: Starlette, wrap: Callable[[ASGIApp], ASGIApp], *, layer: type) -> None:
    """Wrap all of ``app``'s middleware and error handling, when it starts, in what ``wrap`` returns."""
    build = app.build_middleware_stack

    def build_and_wrap() -> ASGIApp:
        if name := _added(app, layer):
            # An exception here would look as if the application did not support the lifespan scope.
            logger.warning("mail is attached to the application, so add_middleware(%s) must be left out", name)
        return wrap(build())

    app.build_middleware_stack = build_and_wrap  # type: ignore[method-assign] # public, and called at the start
    _attached.add(app)


def _added(app: Starlette, layer: type) -> str | None:
    """Return the name of the mail layer that ``add_middleware`` has added; None without one."""
    classes = (added.cls for added in app.user_middleware)
    return next((cls.__name__ for cls in classes if isinstance(cls, type) and issubclass(cls, layer)), None)


def _wrong_count(app: Callable[..., object]) -> int | None:
    """Return how many positional arguments ``app`` takes if these are not an ASGI application's three."""
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):  # of a callable written in C, which may be anything
        return None
    try:
        signature.bind(None, None, None)
    except TypeError:
        return len(signature.parameters)
    return None
