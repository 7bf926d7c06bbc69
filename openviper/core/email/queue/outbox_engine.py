"""Find the engine that ``EMAIL["outbox"]`` names, which the journal uses as well."""

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from openviper.conf.imports import import_string, require
from openviper.exceptions import ImproperlyConfigured
from openviper.text import shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = [
    "OUTBOX_REMEDY",
    "close_connections",
    "describe_missing",
    "describe_outbox_failure",
    "outbox_engine",
    "own_outbox_engine",
]

logger = logging.getLogger("openviper.email")

_OUTBOX = 'EMAIL["outbox"]'
_SHORT = 2.0  # seconds for what only helps

OUTBOX_REMEDY = "run `viperctl email outbox create`, or add openviper.db.outbox_tables(metadata) to your migrations"
"""What creates the tables."""


async def outbox_engine(outbox: str, *, setting: str = _OUTBOX) -> "AsyncEngine":
    """Return the engine that ``EMAIL["outbox"]`` names, for the running loop; ``setting`` is what needs it.

    Raises:
        ImproperlyConfigured: it names no engine, or one of a database that is not supported.
        MissingDependency: SQLAlchemy or the driver is not installed.
    """
    return _checked(await _named_engine(outbox, setting), outbox, setting)


@asynccontextmanager
async def own_outbox_engine(
    outbox: str, *, setting: str = _OUTBOX, lock_seconds: float | None = None
) -> "AsyncIterator[AsyncEngine]":
    """Yield an engine on the outbox's database with connections of its own, closed at the end.

    ``lock_seconds`` is how long a statement on SQLite waits for a lock; None means as long as the application's.

    Raises:
        ImproperlyConfigured: the setting names no engine, or one of a database that is not supported.
        MissingDependency: SQLAlchemy or the driver is not installed.
    """
    found = await outbox_engine(outbox, setting=setting)
    from openviper.db.engines import copy_engine

    # Others use the one that was found, some of them on another event loop.
    engine = copy_engine(found, lock_seconds=lock_seconds)
    try:
        yield engine
    finally:
        await engine.dispose()


async def describe_outbox_failure(error: Exception, engine: "AsyncEngine") -> str:
    """Return what is wrong with the outbox, for an error text: the tables that are missing, or the kind of ``error``.

    The error's own text would hold the statement's parameters, which are the message.
    """
    from openviper.db.engines import lacks_table
    from openviper.db.outbox.tables import missing_tables

    original = getattr(error, "orig", None)
    if original is not None and lacks_table(error):  # type: ignore[arg-type] # a DBAPIError
        try:
            async with asyncio.timeout(_SHORT):
                missing = await missing_tables(engine)
        except Exception:  # noqa: BLE001 - of any driver
            missing = []
        return describe_missing(engine, missing or ["a table"])
    return f"the outbox does not answer: {type(original or error).__name__}"


def describe_missing(engine: "AsyncEngine", missing: list[str]) -> str:
    """Return an error text about tables and columns that the outbox's database lacks, with the remedy."""
    return f"{engine.url.render_as_string()} lacks {', '.join(missing)}; {OUTBOX_REMEDY}"


async def close_connections(engine: "AsyncEngine") -> None:
    """Close idle connections: the application's lifespan ends first, and may have disposed of the engine there."""
    if engine.dialect.name == "sqlite" and "memory" in (engine.url.database or "memory"):
        return  # the database would go with its connection
    try:
        async with asyncio.timeout(_SHORT):
            await engine.dispose()
    except Exception as error:  # noqa: BLE001 - of any driver; they end with the process
        logger.debug("the database's connections were not closed: %s", type(error).__name__)


async def _named_engine(given: str, setting: str) -> Any:
    if given == "database":
        engines = await asyncio.to_thread(require, "openviper.db.engines", extra="db", purpose=setting)
        return await engines.engine()
    return await asyncio.to_thread(import_string, given, setting=_OUTBOX)


def _checked(found: Any, given: str, setting: str) -> "AsyncEngine":
    dialect = getattr(getattr(found, "dialect", None), "name", None)
    if dialect is None or not hasattr(found, "sync_engine"):
        raise ImproperlyConfigured(
            f'{_OUTBOX}: {shown(given)} is a {shown(type(found).__name__)}; give "database", or the dotted path '
            "of an AsyncEngine"
        )
    if dialect not in ("sqlite", "postgresql"):
        raise ImproperlyConfigured(f"{setting}: {shown(dialect)} is not supported; it needs PostgreSQL or SQLite")
    engine: AsyncEngine = found
    return engine
