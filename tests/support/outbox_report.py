"""Explain what became of the mail of a run with the database outbox, by the windows of ``docs/outbox.md``."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from support.rabbitmq_trace import RabbitmqTrace

__all__ = ["UNDONE_WITHIN", "WINDOWS", "Arrival", "Crash", "OutboxReport"]

WINDOWS = {
    "a": "killed between the mail server's answer and its record",
    "b": "lost its lease while it was alive",
    "c": "killed before the removal of what RabbitMQ had accepted, or got no confirmation of it",
    "d": "the deletion was undone by a crash of PostgreSQL",
}
_UNCONFIRMED = re.compile(r"message (\S+) stays in the outbox until the broker confirms it")
_REPEATED = re.compile(r"^.*message \S+ is taken over.*$", re.MULTILINE)
UNDONE_WITHIN = 0.6  # seconds before a crash whose deletions may be undone: three times wal_writer_delay


class Arrival(NamedTuple):
    """A copy at the mail server: the process that sent it, and when (``time.monotonic()``)."""

    process: str
    at: float


class Crash(NamedTuple):
    """A crash of the database at ``at``; ``rows`` are the messages that the outbox had after it."""

    at: float
    rows: set[str]


@dataclass
class OutboxReport:
    """What became of the orders, each of which has its token as the subject of its mail."""

    orders: set[str]
    rolled_back: int
    arrivals: Mapping[str, Sequence[Arrival]]  # of each token, in order
    unanswered: set[str]  # mail of requests without a promise: their response never came, or was an error
    killed: Mapping[str, set[str]]  # by process: the tokens whose rows or jobs it had in hand when it died
    stopped: Mapping[str, set[str]] = field(default_factory=dict)  # likewise, when it was stopped
    crashes: Sequence[Crash] = ()
    trace: RabbitmqTrace | None = None
    log: str = ""  # of all processes
    ids: Mapping[str, str] = field(default_factory=dict)  # the Message-ID of each token
    drained_after: float = 0.0  # seconds

    @property
    def repeated(self) -> int:
        """Count the attempts that were told as repeated."""
        return len(_REPEATED.findall(self.log))

    @property
    def lost(self) -> set[str]:
        return self.orders - set(self.arrivals) - self.unanswered

    @property
    def phantoms(self) -> set[str]:
        """Mail of orders that were rolled back."""
        return set(self.arrivals) - self.orders

    @property
    def duplicates(self) -> set[str]:
        return {token for token, copies in self.arrivals.items() if len(copies) > 1}

    @property
    def unexplained(self) -> set[str]:
        return {token for token in self.duplicates if len(self.explain(token)) < len(self.arrivals[token]) - 1}

    @property
    def windows(self) -> "Counter[str]":
        """Count the copies after the first one by their window."""
        return Counter(window for token in self.duplicates for window in self.explain(token))

    @property
    def in_hand(self) -> int:
        """Count what was in hand at the kills and stops, and the rows after the crashes."""
        each = [*self.killed.values(), *self.stopped.values(), *(crash.rows for crash in self.crashes)]
        return sum(map(len, each))

    @property
    def earliest_undone(self) -> float:
        """Return the longest time in seconds from an arrival to the crash that brought its row back."""
        return max((crash.at - at for token in self.duplicates for crash, at in self._undone(token)), default=0.0)

    @cached_property
    def _unconfirmed(self) -> "Counter[str]":
        """Count, by Message-ID, how often a relay gave a message to RabbitMQ and got no confirmation."""
        return Counter(_UNCONFIRMED.findall(self.log))

    def explain(self, token: str) -> list[str]:
        """Return a window for each copy of a message after the first one, as far as there are any."""
        return list(self._reasons(token))[: len(self.arrivals[token]) - 1]

    def _reasons(self, token: str) -> Iterator[str]:
        senders = [arrival.process for arrival in self.arrivals[token]]
        recorded = [process for process in senders if token in self.killed.get(process, ())]
        yield from "a" * len(recorded)
        if self.trace is not None:
            died = sum(process in self.killed for process in senders) - len(recorded)
            yield from "a" * min(died, self.trace.redelivered(token))
        yield from "b" * sum(token in rows for rows in self.stopped.values())
        if self.trace is not None:
            feeders = sum(token in rows for process, rows in self.killed.items() if process not in senders)
            # A process may die as the feeder, with the row, and as the worker whose message is delivered again.
            feeders += min(len(recorded), self.trace.redelivered(token))
            missed = self._unconfirmed[self.ids[token]]
            most = self.trace.copies(token) - 1
            yield from "c" * min(most, feeders + missed + self.trace.redelivered_delayed(token))
        yield from "d" * len([at for crash, at in self._undone(token) if crash.at - at <= UNDONE_WITHIN])

    def _undone(self, token: str) -> list[tuple[Crash, float]]:
        """Return each crash after which the row of a message was there again, with the arrival before it."""
        found = []
        for arrival in self.arrivals[token][:-1]:
            crash = next((crash for crash in self.crashes if crash.at >= arrival.at), None)
            if crash is not None and token in crash.rows:
                found.append((crash, arrival.at))
        return found

    def __str__(self) -> str:
        windows = ", ".join(f"{count} {window}" for window, count in sorted(self.windows.items()))
        kinds = {"kills": self.killed, "stops": self.stopped, "crashes of the database": self.crashes}
        met = ", ".join(f"{kind} {len(each)}" for kind, each in kinds.items())
        lines = [
            f"orders {len(self.orders)}, rolled back {self.rolled_back}, {met}, drained in {self.drained_after:.0f} s",
            f"in hand {self.in_hand}, told as repeated {self.repeated}",
            f"lost {len(self.lost)}, of rolled back orders {len(self.phantoms)}",
            f"arrived twice {len(self.duplicates)} (by window: {windows or '-'}), unexplained {len(self.unexplained)}",
        ]
        if self.crashes:
            lines.append(f"longest time from an arrival that came again to the crash: {self.earliest_undone:.2f} s")
        lines += [f"  window {window}: {WINDOWS[window]}" for window in sorted(self.windows)]
        lines += [f"  lost {token}" for token in sorted(self.lost)]
        lines += [f"  of a rolled back order {token}" for token in sorted(self.phantoms)]
        lines += [self._line(token) for token in sorted(self.duplicates)]
        return "\n".join(lines)

    def _line(self, token: str) -> str:
        senders = ", then ".join(arrival.process.partition(".")[0] for arrival in self.arrivals[token])
        if token not in self.unexplained:
            return f"  {token} came from {senders}: {', '.join(self.explain(token))}"
        lines = [f"  {token} came from {senders}: NOT EXPLAINED"]
        if self.trace is not None:
            lines.append(f"    RabbitMQ had it {self.trace.copies(token)} times: {self.trace.history(token)}")
        lines += [
            f"    {process} had it in hand when it died" for process, rows in self.killed.items() if token in rows
        ]
        lines += [f"    {line}" for line in self.log.splitlines() if self.ids[token].strip("<>") in line]
        return "\n".join(lines)
