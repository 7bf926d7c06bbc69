"""Choose the delivery mode of a message."""

from typing import Protocol

from openviper.core.email.events import DeliveryMode

__all__ = ["Circumstances", "choose_mode"]


class Circumstances(Protocol):
    """What the mode depends on; a property is read only when those before it leave the mode open."""

    @property
    def background(self) -> bool | None:
        """Return the call's argument ``background``, which takes precedence over the setting."""

    @property
    def use_background_worker(self) -> bool | None:
        """Return the setting ``EMAIL["use_background_worker"]``."""

    @property
    def in_transaction(self) -> bool:
        """True inside ``transaction()`` or a lifecycle hook, while the message may still be held."""

    @property
    def broker(self) -> bool:
        """True when a broker is in use that has not failed to take this message."""

    @property
    def in_request(self) -> bool:
        """True when the outbox of an http request is there."""

    @property
    def room(self) -> bool:
        """True when the dispatcher has room; without it a new message goes inline, so that memory stays bounded."""


def choose_mode(circumstances: Circumstances) -> DeliveryMode:
    """Return the delivery mode that fits ``circumstances``; the table is in ``docs/delivery.md``."""
    if circumstances.background is False:
        return DeliveryMode.INLINE
    if circumstances.in_transaction:
        return DeliveryMode.HELD
    wanted = circumstances.background or circumstances.use_background_worker is not False
    if wanted and circumstances.broker:
        return DeliveryMode.QUEUED
    if circumstances.in_request and circumstances.room:
        return DeliveryMode.DEFERRED
    return DeliveryMode.INLINE
