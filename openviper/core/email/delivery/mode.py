"""Which way a message goes, decided in one function."""

from openviper.core.email.events import Way

__all__ = ["choose_way"]


def choose_way(
    *,
    background: bool | None,
    use_background_worker: bool | None,
    broker: bool,
    in_request: bool,
    room: bool,
) -> Way:
    """The way of a message that is not held.

    ``background`` is the argument of the call and beats the setting ``use_background_worker``; ``broker``: one is
    configured and answers; ``in_request``: an http request's outbox is there; ``room``: the dispatcher has room,
    without which a new message is delivered inline so that memory stays bounded.
    """
    if background is False:
        return Way.INLINE
    if broker and (background or use_background_worker is not False):
        return Way.QUEUED
    if in_request and room:
        return Way.DEFERRED
    return Way.INLINE
