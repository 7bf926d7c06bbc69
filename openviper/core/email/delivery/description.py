"""Which way mail will go, for people: the log of a startup and the command line."""

from typing import NamedTuple

from openviper.core.email.delivery.mailer import Mailer
from openviper.core.email.delivery.mode import choose_mode
from openviper.core.email.events import Way

__all__ = ["Ways", "current_ways", "describe_ways"]


class _Usual(NamedTuple):
    """The circumstances of a message that says nothing about its mode and is not held."""

    use_background_worker: bool | None
    broker: bool
    in_request: bool
    background: bool | None = None
    in_transaction: bool = False
    room: bool = True


class Ways(NamedTuple):
    """The way of a message that says nothing about it and is not held; ``backend`` and ``reason`` are for people."""

    in_request: Way
    elsewhere: Way
    backend: str
    reason: str


def current_ways(mailer: Mailer) -> Ways:
    """Which way mail will go, and why. Tells of the broker what the last probe has found."""
    settings = mailer.settings
    queue = mailer.transport.queue
    answers = queue is not None and queue.known and queue.available()
    use = settings.use_background_worker
    request, elsewhere = (choose_mode(_Usual(use, answers, in_request)) for in_request in (True, False))
    if queue is None:
        reason = "no message broker is in use"
    elif use is False:
        reason = 'the broker is not used: EMAIL["use_background_worker"] is False'
    elif answers:
        reason = f"workers take it from {queue.address}"
    else:
        reason = f"the broker ({queue.address}) does not answer; mail is queued as soon as it does"
    return Ways(request, elsewhere, mailer.transport.describe(), reason)


def describe_ways(mailer: Mailer) -> str:
    """``current_ways`` as one line for the log."""
    ways = current_ways(mailer)
    explained = " (delivered after the response)" if ways.in_request is Way.DEFERRED else ""
    return (
        f"mail: {ways.in_request} in requests{explained}, {ways.elsewhere} elsewhere, through {ways.backend}; "
        f"{ways.reason}"
    )
