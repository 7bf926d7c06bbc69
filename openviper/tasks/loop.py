"""Run a worker's event loop, and end it as ``asyncio.run`` does, so that what was opened on it is closed."""

import asyncio
from typing import Any

from dramatiq import Broker
from dramatiq.asyncio import EventLoopThread, get_event_loop_thread, set_event_loop_thread
from dramatiq.middleware import AsyncIO

__all__ = ["WorkerLoop"]

_LIMIT = 30.0


class WorkerLoop(AsyncIO):
    """Dramatiq's own, but it cleans up at the end, and a worker that a second signal ends does not wait for it."""

    def before_worker_boot(self, _broker: Broker, _worker: Any) -> None:
        """Start the loop in a thread that does not outlive the main thread, which a second signal ends."""
        thread = EventLoopThread(self.logger)
        thread.daemon = True
        thread.start(timeout=1.0)
        set_event_loop_thread(thread)

    def after_worker_shutdown(self, broker: Broker, worker: Any) -> None:
        """Clean up while the loop still runs and no actor does."""
        thread = get_event_loop_thread()
        assert thread is not None, "it was started with the worker"
        try:
            asyncio.run_coroutine_threadsafe(_clean_up(), thread.loop).result(_LIMIT)
        except Exception:  # the process ends all the same
            self.logger.exception("the worker's event loop could not be cleaned up")
        super().after_worker_shutdown(broker, worker)


async def _clean_up() -> None:
    """Close async generators, and with them the resources that are closed at the loop's end."""
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await loop.shutdown_default_executor()
