"""What a run knows: the messages and their receipts, the lives of the processes, the troubles; and what follows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from openviper.db.outbox.rows import LEASE
from support.queue_model.mailserver import Arrival
from support.queue_model.plan import PlannedMessage

__all__ = ["Life", "Records", "Sent", "Trouble", "Verdict"]

# Seconds after an attempt began for which its result may still be unrecorded without any trouble.
_RECORDED_WITHIN = 60.0
_ROUNDING = 0.01  # seconds
# On Redis, and in a database, a result is recorded at once.
_RECORDED_AT_ONCE = 2.0
_UNDONE = 3.0  # seconds before a crash of PostgreSQL whose deletions may come back


@dataclass(slots=True)
class Trouble:
    """A trouble of the broker, by the monotonic clock."""

    name: str
    begin: float
    end: float = math.inf

    def overlaps(self, begin: float, end: float) -> bool:
        """True when it was there at any time between."""
        return self.begin <= end and self.end >= begin


@dataclass(slots=True)
class Life:
    """A process from its start to its end. ``in_hand``: Message-IDs that it had when it was killed; None: unknown."""

    name: str
    killed: float = math.inf
    in_hand: set[str] | None = None


@dataclass(slots=True)
class Sent:
    """A message that was given to a web process. ``answer``: the receipt; None as long as there is none."""

    planned: PlannedMessage
    sender: str
    at: float
    answered: float = math.inf
    answer: Mapping[str, Any] | None = None

    @property
    def queued(self) -> bool:
        """True when the receipt says that the broker has it, or that a commit has stored it."""
        return self.answer is not None and self.answer.get("mode") in ("queued", "held")

    @property
    def inline(self) -> bool:
        """True when it was sent while the call lasted."""
        return self.answer is not None and self.answer.get("mode") == "inline"

    @property
    def message_id(self) -> str:
        """Its Message-ID, "" without a receipt."""
        return "" if self.answer is None else str(self.answer.get("message_id", ""))


@dataclass(slots=True)
class Verdict:
    """What became of the recipients; each is "Message-ID address", with words behind it where they explain."""

    accepted: int = 0
    delivered: int = 0
    failed: int = 0
    purged: int = 0
    given_up: list[str] = field(default_factory=list)  # failed although the mail server would have accepted them
    scheduled: int = 0
    lost: list[str] = field(default_factory=list)
    early: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    in_windows: dict[str, int] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)


class Records:
    """Filled in while a run goes on."""

    def __init__(self, broker: str) -> None:
        self.sent: dict[int, Sent] = {}
        self.lives: dict[str, Life] = {}
        self.troubles: list[Trouble] = []
        self.purged: set[str] = set()
        self.perhaps_purged: set[str] = set()
        self.retried: set[str] = set()
        self.known_failed: set[str] = set()
        self._database = broker in ("sqlite", "postgresql")
        self._exact = broker == "redis" or self._database  # it can say what a process had in hand

    def pending(self, arrivals: Mapping[str, Sequence[Arrival]]) -> list[tuple[Sent, str]]:
        """Return the accepted recipients, due in the run, who have nothing yet and are not refused for good."""
        return [
            (sent, address)
            for sent in self.sent.values()
            if sent.queued and not sent.planned.far
            for address in sent.planned.addresses
            if address not in arrivals and address not in sent.planned.refused
        ]

    def verdict(
        self,
        arrivals: Mapping[str, Sequence[Arrival]],
        attempts: Mapping[int, Sequence[tuple[str, float]]],
        failed: Mapping[str, frozenset[str] | None],
        scheduled: set[str],
    ) -> Verdict:
        """Judge the end of a run. ``failed``: for each Message-ID the missing recipients; None: all."""
        verdict = Verdict()
        for sent in self.sent.values():
            for address in sent.planned.addresses:
                copies = arrivals.get(address, ())
                self._judge_end(verdict, sent, address, bool(copies), failed, scheduled)
                if copies and (early := self._early(sent, copies[0].at)) > 0:
                    verdict.early.append(f"{sent.message_id} {address}: {early:.1f} s early")
                for earlier, later in pairwise(copies):
                    window = self._window(sent, earlier, later, attempts.get(sent.planned.number, ()))
                    if window is None:
                        verdict.duplicates.append(f"{sent.message_id} {address}: {earlier.sender}, then {later.sender}")
                    else:
                        verdict.in_windows[window] = verdict.in_windows.get(window, 0) + 1
        return verdict

    def _early(self, sent: Sent, at: float) -> float:
        """Return by how many seconds it came before its time; 0 where the server's clock was moved meanwhile."""
        moved = any(trouble.name == "move clock" and trouble.overlaps(sent.at, at) for trouble in self.troubles)
        return 0.0 if moved else sent.at + (sent.planned.delay or 0.0) - at - _ROUNDING

    def _judge_end(
        self,
        verdict: Verdict,
        sent: Sent,
        address: str,
        arrived: bool,
        failed: Mapping[str, frozenset[str] | None],
        scheduled: set[str],
    ) -> None:
        message_id = sent.message_id
        name = f"{message_id} {address}"
        if sent.inline and sent.answer is not None and address in sent.answer["accepted"] and not arrived:
            verdict.lost.append(f"{name}: inline, accepted, and not there")
        if not sent.queued:
            return
        verdict.accepted += 1
        missing = failed.get(message_id, frozenset())
        if arrived:
            verdict.delivered += 1
            if address in sent.planned.refused:
                verdict.unexpected.append(f"{name}: arrived although it was refused")
        elif missing is None or address in missing:
            verdict.failed += 1
            if sent.planned.deliverable(address):
                verdict.given_up.append(name)
        elif message_id in self.purged or message_id in self.perhaps_purged:
            verdict.purged += 1
        elif sent.planned.far and message_id in scheduled:
            verdict.scheduled += 1
        else:
            verdict.lost.append(name)

    def _window(
        self, sent: Sent, earlier: Arrival, later: Arrival, attempts: Sequence[tuple[str, float]]
    ) -> str | None:
        """Return the documented reason for which a second copy may come; None: there is none."""
        if earlier.cut:
            return "connection cut"
        if self._killed_with(earlier, later):
            return "worker killed"
        if not sent.queued and self._lost_answer(sent):
            return "answer of the broker lost"
        if self._database and (window := self._lease_lost(earlier, later)) is not None:
            return window
        if not self._exact:
            for name, at in attempts:
                if at < later.at:
                    if (life := self.lives.get(name)) is not None and at <= life.killed <= at + _RECORDED_WITHIN:
                        return "worker killed"
                    if any(trouble.overlaps(at, min(later.at, at + _RECORDED_WITHIN)) for trouble in self.troubles):
                        return "broker trouble"
        return None

    def _killed_with(self, earlier: Arrival, later: Arrival) -> bool:
        life = self.lives.get(earlier.sender)
        if life is None or not earlier.at <= life.killed <= later.at:
            return False
        if life.in_hand is not None:
            return earlier.message_id in life.in_hand
        if not self._exact:
            return life.killed - earlier.at < _RECORDED_WITHIN
        # While it could not be asked, nothing could be recorded.
        return any(trouble.overlaps(earlier.at, earlier.at + _RECORDED_AT_ONCE) for trouble in self.troubles)

    def _lease_lost(self, earlier: Arrival, later: Arrival) -> str | None:
        """Return why a process that lives had the row no more, or its deletion came back; None: it had it."""
        for trouble in self.troubles:
            if trouble.name == "move clock" and trouble.overlaps(earlier.at - LEASE, later.at):
                return "clock moved"
            crashed = trouble.name in ("kill broker", "broker down")
            if crashed and trouble.overlaps(earlier.at, earlier.at + _UNDONE):
                return "database crashed"
            if trouble.overlaps(earlier.at, earlier.at + _RECORDED_AT_ONCE) and later.at > earlier.at + LEASE / 2:
                return "database without an answer for a lease"
        return None

    def _lost_answer(self, sent: Sent) -> bool:
        unclear = ("broker down", "pause broker", "kill broker", "memory alarm", "disk alarm", "connections ended")
        return any(trouble.name in unclear and trouble.overlaps(sent.at, sent.answered) for trouble in self.troubles)
