"""Transactions that hold back what they caused until they are committed, and lifecycle hooks, for SQLAlchemy asyncio.

SQLAlchemy is imported at the first use of a name that needs it.
"""

import asyncio
import sys
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import openviper.db.transaction  # noqa: F401  # now, because it binds the name that the function below takes over
from openviper.conf.imports import require
from openviper.db.errors import AsyncSessionRequired, DatabaseMisuse, ForbiddenInHook, NoTransaction, SessionInUse
from openviper.lazy import lazy_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncSession

    from openviper.db.engines import create_tables, dispose, engine, prepare_sqlite
    from openviper.db.hooks import LifecycleHooks, Model
    from openviper.db.session import on_commit
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "LifecycleHooks": "openviper.db.hooks",
            "Model": "openviper.db.hooks",
            "create_tables": "openviper.db.engines",
            "dispose": "openviper.db.engines",
            "engine": "openviper.db.engines",
            "on_commit": "openviper.db.session",
            "prepare_sqlite": "openviper.db.engines",
        },
        before=lambda: _require_sqlalchemy(),  # noqa: PLW0108 - defined below
    )

__all__ = [
    "AsyncSessionRequired",
    "DatabaseMisuse",
    "ForbiddenInHook",
    "LifecycleHooks",
    "Model",
    "NoTransaction",
    "SessionInUse",
    "create_tables",
    "dispose",
    "engine",
    "on_commit",
    "prepare_sqlite",
    "transaction",
]


@asynccontextmanager
async def transaction(session: "AsyncSession | None" = None) -> "AsyncIterator[AsyncSession]":
    """``async with transaction() as session``: commit at the end of the block, roll back when it raises.

    Without ``session`` one is opened on the setting ``DATABASE_URL`` and closed at the end. Inside another
    ``transaction()`` the same session is used and the block is a savepoint; in a lifecycle hook it is part of the
    transaction that is being flushed. With ``session`` the block is that session's transaction, or a savepoint where
    ``begin()`` or ``transaction()`` has opened one already; one that SQLAlchemy began by itself, for an earlier query,
    becomes the block's and ends with it.

    What is sent or given to ``on_commit()`` inside is held until the outermost transaction has been committed, and
    dropped when it, or the savepoint around it, is rolled back. The exit awaits it. While the commit and what follows
    it run, a cancellation waits; it is raised afterwards.

    Raises:
        SessionInUse: another task is inside a ``transaction()`` on the session that would be shared, or on the one that
            is about to be committed.
        AsyncSessionRequired: ``session`` is a synchronous Session.
    """
    if f"{__name__}.session" not in sys.modules:
        await asyncio.to_thread(_session_module)  # importing SQLAlchemy takes a fifth of a second
    async with _session_module().transaction(session) as opened:
        yield opened


def _session_module() -> Any:
    _require_sqlalchemy()
    return import_module("openviper.db.session")


def _require_sqlalchemy() -> None:
    for library in ("sqlalchemy", "greenlet"):
        require(library, extra="db", purpose="openviper.db")
