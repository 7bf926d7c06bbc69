"""Let the layer above say how a message becomes a row of the outbox, and where, since nothing here knows mail."""

from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["CheckDatabase", "EncodeMessage", "database_check", "encode_with", "encoder"]

EncodeMessage = Callable[..., Coroutine[Any, Any, Any]]
"""Returns a ``NewRow``, or None for a message that is not to be sent.

Called with the message, and by name with the times that ``openviper.db.outbox.add`` was given.
"""

CheckDatabase = Callable[[Any, str | None], Coroutine[Any, Any, None]]
"""Raises OutboxMisplaced if the relays read another database than that of a URL and an id (None: it has none)."""

_functions: list[tuple[EncodeMessage, CheckDatabase]] = []


def encode_with(encode: EncodeMessage, check: CheckDatabase) -> None:
    """Have ``encode`` encode messages, and ``check`` the databases that they are stored in."""
    _functions[:] = [(encode, check)]


def encoder() -> EncodeMessage:
    """Return the function that encodes messages.

    Raises:
        RuntimeError: no mail component is imported, so that nothing can have made a message.
    """
    return _registered()[0]


def database_check() -> CheckDatabase:
    """Return the function that checks a database.

    Raises:
        RuntimeError: as for :func:`encoder`.
    """
    return _registered()[1]


def _registered() -> tuple[EncodeMessage, CheckDatabase]:
    if not _functions:
        raise RuntimeError("import openviper.core.email first: it defines the messages that the outbox stores")
    return _functions[0]
