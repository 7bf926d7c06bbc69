"""Bound the time in which a message may be sent."""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from openviper.core.email.errors import InvalidMessage

__all__ = ["AT_ONCE", "Schedule"]

_FURTHEST = 366 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """The first and the last moment of sending, in Unix seconds; None sets no limit."""

    due_at: float | None = None
    expires_at: float | None = None

    @classmethod
    def make(
        cls, *, send_at: datetime | None, delay: float | timedelta | None, expires_at: datetime | None
    ) -> "Schedule":
        """Return the schedule of ``send_email``'s arguments.

        Raises:
            InvalidMessage: a time has no zone, ``send_at`` and ``delay`` are both given, the first moment is more than
                a year ahead, or the last moment is not after the first.
        """
        if send_at is None and delay is None and expires_at is None:
            return AT_ONCE
        if send_at is not None and delay is not None:
            raise InvalidMessage("delay: excludes send_at; give one of them")
        now = time.time()
        due = _moment(send_at, "send_at")
        if delay is not None:
            due = now + _seconds(delay)
        if due is not None and due - now > _FURTHEST:
            raise InvalidMessage("send_at: is more than a year ahead" if delay is None else "delay: is over a year")
        end = _moment(expires_at, "expires_at")
        if end is not None and end <= max(now, due or now):
            raise InvalidMessage("expires_at: passed before the message could be sent; give a later moment")
        return cls(due, end)

    @property
    def later(self) -> bool:
        """True when the message must wait."""
        return self.due_at is not None and self.due_at > time.time()


AT_ONCE = Schedule()


def _moment(value: Any, field: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidMessage(f"{field}: must be a datetime with a time zone, such as datetime.now(UTC)")
    return value.timestamp()


def _seconds(delay: Any) -> float:
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
        raise InvalidMessage("delay: must be seconds (0 or more) or a timedelta that is not negative")
    return float(seconds)
