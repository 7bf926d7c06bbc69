"""Transactions that hold mail and callbacks until the commit, and lifecycle hooks, for SQLAlchemy asyncio.

SQLAlchemy is imported at the first use of a name that needs it.
"""

import asyncio
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import openviper.db.transaction  # noqa: F401  # here, because it binds the name that the function below replaces
from openviper.conf.imports import require
from openviper.db.errors import (
    AsyncSessionRequired,
    CommitUnanswered,
    DatabaseMisuse,
    ForbiddenInHook,
    NoTransaction,
    OutboxMisplaced,
    OutboxNotCreated,
    SessionInUse,
    SuppressionNotCreated,
)
from openviper.lazy import lazy_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncSession

    from openviper.db.engines import create_tables, dispose, engine, prepare_sqlite
    from openviper.db.hooks import LifecycleHooks, Model
    from openviper.db.journal import journal_table
    from openviper.db.outbox.tables import outbox_tables
    from openviper.db.session import on_commit
    from openviper.db.suppression import (
        add_suppression,
        create_suppression_table,
        find_suppressed,
        remove_suppression,
        suppression_table,
    )
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "LifecycleHooks": "openviper.db.hooks",
            "Model": "openviper.db.hooks",
            "add_suppression": "openviper.db.suppression",
            "create_suppression_table": "openviper.db.suppression",
            "create_tables": "openviper.db.engines",
            "dispose": "openviper.db.engines",
            "engine": "openviper.db.engines",
            "find_suppressed": "openviper.db.suppression",
            "journal_table": "openviper.db.journal",
            "on_commit": "openviper.db.session",
            "outbox_tables": "openviper.db.outbox.tables",
            "prepare_sqlite": "openviper.db.engines",
            "remove_suppression": "openviper.db.suppression",
            "suppression_table": "openviper.db.suppression",
        },
        before=lambda: _require_sqlalchemy(),  # noqa: PLW0108 - defined below
    )

__all__ = [
    "AsyncSessionRequired",
    "CommitUnanswered",
    "DatabaseMisuse",
    "ForbiddenInHook",
    "LifecycleHooks",
    "Model",
    "NoTransaction",
    "OutboxMisplaced",
    "OutboxNotCreated",
    "SessionInUse",
    "SuppressionNotCreated",
    "add_suppression",
    "create_suppression_table",
    "create_tables",
    "dispose",
    "engine",
    "find_suppressed",
    "journal_table",
    "on_commit",
    "outbox_tables",
    "prepare_sqlite",
    "remove_suppression",
    "suppression_table",
    "transaction",
]


@asynccontextmanager
async def transaction(session: "AsyncSession | None" = None) -> "AsyncIterator[AsyncSession]":
    """Commit at the end of an ``async with`` block, roll back if the block raises; yield the session.

    If ``session`` is None, one is opened on the setting ``DATABASE_URL`` and closed at the end. Inside another
    ``transaction()`` the same session is used and the block is a savepoint; in a lifecycle hook the block is part of
    the transaction that is being flushed. With ``session`` the block is that session's transaction, or a savepoint if
    ``begin()`` or ``transaction()`` has opened one already. A transaction that SQLAlchemy began by itself, for an
    earlier query, becomes the block's and ends with it.

    Mail sent inside, and callbacks given to ``on_commit()``, are held until the outermost transaction has been
    committed, and dropped if that transaction, or a savepoint around them, is rolled back. Leaving the block awaits
    them. A cancellation during the commit, or while they run, is raised afterwards. The database has
    ``DATABASE_TIMEOUT`` seconds to answer the commit. A cancelled task also waits that long for held mail and
    callbacks, which then continue without it.

    Raises:
        CommitUnanswered: the database did not answer in time. The rows may have been committed; held mail and callbacks
            are dropped.
        SessionInUse: another task is inside a ``transaction()`` on the session that would be shared or committed.
        AsyncSessionRequired: ``session`` is a synchronous Session.
    """
    # Importing SQLAlchemy takes a fifth of a second, and while a thread does so, an import here would wait for it.
    module = _session_module or await asyncio.to_thread(_import_session_module)
    async with module.transaction(session) as opened:
        yield opened


_session_module: Any = None


def _import_session_module() -> Any:
    global _session_module
    _require_sqlalchemy()
    _session_module = import_module("openviper.db.session")
    return _session_module


def _require_sqlalchemy() -> None:
    for library in ("sqlalchemy", "greenlet"):
        require(library, extra="db", purpose="openviper.db")
