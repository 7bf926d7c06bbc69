"""Declare functions that workers run."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

import dramatiq

from openviper.tasks.broker import declaring_broker

if TYPE_CHECKING:
    from dramatiq.actor import Actor

__all__ = ["actor"]

P = ParamSpec("P")
R = TypeVar("R")


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Awaitable[R]], /) -> "Actor[P, R]": ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> "Actor[P, R]": ...


@overload
def actor(function: Callable[P, Awaitable[R]], /) -> "Actor[P, R]": ...
@overload
def actor(function: Callable[P, R], /) -> "Actor[P, R]": ...
@overload
def actor(*, queue_name: str = ..., actor_name: str | None = ..., **options: Any) -> _Decorator: ...


def actor(function: Any = None, /, **options: Any) -> Any:
    """Make a function, async or not, an actor of the project's broker: ``@actor`` or ``@actor(queue_name="reports")``.

    ``options`` are those of ``dramatiq.actor``. The function can still be called directly; ``.send(...)`` gives it to a
    worker. Async ones run on the worker's event loop, where ``send_email`` and other loop-bound resources are shared.
    With ``TASKS["enabled"]`` off it can be declared and called, and ``send`` raises ImproperlyConfigured.
    """
    options.setdefault("broker", declaring_broker())
    return dramatiq.actor(**options) if function is None else dramatiq.actor(function, **options)
