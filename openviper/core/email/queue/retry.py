"""Decide whether to finish, retry or give up after an attempt at a delivery."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from openviper.backoff import exponential, jittered
from openviper.core.email.errors import (
    ConnectionFailed,
    DeliveryError,
    InvalidMessage,
    RecipientsRefused,
    Refusal,
    SendingPaused,
)
from openviper.core.email.events import DeliveryReport
from openviper.core.email.queue.job import Progress
from openviper.core.email.settings import EmailSettings
from openviper.text import counted

__all__ = [
    "Decision",
    "DispatcherPolicy",
    "Done",
    "GiveUp",
    "InlinePolicy",
    "Postpone",
    "QueuePolicy",
    "Retry",
    "RetryPolicy",
    "after_attempt",
    "retry_delay",
]

_FIRST = 3.0
_LONGEST = 3600.0


@dataclass(frozen=True, slots=True)
class Done:
    """Every recipient that can be reached has the message."""

    report: DeliveryReport


@dataclass(frozen=True, slots=True)
class Retry:
    """Another attempt after ``delay`` seconds; ``error`` is None when some recipients received the message."""

    progress: Progress
    delay: float
    reason: str
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No further attempt; ``error`` is None when some recipients received the message."""

    progress: Progress
    reason: str
    error: Exception | None = None

    @property
    def uncertain(self) -> bool:
        """True when this attempt or an earlier one may have delivered it, to all or to some."""
        return self.progress.uncertain


@dataclass(frozen=True, slots=True)
class Postpone:
    """Another attempt at the end of a pause; this one does not count, since it did not begin."""

    progress: Progress
    reason: str
    error: SendingPaused


Decision = Done | Retry | GiveUp | Postpone


class RetryPolicy(ABC):
    """When to retry. ``after_attempt`` holds what every policy shares."""

    __slots__ = ()

    keeps_failures: ClassVar[bool] = False
    """True when a message that did not reach every recipient is kept as failed, to be looked at and retried."""
    sender_decides: ClassVar[bool] = False
    """True when the sender gets the report, so that recipients who are still missing are not a failure."""
    hold_uncertain: bool = False
    """True when recipients who may have the message get no further automatic attempt."""
    allow_partial: bool = True
    """False when one refused recipient of an envelope keeps the message from all of them."""

    @abstractmethod
    def delay_after(self, progress: Progress, *, now: float) -> float | None:
        """Return the seconds until the next attempt, or None when there is to be none; ``now`` is Unix time."""

    def may_pass(self, error: Exception) -> bool:
        """True when a later attempt may succeed where this one has failed."""
        return isinstance(error, DeliveryError) and error.temporary


class DispatcherPolicy(RetryPolicy):
    """Retry after each of ``delays`` (seconds): for mail that is kept in memory."""

    __slots__ = ("allow_partial", "delays")

    def __init__(self, delays: tuple[float, ...], *, allow_partial: bool = True) -> None:
        self.delays = delays
        self.allow_partial = allow_partial

    def delay_after(self, progress: Progress, *, now: float) -> float | None:  # noqa: ARG002 - counts, not clocks
        """Return the delay that belongs to this many attempts."""
        return self.delays[progress.attempts - 1] if progress.attempts <= len(self.delays) else None


class InlinePolicy(RetryPolicy):
    """Retry nothing: the sender gets the report or the error, and decides."""

    __slots__ = ()

    sender_decides = True

    def delay_after(self, progress: Progress, *, now: float) -> None:
        """Return None."""


class QueuePolicy(RetryPolicy):
    """Retry with growing pauses for ``retry_max_age``, and keep what fails: for mail that a job store keeps.

    ``seconds_paused(since, now)``: for how long sending was paused between two moments (Unix seconds), in which mail
    does not age; None: it was not.
    """

    __slots__ = ("_max_age", "_seconds_paused", "allow_partial", "hold_uncertain")

    keeps_failures = True

    def __init__(
        self, settings: EmailSettings, *, seconds_paused: Callable[[float, float], float] | None = None
    ) -> None:
        self._max_age = settings.retry_max_age
        self._seconds_paused = seconds_paused
        self.allow_partial = settings.allow_partial
        self.hold_uncertain = settings.on_uncertain == "hold"

    def delay_after(self, progress: Progress, *, now: float) -> float | None:
        """Return a growing delay with jitter; the last attempt is made when ``retry_max_age`` ends."""
        remaining = progress.since + self._max_age - now
        if self._seconds_paused is not None:
            remaining += self._seconds_paused(progress.since, now)
        return None if remaining <= 0 or self._max_age == 0 else min(retry_delay(progress.attempts), remaining)

    def may_pass(self, error: Exception) -> bool:
        """True also for a refused connection, and for an error that is not a delivery error.

        A wrong password, an expired certificate or a wrong setting is not the message's fault, and will be corrected.
        """
        if isinstance(error, InvalidMessage):
            return False
        return not isinstance(error, DeliveryError) or error.temporary or isinstance(error, ConnectionFailed)


