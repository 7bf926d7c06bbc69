"""Check that a rate limit which is to be shared can be."""

from functools import partial

from openviper.core.email.delivery.checks.result import CheckResult
from openviper.core.email.delivery.checks.waiting import in_thread
from openviper.core.email.delivery.shared_rate import shared_rate, unshared_text
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import MissingDependency

__all__ = ["check_rate"]

_REMEDY = 'start Redis and name it in TASKS, or divide the rate by the number of processes, without "shared"'


async def check_rate(settings: EmailSettings, deadline: float) -> CheckResult | None:
    """Check until ``deadline`` (loop time) that processes share ``rate_limit``; None where they are not to."""
    if unshared := unshared_text(settings):
        return CheckResult.warning("rate", unshared, _REMEDY)
    reserve = shared_rate(settings)
    if reserve is None:
        return None
    address = reserve.tasks.address
    try:
        await in_thread(partial(reserve, 0), deadline)
    except (QueueUnavailable, MissingDependency, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        found = f"{settings.rate_limit} counts for each process separately while {address} cannot be asked: {reason}"
        return CheckResult.warning("rate", found, _REMEDY)
    return CheckResult.ok("rate", f"{settings.rate_limit}, by {address}")
