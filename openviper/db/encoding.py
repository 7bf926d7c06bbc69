"""Let the layer above say how a message becomes a row of the outbox, since nothing here knows mail."""

from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["EncodeMessage", "encode_with", "encoder"]

EncodeMessage = Callable[..., Coroutine[Any, Any, Any]]
"""Returns a ``NewRow``, or None for a message that is not to be sent.

Called with the message, and by name with the times that ``openviper.db.outbox.add`` was given.
"""

_encoder: list[EncodeMessage] = []


def encode_with(function: EncodeMessage) -> None:
    """Have ``function`` encode messages."""
    _encoder[:] = [function]


def encoder() -> EncodeMessage:
    """Return the function that encodes messages.

    Raises:
        RuntimeError: no mail component is imported, so that nothing can have made a message.
    """
    if not _encoder:
        raise RuntimeError("import openviper.core.email first: it defines the messages that the outbox stores")
    return _encoder[0]
