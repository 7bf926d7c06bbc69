"""Store a message in a transaction that no AsyncSession commits: Core connections, and synchronous code."""

import asyncio
from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from sqlalchemy import Connection, Engine
from sqlalchemy.util.concurrency import await_only, in_greenlet

from openviper.db.encoding import database_check, encoder
from openviper.db.outbox.commit import insert_in, stored_id
from openviper.db.outbox.store import new_row_id
from openviper.text import shown

if TYPE_CHECKING:
    from openviper.db.outbox.rows import NewRow

__all__ = ["add"]

T = TypeVar("T")

_checked: WeakSet[Engine] = WeakSet()  # engines on the database of the relays


def add(
    connection: Connection,
    message: Any,
    *,
    send_at: datetime | None = None,
    delay: float | timedelta | None = None,
    expires_at: datetime | None = None,
) -> str | None:
    """Store ``message`` in the transaction of ``connection``, and return its Message-ID.

    None is returned for a message that ``before_send`` cancels.

    ``message`` is an :class:`~openviper.core.email.EmailMessageData`. A relay delivers it within about a second of the
    commit, by the queue's rules; a rollback, also of a savepoint, takes it back. ``connection`` is of the database that
    ``EMAIL["outbox"]`` names. In synchronous code that is ``session.connection()`` or ``engine.begin()``; an
    AsyncConnection calls ``await connection.run_sync(add, message)``. The times are those of ``send_email``.

    Raises:
        InvalidMessage: the message cannot be sent as given.
        ImproperlyConfigured: ``EMAIL["outbox"]`` is not set, so no relay would deliver the message.
        OutboxMisplaced: ``connection`` is of another database. Each engine is checked once.
        OutboxNotCreated: the database lacks the outbox's tables.
        TypeError: ``connection`` is of another type.
        RuntimeError: called on an event loop, which it would block.
    """
    if not isinstance(connection, Connection):
        raise TypeError(
            f"add(): takes a Connection, not {shown(type(connection).__name__)}; with an AsyncConnection write await "
            "connection.run_sync(add, message), with a Session add(session.connection(), message)"
        )
    row: NewRow | None = _run(encoder()(message, send_at=send_at, delay=delay, expires_at=expires_at))
    if row is None:
        return None
    if connection.engine not in _checked:
        _run(database_check()(connection.engine.url, stored_id(connection)))
        _checked.add(connection.engine)
    insert_in(connection, [(new_row_id(), row)], token=None)
    return row.message_id


def _run(work: Coroutine[Any, Any, T]) -> T:
    if in_greenlet():
        return await_only(work)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    work.close()
    raise RuntimeError("add() would block the event loop: use 'await connection.run_sync(add, message)' here")
