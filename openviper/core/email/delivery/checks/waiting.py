"""Wait for calls that cannot be cancelled, such as the system resolver's."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["in_thread", "remaining"]

_T = TypeVar("_T")


async def in_thread(function: Callable[[], _T], deadline: float) -> _T:
    """Return the result of ``function``, called in a thread that does not delay the end of the program.

    ``asyncio.to_thread`` would keep the program alive until the function returns.

    Raises:
        TimeoutError: the function has not returned at ``deadline`` (loop time).
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_T] = loop.create_future()

    def run() -> None:
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - raised in the waiting task
            _settle(loop, answer, error=error)
        else:
            _settle(loop, answer, result)

    threading.Thread(target=run, name="openviper-check", daemon=True).start()
    async with asyncio.timeout_at(deadline):
        return await answer


def remaining(deadline: float) -> float:
    """Return the seconds until ``deadline`` (loop time), at least a tenth."""
    return max(0.1, deadline - asyncio.get_running_loop().time())


def _settle(
    loop: asyncio.AbstractEventLoop,
    answer: "asyncio.Future[_T]",
    result: _T | None = None,
    error: Exception | None = None,
) -> None:
    def set_outcome() -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]

    with suppress(RuntimeError):  # the loop is closed, so no task waits
        loop.call_soon_threadsafe(set_outcome)
