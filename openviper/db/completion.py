"""Await work that must not be left half done, within a limit."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from openviper.conf import settings
from openviper.exceptions import ImproperlyConfigured
from openviper.text import shown

__all__ = ["Unanswered", "time_limit", "to_completion"]

T = TypeVar("T")

_UNWINDING = 5.0  # seconds that cancelled work gets to close its connection

_left_running: set[asyncio.Task[Any]] = set()  # the loop keeps only weak references


class Unanswered(TimeoutError):
    """The work was given up because the database did not answer in time."""


def time_limit() -> float:
    """Return the setting ``DATABASE_TIMEOUT``: seconds that the end of a transaction may wait for the database.

    Raises:
        ImproperlyConfigured: it is not a positive number.
    """
    value = settings.DATABASE_TIMEOUT
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ImproperlyConfigured(f"DATABASE_TIMEOUT: {shown(value)} is not allowed; give seconds above 0, such as 30")
    return float(value)


async def to_completion(
    work: Coroutine[Any, Any, T] | asyncio.Task[T], *, limit: float, give_up: Callable[[], bool] = lambda: True
) -> T:
    """Await ``work`` even when the caller is cancelled meanwhile; the cancellation is raised afterwards.

    If ``work`` fails as well, its error is the cause of the ``CancelledError``. After ``limit`` seconds ``give_up`` is
    called: if it returns True, the work is cancelled. If not, because it has time limits of its own, it is awaited
    further, but a caller that is cancelled waits no more than another ``limit`` seconds and leaves it running.

    Raises:
        Unanswered: the work was given up.
    """
    loop = asyncio.get_running_loop()
    task = work if isinstance(work, asyncio.Task) else asyncio.create_task(work)
    deadline: float | None = loop.time() + limit
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task}, timeout=None if deadline is None else max(0.0, deadline - loop.time()))
        except asyncio.CancelledError as error:
            deadline = loop.time() + limit if deadline is None else deadline
            cancelled = error
        if task.done() or deadline is None or loop.time() < deadline:
            continue
        if give_up():
            await _cancel(task, cancelled)
        if cancelled is not None:
            _leave_running(task)
            raise cancelled
        deadline = None
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


async def _cancel(task: asyncio.Task[Any], cancelled: asyncio.CancelledError | None) -> None:
    """Cancel ``task`` and raise ``Unanswered``, or ``cancelled`` because of it."""
    task.cancel()
    _leave_running(task)
    try:
        await asyncio.wait({task}, timeout=_UNWINDING)
    except asyncio.CancelledError as error:
        cancelled = error
    unanswered = Unanswered("the database did not answer in time")
    if cancelled is not None:
        raise cancelled from unanswered
    raise unanswered


def _leave_running(task: asyncio.Task[Any]) -> None:
    _left_running.add(task)
    task.add_done_callback(_forget)


def _forget(task: asyncio.Task[Any]) -> None:
    _left_running.discard(task)
    if not task.cancelled():
        task.exception()  # read, since nobody else does
