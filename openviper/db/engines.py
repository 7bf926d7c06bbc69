"""Make engines on ``DATABASE_URL``: one for each event loop, closed when the loop ends."""

import asyncio
import logging
import os
from functools import partial
from typing import Any, Protocol
from weakref import WeakSet

from sqlalchemy import MetaData, event, make_url
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

from openviper.conf import describe_origin, settings
from openviper.exceptions import ImproperlyConfigured, MissingDependency
from openviper.loops import PerLoop, at_loop_end
from openviper.text import shown

__all__ = [
    "ONE_STATEMENT",
    "ONLY_READS",
    "close_late_connections",
    "copy_engine",
    "create_tables",
    "dispose",
    "engine",
    "lacks_table",
    "new_session",
    "place_of",
    "prepare_sqlite",
    "read_committed",
]

logger = logging.getLogger("openviper.db")

# Schemes without a driver, as hosting platforms write them.
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
_ASYNCHRONOUS = {**_DRIVERS, "mysql": "mysql+aiomysql", "mariadb": "mariadb+aiomysql"}
_PIP = {"aiosqlite": "openviper-email[db]"}  # any other driver's package has its own name

ONLY_READS = "openviper_only_reads"
"""Execution option of a connection that only reads: on SQLite it begins no transaction, and waits for no writer."""

ONE_STATEMENT = "openviper_one_statement"
"""Execution option of a connection that writes by one statement: on SQLite that is a transaction without BEGIN."""

_SQLITE_BUSY_SECONDS = 30.0
_DISPOSE_SECONDS = 10.0

_engines: PerLoop[dict[str, AsyncEngine]] = PerLoop()
_closing_late: WeakSet[Engine] = WeakSet()
_warned = False


async def engine() -> AsyncEngine:
    """Return the running event loop's engine for the setting ``DATABASE_URL``, created at first use.

    In a URL without a driver, ``sqlite`` means aiosqlite, and ``postgresql`` or ``postgres`` means asyncpg. A SQLite
    engine is prepared by :func:`prepare_sqlite` and waits 30 s for a lock unless the URL has ``timeout``. Connections
    to other databases are tested before each use, so a restart of the server causes no error.

    Raises:
        ImproperlyConfigured: the URL cannot be used.
        MissingDependency: its driver is not installed.
    """
    kept = _engines.get()
    if kept is None:
        kept = {}
        _engines.set(kept)
    setting = settings.DATABASE_URL
    # str() of a URL object hides the password.
    url = setting.render_as_string(hide_password=False) if isinstance(setting, URL) else str(setting)
    if url not in kept:
        _warn_of_unread_variable()
        # Imports the driver. Another task may do the same meanwhile; an engine that never connected needs no disposal.
        created = await asyncio.to_thread(_create, url)
        if kept.setdefault(url, created) is created:
            at_loop_end(partial(_dispose, created))
    return kept[url]


def _warn_of_unread_variable() -> None:
    """Warn once when the environment names a database that no setting has taken from there."""
    global _warned
    if _warned or not os.environ.get("DATABASE_URL") or not settings.is_default("DATABASE_URL"):
        return
    _warned = True
    logger.warning(
        "DATABASE_URL (environment) is not read, so %s is used; write DATABASE_URL = os.environ[%r] in the settings "
        "module; %s",
        settings.DATABASE_URL,
        "DATABASE_URL",
        describe_origin(),
    )


async def new_session() -> AsyncSession:
    """Open a session on :func:`engine`. Objects stay readable after the commit: attributes cannot await a reload."""
    return AsyncSession(await engine(), expire_on_commit=False)


async def dispose() -> None:
    """Close the connections of the running event loop's engines. Otherwise they close when the loop ends."""
    kept = _engines.get() or {}
    _engines.discard()
    for created in kept.values():
        await _dispose(created)


async def _dispose(created: AsyncEngine) -> None:
    try:
        async with asyncio.timeout(_DISPOSE_SECONDS):
            await created.dispose()
    except TimeoutError:
        logger.warning("DATABASE_URL: the database did not answer while its connections were closed; they are dropped")


async def create_tables(metadata: MetaData) -> None:
    """Create the tables of ``metadata`` that do not exist yet; existing tables are not changed."""
    async with (await engine()).begin() as connection:
        await connection.run_sync(metadata.create_all)


def lacks_table(error: DBAPIError) -> bool:
    """Return True if a statement failed because a table or a column does not exist."""
    original: Any = error.orig
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    text = str(original)
    return state in ("42P01", "42703") or any(each in text for each in ("no such table", "has no column", "(1146, "))


