"""Represent which mail is paused, and which was, as one value with a stored form."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

__all__ = ["NOT_PAUSED", "Pause", "PauseState"]

_VERSION = 1
_REMEMBERED = 40 * 86400.0  # seconds for which an ended pause counts for the age of mail
_MOST = 100  # pauses that are kept
_LATEST = 1e12  # Unix seconds
_LATEST_SHOWN = 253_402_300_799.0  # the last second of the year 9999


class Pause(NamedTuple):
    """A pause of one mailer's mail, or of all mail if ``mailer`` is None.

    ``since`` and ``until`` are Unix seconds by the store's clock; ``until`` is None as long as no end is known.
    """

    mailer: str | None
    since: float
    until: float | None = None

    def concerns(self, mailer: str) -> bool:
        """True if mail of ``mailer`` is stopped."""
        return self.mailer is None or self.mailer == mailer

    def is_active(self, now: float) -> bool:
        """True if it has not ended at ``now``."""
        return self.until is None or now < self.until

    def describe(self) -> str:
        """Return which mail it stops, for people."""
        return "all mail" if self.mailer is None else f"mail of the mailer {self.mailer}"

    def on_clock(self, ahead: float) -> "Pause":
        """Return it with times of a clock behind which the store's is ``ahead`` seconds."""
        return self._replace(since=self.since - ahead, until=None if self.until is None else self.until - ahead)

    def describe_end(self) -> str:
        """Return when it ends, for people; its times have to be those of this machine's clock."""
        if self.until is None:
            return "until `viperctl email resume`"
        return f"until {datetime.fromtimestamp(min(self.until, _LATEST_SHOWN), UTC):%Y-%m-%d %H:%M:%S} UTC"


class PauseState(NamedTuple):
    """The pauses that have not ended, and those that ended lately: mail does not age while it is paused."""

    pauses: tuple[Pause, ...] = ()

    @classmethod
    def unreadable(cls, now: float) -> Self:
        """Return the state of a flag that is there and cannot be read: all mail is paused, until somebody resumes.

        Only the pause command writes the flag, so somebody wanted mail to stop.
        """
        return cls((Pause(None, now),))

    def active(self, now: float) -> tuple[Pause, ...]:
        """Return the pauses that have not ended at ``now``."""
        return tuple([pause for pause in self.pauses if pause.is_active(now)])

    def paused(self, mailer: str | None, *, now: float, until: float | None) -> Self:
        """Return the state after a pause command; an active pause of the same mail gets the new end."""
        begun = [pause.since for pause in self.active(now) if pause.mailer == mailer]
        others = [pause for pause in self.pauses if pause.mailer != mailer or not pause.is_active(now)]
        return self._replace(pauses=(*_recent(others, now), Pause(mailer, min(begun, default=now), until)))

    def resumed(self, mailer: str | None, *, now: float) -> Self:
        """Return the state after a resume command; None ends every pause."""
        ended = [
            pause._replace(until=now) if pause.is_active(now) and mailer in (None, pause.mailer) else pause
            for pause in self.pauses
        ]
        return self._replace(pauses=tuple(_recent(ended, now)))

    def seconds_paused(self, mailer: str, since: float, now: float) -> float:
        """Return for how many seconds between ``since`` and ``now`` mail of ``mailer`` was paused."""
        spans = sorted(
            (max(since, pause.since), now if pause.until is None else min(now, pause.until))
            for pause in self.pauses
            if pause.concerns(mailer)
        )
        total, counted_to = 0.0, since
        for begin, end in spans:
            if end > counted_to:
                total += end - max(begin, counted_to)
                counted_to = end
        return total

    def to_json(self) -> bytes:
        """Return the stored form."""
        return json.dumps({"version": _VERSION, "pauses": [pause._asdict() for pause in self.pauses]}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read the stored form.

        Raises:
            ValueError: it is none, or one of a later version.
        """
        try:
            stored = json.loads(data)
            if stored["version"] != _VERSION:
                raise ValueError("its version is unknown")
            return cls(tuple(_read(stored["pauses"])))
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError("it is not what the pause command writes") from error


NOT_PAUSED = PauseState()


def _recent(pauses: list[Pause], now: float) -> list[Pause]:
    kept = [pause for pause in pauses if pause.until is None or pause.until > now - _REMEMBERED]
    # An active one is never dropped, however many have ended.
    ended = [pause for pause in kept if not pause.is_active(now)][-_MOST:]
    return [*ended, *(pause for pause in kept if pause.is_active(now))]


def _read(stored: Any) -> Iterator[Pause]:
    if not isinstance(stored, list):
        raise TypeError
    for each in stored:
        if not isinstance(each, Mapping):
            raise TypeError
        mailer, since, until = each["mailer"], each["since"], each["until"]
        if not (mailer is None or isinstance(mailer, str)):
            raise TypeError
        for moment in (since, since if until is None else until):
            if isinstance(moment, bool) or not isinstance(moment, int | float) or not 0 <= moment <= _LATEST:
                raise TypeError
        yield Pause(mailer, since, until)
