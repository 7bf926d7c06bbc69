"""Which way mail will go, for people: the log of a startup and the command line."""

from typing import NamedTuple

from openviper.core.email.delivery.mailer import Mailer
from openviper.core.email.delivery.mode import choose_way
from openviper.core.email.events import Way

__all__ = ["Ways", "current_ways", "describe_ways"]


class Ways(NamedTuple):
    """The way of a message that says nothing about it and is not held; ``backend`` and ``reason`` are for people."""

    in_request: Way
    elsewhere: Way
    backend: str
    reason: str


def current_ways(mailer: Mailer) -> Ways:
    """Which way mail will go, and why. Tells of the broker what the last probe has found."""
    settings = mailer.settings
    service = mailer.queue
    answers = service is not None and service.detector.known and service.detector.available()
    use = settings.use_background_worker
    request, elsewhere = (
        choose_way(background=None, use_background_worker=use, broker=answers, in_request=in_request, room=True)
        for in_request in (True, False)
    )
    if service is None:
        reason = "no message broker is in use"
    elif use is False:
        reason = 'the broker is not used: EMAIL["use_background_worker"] is False'
    elif answers:
        reason = f"workers take it from {service.settings.address}"
    else:
        reason = f"the broker ({service.settings.address}) does not answer; mail is queued as soon as it does"
    return Ways(request, elsewhere, mailer.backend.describe(), reason)


def describe_ways(mailer: Mailer) -> str:
    """``current_ways`` as one line for the log."""
    ways = current_ways(mailer)
    explained = " (delivered after the response)" if ways.in_request is Way.DEFERRED else ""
    return (
        f"mail: {ways.in_request} in requests{explained}, {ways.elsewhere} elsewhere, through {ways.backend}; "
        f"{ways.reason}"
    )
