"""Limit a whole call: ``timeout=`` of a send."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from openviper.core.email.errors import DeliveryTimeout, InvalidMessage
from openviper.text import shown

__all__ = ["Deadline"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment ``at`` (``time.monotonic()``) at which a call that was given ``timeout`` seconds has to return."""

    timeout: float
    at: float

    @classmethod
    def after(cls, timeout: Any) -> "Deadline":
        """Return the deadline of a call that begins now; ``timeout`` is seconds or a timedelta.

        Raises:
            InvalidMessage: it is something else, or not above 0.
        """
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
            raise InvalidMessage(f"timeout: {shown(timeout)} is not a duration; give seconds above 0, or a timedelta")
        return cls(float(seconds), time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Return the seconds that are left, not less than 0."""
        return max(0.0, self.at - time.monotonic())

    def error(self, *, uncertain: bool) -> DeliveryTimeout:
        """Return the error of a call that took too long; ``uncertain``: the message may be on its way all the same."""
        outcome = "the message may have been accepted anyway" if uncertain else "nothing was sent"
        return DeliveryTimeout(
            f"timeout: {self.timeout:g} s have passed; {outcome}", temporary=True, uncertain=uncertain
        )

    async def before(self, awaitable: Awaitable[T], *, uncertain: Callable[[], bool] = lambda: False) -> T:
        """Await something that has to end before the deadline.

        Raises:
            DeliveryTimeout: it did not, and was cancelled.
        """
        try:
            async with asyncio.timeout(self.left) as timeout:
                return await awaitable
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise self.error(uncertain=uncertain()) from error