def prepare_sqlite(target: AsyncEngine) -> None:
    """Make transactions on SQLite correct. :func:`engine` does this itself; call it for your own engines.

    The driver's own transactions are switched off, because with them a row of a released savepoint survives the
    rollback of the transaction around it. Every transaction begins with ``BEGIN IMMEDIATE``, so it waits for its turn
    to write at its start; a transaction that reads first and writes later fails with "database is locked" if another
    one is faster. Therefore only one transaction runs at a time: keep transactions short. Foreign keys are enforced.

    Call it before the engine's first connection.
    """

    @event.listens_for(target.sync_engine, "connect")
    def connected(connection: "_SQLiteConnection", _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(target.sync_engine, "begin")
    def began(connection: Connection) -> None:
        options = connection.get_execution_options()
        if not (
            options.get("isolation_level") == "AUTOCOMMIT" or options.get(ONLY_READS) or options.get(ONE_STATEMENT)
        ):
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def close_late_connections(target: AsyncEngine) -> None:
    """Have connections closed that a task still uses when ``target`` is disposed of, once they are returned.

    SQLAlchemy would keep them open in the pool of before, which nobody asks for a connection any more.
    """
    engine = target.sync_engine
    if engine in _closing_late:
        return
    _closing_late.add(engine)
    pool = engine.pool

    @event.listens_for(engine, "engine_disposed")
    def disposed(engine: Engine) -> None:
        nonlocal pool
        event.listen(pool, "checkin", _close_returned)
        pool = engine.pool


def _close_returned(_connection: object, entry: ConnectionPoolEntry) -> None:
    entry.close()


def read_committed(given: AsyncEngine) -> AsyncEngine:
    """Return ``given`` with transactions at READ COMMITTED, whatever level it is configured with; on PostgreSQL only.

    At a higher one, short writes of several processes to the same rows fail with a serialisation failure (40001), and
    can make a transaction of the application fail with it.
    """
    return given.execution_options(isolation_level="READ COMMITTED") if given.dialect.name == "postgresql" else given


def place_of(url: URL) -> tuple[object, ...]:
    """Return what two URLs of one database have in common, whatever their driver and user: server, port and name.

    Blocks: the file of a SQLite database is looked up.
    """
    backend = url.get_backend_name()
    if backend == "sqlite" and url.database and url.database != ":memory:":
        return backend, os.path.realpath(url.database)
    port = url.port or (5432 if backend == "postgresql" else None)
    return backend, url.host or url.query.get("host"), port, url.database


def copy_engine(given: AsyncEngine, *, lock_seconds: float | None = None) -> AsyncEngine:
    """Return an engine on the same database with connections of its own, such as for another event loop.

    ``lock_seconds`` is how long a statement on SQLite waits for a lock, during which it cannot be cancelled; None
    means as long as on ``given``. The caller disposes of the engine.
    """
    original = given.sync_engine
    copied = AsyncEngine(Engine(original.pool.recreate(), original.dialect, original.url))
    if original.dialect.name == "sqlite":
        prepare_sqlite(copied)
        if lock_seconds is not None:
            event.listen(copied.sync_engine, "connect", partial(_limit_lock_wait, lock_seconds))
    return copied


def _limit_lock_wait(seconds: float, connection: "_SQLiteConnection", _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(min(seconds, _SQLITE_BUSY_SECONDS) * 1000)}")
    cursor.close()


def _create(setting: str) -> AsyncEngine:
    url = _parsed(setting)
    _check_driver(url)
    sqlite = url.get_backend_name() == "sqlite"
    try:
        created = create_async_engine(url, **(_sqlite_options(url) if sqlite else {"pool_pre_ping": True}))
    except ModuleNotFoundError as error:
        package = _PIP.get(error.name or "", error.name)
        raise MissingDependency(
            f"DATABASE_URL: {shown(url.drivername)} needs {shown(error.name)}, which is not installed: "
            f"pip install '{package}'",
            name=error.name,
        ) from error
    if sqlite:
        prepare_sqlite(created)
    close_late_connections(created)
    return created


def _parsed(setting: str) -> URL:
    try:
        url = make_url(setting)
    except (ArgumentError, ValueError):  # ValueError: the port is not a number
        # SQLAlchemy's text quotes the URL, which may hold a password.
        raise ImproperlyConfigured(
            "DATABASE_URL: not a database URL; give one such as sqlite:///shop.sqlite3 or postgresql://user@host/name"
        ) from None
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    if url.drivername == "postgresql+asyncpg" and "sslmode" in url.query:
        # libpq's name; asyncpg calls it "ssl".
        url = url.update_query_dict({"ssl": url.query["sslmode"]}).difference_update_query(["sslmode"])
    return url


def _check_driver(url: URL) -> None:
    """Refuse a synchronous driver before it is imported, so that nobody installs it in vain."""
    try:
        dialect = url.get_dialect().get_async_dialect_cls(url)
    except NoSuchModuleError as error:
        raise ImproperlyConfigured(
            f"DATABASE_URL: SQLAlchemy does not know the database {shown(url.drivername)}"
        ) from error
    if not dialect.is_async:
        fitting = _ASYNCHRONOUS.get(url.get_backend_name(), _ASYNCHRONOUS["postgresql"])
        raise ImproperlyConfigured(
            f"DATABASE_URL: {shown(url.drivername)} is not an asynchronous driver; name one, such as {fitting}"
        )


def _sqlite_options(url: URL) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if "timeout" not in url.query:
        options["connect_args"] = {"timeout": _SQLITE_BUSY_SECONDS}
    if url.database in (None, "", ":memory:"):
        # The database lives in its connection. SQLAlchemy's default shares that connection among sessions, so one
        # session's rollback would undo another's work; a pool of one connection makes them take turns.
        options |= {"poolclass": AsyncAdaptedQueuePool, "pool_size": 1, "max_overflow": 0}
    return options


class _Cursor(Protocol):
    def execute(self, statement: str, /) -> object: ...
    def close(self) -> None: ...


class _SQLiteConnection(Protocol):
    isolation_level: str | None

    def cursor(self) -> _Cursor: ...
