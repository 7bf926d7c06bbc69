"""The time that tests give to what must happen at all."""

from collections.abc import Awaitable, Callable

import pytest

__all__ = ["PATIENCE", "shown_in_time"]

# A bound against hanging, never a claim about speed: a machine ten times slower than usual must stay within it.
PATIENCE = 120.0  # seconds


async def shown_in_time(show: Callable[[float], Awaitable[None]]) -> None:
    """Await ``show`` with a time-out for the product, in seconds: a short one, and longer ones on a slow machine.

    The silent step must meet the time-out, and all others be over before.
    """
    for seconds in (1.0, 5.0):
        try:
            await show(seconds)
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - shown again, and the last time it counts
            continue
        return
    await show(25.0)
