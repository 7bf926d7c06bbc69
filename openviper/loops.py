"""Keep resources of one event loop and process, and close them when the loop ends."""

import asyncio
import contextlib
import inspect
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import ref

__all__ = [
    "PerLoop",
    "accepts",
    "after_fork_in_child",
    "at_loop_end",
    "call_function",
    "is_async",
    "mark_coroutine_function",
]

T = TypeVar("T")


def after_fork_in_child(function: Callable[[], object]) -> None:
    """Call ``function`` in each forked child of this process; Windows forks none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


# Number of forks between the first process and this one; os.getpid() would be a system call for each message.
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


after_fork_in_child(_count_fork)


class _Kept(NamedTuple, Generic[T]):
    loop: ref[asyncio.AbstractEventLoop]
    forks: int
    value: T


class PerLoop(Generic[T]):
    """One value for each event loop.

    A forked child starts without values, because two processes cannot share a socket.
    """

    def __init__(self) -> None:
        # Keyed by the loop's id: a lookup in a WeakKeyDictionary takes several calls.
        self._kept: dict[int, _Kept[T]] = {}

    def get(self) -> T | None:
        """Return the running loop's value, or None."""
        loop = asyncio.get_running_loop()
        kept = self._kept.get(id(loop))
        return None if kept is None or kept.loop() is not loop or kept.forks != _forks else kept.value

    def set(self, value: T) -> None:
        """Keep ``value`` for the running loop."""
        loop = asyncio.get_running_loop()
        forget = partial(_forget, ref(self), id(loop))
        self._kept[id(loop)] = _Kept(ref(loop, forget), _forks, value)

    def discard(self) -> None:
        """Drop the running loop's value, if any."""
        self._kept.pop(id(asyncio.get_running_loop()), None)


def _forget(values: "ref[PerLoop[T]]", number: int, loop: ref[asyncio.AbstractEventLoop]) -> None:
    """Drop the value of ``loop``, which is gone, unless another loop has its id by now."""
    per_loop = values()
    if per_loop is not None and (kept := per_loop._kept.get(number)) is not None and kept.loop is loop:
        del per_loop._kept[number]


def is_async(function: Any) -> bool:
    """True if calling ``function``, an object or a ``partial`` included, makes a coroutine or an async generator."""
    while hasattr(function, "func") and hasattr(function, "args"):  # functools.partial
        function = function.func
    functions = (function, getattr(type(function), "__call__", None))  # noqa: B004 - the method, not whether it is there
    return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in functions)


async def call_function(function: Callable[..., Any], *arguments: object) -> Any:
    """Return the result of an application's function: an async one is awaited here, a plain one runs in a thread.

    Raises:
        RuntimeError: a plain one raised StopIteration, which up to Python 3.11 never reaches who waits for the thread.
        Exception: anything else that it raised.
    """
    result = function(*arguments) if is_async(function) else await asyncio.to_thread(_call_plain, function, arguments)
    return await result if isinstance(result, Awaitable) else result


def _call_plain(function: Callable[..., T], arguments: tuple[object, ...]) -> T:
    try:
        return function(*arguments)
    except StopIteration as error:
        raise RuntimeError("raised StopIteration") from error


_closers: set[AsyncGenerator[None, None]] = set()


def at_loop_end(close: Callable[[], Awaitable[None]]) -> None:
    """Await ``close()`` when the running loop shuts down, for resources that were opened without a lifespan.

    ``asyncio.run`` and ``asyncio.Runner`` (also uvloop's) close every open async generator before they close the loop;
    this function keeps a generator open whose ``finally`` awaits ``close()``.
    """

    async def wait() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            _closers.discard(generator)
            await close()

    generator = wait()
    _closers.add(generator)  # the loop keeps only a weak reference
    with contextlib.suppress(StopIteration):
        generator.__anext__().send(None)  # runs up to the yield, without an iteration of the loop


def mark_coroutine_function(call: Any) -> None:
    """Let frameworks see that ``call`` returns a coroutine: Starlette would run it in a thread and await nothing."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(call)
    else:
        # The flag is what inspect asks; the interpreter itself goes by the first instructions.
        call.__code__ = call.__code__.replace(co_flags=call.__code__.co_flags | inspect.CO_COROUTINE)


def accepts(function: Callable[..., Any], count: int) -> bool:
    """Return False if ``function`` cannot be called with ``count`` values by position."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a function of C without a signature
        return True
    return True
