"""Waiting for what cannot be cancelled, such as a look-up of the system's resolver."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["in_thread", "left"]

_T = TypeVar("_T")


async def in_thread(function: Callable[[], _T], deadline: float) -> _T:
    """Its result, or TimeoutError at ``deadline`` (loop time); the program can end while it still runs.

    ``asyncio.to_thread`` would hold the end of the program until the function has returned.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_T] = loop.create_future()

    def run() -> None:
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            _tell(loop, answer, error=error)
        else:
            _tell(loop, answer, result)

    threading.Thread(target=run, name="openviper-check", daemon=True).start()
    async with asyncio.timeout_at(deadline):
        return await answer


def left(deadline: float) -> float:
    """Seconds until ``deadline``, never less than a tenth."""
    return max(0.1, deadline - asyncio.get_running_loop().time())


def _tell(
    loop: asyncio.AbstractEventLoop,
    answer: "asyncio.Future[_T]",
    result: _T | None = None,
    error: Exception | None = None,
) -> None:
    def settle() -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]

    with suppress(RuntimeError):  # nobody waits any more, and the loop is closed
        loop.call_soon_threadsafe(settle)
