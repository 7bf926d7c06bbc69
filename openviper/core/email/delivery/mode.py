"""Choose the delivery mode of a message."""

from typing import Protocol

from openviper.core.email.events import DeliveryMode

__all__ = ["QueueHolder", "choose_mode"]

_INLINE, _DEFERRED, _QUEUED, _HELD = DeliveryMode


class QueueHolder(Protocol):
    """A transport, as far as the mode depends on it."""

    @property
    def queue(self) -> object | None:
        """Return the queue, or None where no broker is in use."""


def choose_mode(
    background: bool | None,
    use_background_worker: bool | None,
    *,
    in_transaction: bool,
    transport: QueueHolder | None,
    can_defer: bool,
) -> DeliveryMode:
    """Return the delivery mode of a message; the table is in ``docs/delivery.md``.

    ``background`` is the call's argument, which takes precedence over the setting ``use_background_worker``.
    ``in_transaction``: inside ``transaction()`` or a lifecycle hook, and not held before. ``transport`` is None if the
    broker did not accept the message; its queue is asked for only where that decides. ``can_defer``: an http request's
    outbox is there and the dispatcher has room; without room a new message goes inline, so that memory stays bounded.
    """
    if background is False:
        return _INLINE
    if in_transaction:
        return _HELD
    if (background or use_background_worker is not False) and transport is not None and transport.queue is not None:
        return _QUEUED
    return _DEFERRED if can_defer else _INLINE
