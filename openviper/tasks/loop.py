"""Ending a worker's event loop as ``asyncio.run`` would, so that what was opened on it is closed."""

import asyncio
import logging
from typing import Any

from dramatiq import Broker, Middleware
from dramatiq.asyncio import get_event_loop_thread

__all__ = ["LoopCleanup"]

logger = logging.getLogger("openviper.tasks")

_LIMIT = 30.0


class LoopCleanup(Middleware):
    """Closes async generators, and with them whatever waits for the loop's end, before AsyncIO stops the loop."""

    def after_worker_shutdown(self, _broker: Broker, _worker: Any) -> None:
        """Runs when no actor runs any more and the loop still does."""
        thread = get_event_loop_thread()
        if thread is None or not thread.loop.is_running():
            return
        try:
            asyncio.run_coroutine_threadsafe(_clean_up(), thread.loop).result(_LIMIT)
        except Exception:  # the process ends all the same
            logger.exception("the worker's event loop could not be cleaned up")


async def _clean_up() -> None:
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await loop.shutdown_default_executor()
