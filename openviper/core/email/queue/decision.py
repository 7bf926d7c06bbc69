"""What follows from an attempt: done, another one, or the end."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from openviper.core.email.backends.base import DeliveryReport
from openviper.core.email.errors import ConnectionFailed, DeliveryError, RecipientsRefused, Refusal
from openviper.core.email.queue.job import Progress
from openviper.core.email.settings import EmailSettings

__all__ = ["Again", "Done", "Failed", "after_error", "after_report", "retry_delay"]

_FIRST = 3.0
_LONGEST = 3600.0


@dataclass(frozen=True, slots=True)
class Done:
    """Everybody has it."""


@dataclass(frozen=True, slots=True)
class Again:
    """Another attempt after ``delay`` seconds."""

    progress: Progress
    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """No further attempt."""

    progress: Progress
    reason: str

    @property
    def uncertain(self) -> bool:
        """True when this attempt or an earlier one may have delivered it, to all or to some."""
        return self.progress.uncertain


def retry_delay(attempts: int) -> float:
    """Seconds before the next attempt: 3, 6, 12, ... an hour, each with jitter so that they do not come together."""
    longest = min(_LONGEST, _FIRST * 2.0 ** min(attempts - 1, 12))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret hangs on it


def after_report(progress: Progress, report: DeliveryReport, settings: EmailSettings) -> Done | Again | Failed:
    """At least one recipient has it: those refused for now are tried again, those refused for good are kept.

    Those of whom nobody knows are tried again or held, as ``on_uncertain`` says.
    """
    progress = replace(progress, attempts=progress.attempts + 1)
    return _after_refusals(progress, report.refused, settings)


def after_error(progress: Progress, error: Exception, settings: EmailSettings) -> Again | Failed:
    """Nobody has it, or nobody knows. What is no delivery error (a wrong setting, say) is tried again, too."""
    progress = replace(progress, attempts=progress.attempts + 1)
    reason = f"{type(error).__name__}: {error}"
    if not isinstance(error, DeliveryError):
        return _again(progress, reason, settings)
    if error.refused and (settings.allow_partial or error.uncertain):
        unsent = error.accepted if isinstance(error, RecipientsRefused) else ()
        refused = error.refused | {address: Refusal(451, "not sent") for address in unsent}
        outcome = _after_refusals(progress, refused, settings)
        return outcome if not isinstance(outcome, Done) else Failed(progress, reason)
    if error.uncertain:
        progress = replace(progress, uncertain=True)
        if settings.on_uncertain == "hold":
            if progress.left is not None:
                held = {**progress.held, **dict.fromkeys(progress.left, reason)}
                progress = replace(progress, left=(), held=held)
            return Failed(progress, reason)
    if isinstance(error, RecipientsRefused) and not all(refusal.temporary for refusal in error.refused.values()):
        return Failed(progress, reason)  # allow_partial is off: one refused for good means nobody
    return _again(progress, reason, settings) if _is_worth_another(error) else Failed(progress, reason)


def _is_worth_another(error: Exception) -> bool:
    """Whether a later attempt may succeed: also where the server refused the connection for good.

    A wrong password or an expired certificate says nothing about the message, and somebody will put it right.
    """
    return not isinstance(error, DeliveryError) or error.temporary or isinstance(error, ConnectionFailed)


def _after_refusals(
    progress: Progress, refused: Mapping[str, Refusal], settings: EmailSettings
) -> Done | Again | Failed:
    uncertain = {address: str(refusal) for address, refusal in refused.items() if refusal.uncertain}
    held = uncertain if settings.on_uncertain == "hold" else {}
    certain = {address: refusal for address, refusal in refused.items() if address not in held}
    for_good = {address: str(refusal) for address, refusal in certain.items() if not refusal.temporary}
    later = tuple(address for address, refusal in certain.items() if refusal.temporary)
    progress = replace(
        progress,
        left=later,
        refused={**progress.refused, **for_good},
        held={**progress.held, **held},
        uncertain=progress.uncertain or bool(uncertain),
    )
    if later:
        replies = sorted({str(refused[address]) for address in later})
        return _again(progress, f"{len(later)} recipients refused for now: {'; '.join(replies[:3])}", settings)
    missing = ((progress.held, "recipients perhaps have it"), (progress.refused, "recipients refused"))
    reasons = [f"{len(who)} {words}: {'; '.join(sorted(set(who.values()))[:3])}" for who, words in missing if who]
    return Failed(progress, "; ".join(reasons)) if reasons else Done()


def _again(progress: Progress, reason: str, settings: EmailSettings) -> Again | Failed:
    left = progress.since + settings.retry_max_age - time.time()
    if left <= 0 or settings.retry_max_age == 0:
        return Failed(progress, f"given up after {progress.attempts} attempts: {reason}")
    return Again(progress, min(retry_delay(progress.attempts), left), reason)
