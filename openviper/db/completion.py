"""Await work that must not be left half done."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["to_completion"]

T = TypeVar("T")


async def to_completion(work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
    """Await ``work`` to its end even when the caller is cancelled meanwhile; the cancellation is raised afterwards.

    Use it for bounded work only: until it ends the caller cannot be cancelled. If ``work`` fails as well, its error is
    the cause of the ``CancelledError``.
    """
    task = work if isinstance(work, asyncio.Task) else asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()