def retry_delay(attempts: int) -> float:
    """Return the seconds before the next attempt: 3, 6, 12, ... an hour, with jitter so that they spread out."""
    return jittered(exponential(attempts, first=_FIRST, longest=_LONGEST))


def after_attempt(
    progress: Progress, outcome: DeliveryReport | Exception, policy: RetryPolicy, *, now: float
) -> Decision:
    """Decide what follows from an attempt that ended with ``outcome``.

    ``progress`` is that of before the attempt; ``now`` is Unix time in seconds. Recipients refused temporarily are
    retried, those refused permanently are not; recipients of whom nothing is certain are retried or held, as the
    policy says.
    """
    if isinstance(outcome, DeliveryReport):
        if not outcome.refused and not progress.refused and not progress.unconfirmed:
            return Done(outcome)
        return _after_refusals(_count_attempt(progress), outcome.refused, outcome, policy, now)
    if isinstance(outcome, SendingPaused) and not (outcome.refused or policy.sender_decides):
        return Postpone(progress, str(outcome), outcome)
    return _after_error(_count_attempt(progress), outcome, policy, now)


def _after_error(progress: Progress, outcome: Exception, policy: RetryPolicy, now: float) -> Decision:
    reason = str(outcome) if isinstance(outcome, InvalidMessage) else f"{type(outcome).__name__}: {outcome}"
    if isinstance(outcome, DeliveryError):
        if outcome.refused and (policy.allow_partial or outcome.uncertain):
            return _after_refusals(progress, _add_unsent(outcome), outcome, policy, now)
        if outcome.uncertain:
            progress = replace(progress, uncertain=True)
            if policy.hold_uncertain:
                if progress.pending is not None:
                    unconfirmed = {**progress.unconfirmed, **dict.fromkeys(progress.pending, reason)}
                    progress = replace(progress, pending=(), unconfirmed=unconfirmed)
                return GiveUp(progress, reason, outcome)
        # allow_partial is off: one recipient refused permanently means that nobody receives it.
        if outcome.refused and not all(refusal.temporary for refusal in outcome.refused.values()):
            return GiveUp(progress, reason, outcome)
    if not policy.may_pass(outcome):
        return GiveUp(progress, reason, outcome)
    return _retry(progress, reason, outcome, policy, now)


def _count_attempt(progress: Progress) -> Progress:
    return replace(progress, attempts=progress.attempts + 1)


def _add_unsent(error: DeliveryError) -> Mapping[str, Refusal]:
    """Return the refusals of ``error``, with those who were accepted while nothing was sent to them."""
    if not isinstance(error, RecipientsRefused):
        return error.refused
    return error.refused | {address: Refusal(451, "not sent") for address in error.accepted}


def _after_refusals(
    progress: Progress,
    refused: Mapping[str, Refusal],
    outcome: DeliveryReport | DeliveryError,
    policy: RetryPolicy,
    now: float,
) -> Decision:
    error = outcome if isinstance(outcome, DeliveryError) else None
    uncertain = {address: str(refusal) for address, refusal in refused.items() if refusal.uncertain}
    unconfirmed = uncertain if policy.hold_uncertain else {}
    certain = {address: refusal for address, refusal in refused.items() if address not in unconfirmed}
    for_good = {address: str(refusal) for address, refusal in certain.items() if not refusal.temporary}
    later = tuple(address for address, refusal in certain.items() if refusal.temporary)
    progress = replace(
        progress,
        pending=later,
        refused={**progress.refused, **for_good},
        unconfirmed={**progress.unconfirmed, **unconfirmed},
        uncertain=progress.uncertain or bool(uncertain),
    )
    if later:
        replies = sorted({str(refused[address]) for address in later})
        reason = f"{counted(len(later), 'recipient')} temporarily refused: {'; '.join(replies[:3])}"
        decision = _retry(progress, reason, error, policy, now)
        if isinstance(decision, Retry) or not policy.sender_decides or error is not None:
            return decision
    if isinstance(outcome, DeliveryReport) and not policy.keeps_failures:
        return Done(outcome)  # the report says who was refused, and nothing keeps the message
    perhaps = "perhaps has it" if len(progress.unconfirmed) == 1 else "perhaps have it"
    missing = ((progress.unconfirmed, perhaps), (progress.refused, "refused"))
    reasons = [
        f"{counted(len(who), 'recipient')} {words}: {'; '.join(sorted(set(who.values()))[:3])}"
        for who, words in missing
        if who
    ]
    if reasons:
        return GiveUp(progress, "; ".join(reasons), error)
    if isinstance(outcome, DeliveryReport):
        return Done(outcome)
    return GiveUp(progress, f"{type(outcome).__name__}: {outcome}", outcome)


def _retry(progress: Progress, reason: str, error: Exception | None, policy: RetryPolicy, now: float) -> Retry | GiveUp:
    delay = policy.delay_after(progress, now=now)
    if delay is not None:
        return Retry(progress, delay, reason, error)
    return GiveUp(progress, f"given up after {counted(progress.attempts, 'attempt')}: {reason}", error)
