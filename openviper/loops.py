"""Resources that belong to one event loop of one process, and closing them when the loop ends."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["PerLoop", "at_loop_end"]

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Keeps one value for each event loop.

    A forked child starts with none: two processes cannot share a socket.
    """

    def __init__(self) -> None:
        self._values: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[int, T]] = WeakKeyDictionary()

    def get(self) -> T | None:
        """The value of the running loop, or None."""
        pid, value = self._values.get(asyncio.get_running_loop(), (0, None))
        return value if pid == os.getpid() else None

    def set(self, value: T) -> None:
        """Keep ``value`` for the running loop."""
        self._values[asyncio.get_running_loop()] = (os.getpid(), value)

    def discard(self) -> None:
        """Forget the value of the running loop, if any."""
        self._values.pop(asyncio.get_running_loop(), None)


_closers: set[AsyncGenerator[None, None]] = set()


def at_loop_end(close: Callable[[], Awaitable[None]]) -> None:
    """Await ``close()`` when the running loop shuts down, for what was opened without a lifespan.

    ``asyncio.run`` and ``asyncio.Runner`` (also uvloop's) close every async generator that is still open before they
    close the loop; ours waits in its ``finally`` for exactly that.
    """

    async def wait() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            _closers.discard(generator)
            await close()

    generator = wait()
    _closers.add(generator)  # the loop itself keeps only a weak reference
    with contextlib.suppress(StopIteration):
        generator.__anext__().send(None)  # runs up to the yield, which needs no loop iteration
