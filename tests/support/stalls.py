"""How long the event loop is held by what runs on it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

__all__ = ["LoopWatch", "watched_loop"]

_PAUSE = 0.001  # seconds; turning without one would keep threads from their work


class LoopWatch:
    """``longest``: the most seconds so far for which nothing else could run, give or take a millisecond.

    ``turns``: how often something else could run.
    """

    longest = 0.0
    turns = 0


@asynccontextmanager
async def watched_loop(clock: Callable[[], float] = time.monotonic) -> AsyncIterator[LoopWatch]:
    """Watch the running loop for a block. With ``time.thread_time`` only work counts, not waiting for the processor."""
    watch = LoopWatch()

    async def run() -> None:
        while True:
            begin = clock()
            await asyncio.sleep(_PAUSE)
            watch.longest = max(watch.longest, clock() - begin)
            watch.turns += 1

    task = asyncio.create_task(run())
    await asyncio.sleep(0)  # it begins before the block does
    try:
        yield watch
        await asyncio.sleep(2 * _PAUSE)  # it sees the end of the block
    finally:
        task.cancel()
