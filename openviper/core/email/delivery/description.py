"""Describe the delivery mode that mail will take, for people: the log of a startup and the command line."""

from typing import NamedTuple

from openviper.core.email.delivery.mailer import Mailer
from openviper.core.email.delivery.mode import choose_mode
from openviper.core.email.delivery.redirect import describe_redirect
from openviper.core.email.events import DeliveryMode

__all__ = ["DeliveryModes", "current_modes", "describe_modes"]


class _Answering(NamedTuple):
    """A transport whose queue is there only while the broker answers."""

    queue: object | None


class DeliveryModes(NamedTuple):
    """The mode of a message that asks for none and is not held; the texts are for people."""

    in_request: DeliveryMode
    elsewhere: DeliveryMode
    backend: str
    reason: str
    redirect: str  # "" if mail goes to its recipients


def current_modes(mailer: Mailer) -> DeliveryModes:
    """Return the modes that mail will take, and why, by the last probe of the broker."""
    settings = mailer.settings
    queue = mailer.transport.queue
    answers = queue is not None and queue.known and queue.available()
    use = settings.use_background_worker
    transport = _Answering(queue if answers else None)
    request, elsewhere = (
        choose_mode(None, use, in_transaction=False, transport=transport, can_defer=in_request)
        for in_request in (True, False)
    )
    if queue is None:
        reason = "no message broker is in use"
    elif use is False:
        reason = 'the broker is not used: EMAIL["use_background_worker"] is False'
    elif answers:
        reason = f"workers take it from {queue.address}"
    else:
        reason = f"the broker ({queue.address}) does not answer; mail is queued as soon as it does"
    return DeliveryModes(request, elsewhere, mailer.transport.describe(), reason, describe_redirect(settings))


def describe_modes(mailer: Mailer) -> str:
    """Return ``current_modes`` as one line for the log."""
    modes = current_modes(mailer)
    explained = " (delivered after the response)" if modes.in_request is DeliveryMode.DEFERRED else ""
    return (
        f"mail: {modes.in_request} in requests{explained}, {modes.elsewhere} elsewhere, through {modes.backend}; "
        f"{modes.reason}{'; ' if modes.redirect else ''}{modes.redirect}"
    )
