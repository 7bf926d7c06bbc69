"""The databases of a run, as the outbox's: the troubles that they can be given, junk, and what is in their rows."""

import asyncio
import secrets
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import insert, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from openviper.db.engines import prepare_sqlite
from openviper.db.outbox import create_outbox_tables
from openviper.db.outbox.rows import LEASE
from openviper.db.outbox.tables import outbox_table
from support.patience import PATIENCE
from support.postgres import PostgresServer
from support.queue_model.brokers import BrokerUnderTest
from support.queue_model.plan import FAR

__all__ = ["PostgresUnderTest", "SqliteUnderTest"]

T = TypeVar("T")

_ANSWER = 2.0  # seconds
_LOCKED = 3.0  # seconds, after which the lock ends by itself: who waits for it is served
_PROGRESS = '{"since": 0, "attempts": 0, "expires_at": null, "left": null, "uncertain": false, "refused": {}}'
_HEAD = b'{"version": 1}'
_JUNK: list[dict[str, Any]] = [
    {"head": b"\x00\x01 no message"},
    {"head": b"null"},
    {"head": b"{}"},
    {"head": b""},
    {"head": _HEAD, "progress": "null"},
    {"head": _HEAD, "progress": "[1"},
    {"head": _HEAD, "parts": b"more than the head says"},
    {"head": _HEAD, "parts": None},
    {"head": b"{}", "claim": "somebody", "lease": 0.0},
    {"head": b"{}", "progress": "{}", "claim": None, "lease": 0.0},
]


class DatabaseUnderTest(BrokerUnderTest):
    """What SQLite and PostgreSQL have in common."""

    is_database = True
    url: str

    def settings(self) -> dict[str, Any]:
        return {"DATABASE_URL": self.url}

    def email_settings(self) -> dict[str, Any]:
        return {"outbox": "database"}

    def create(self) -> None:
        """Create the tables."""

        async def run() -> None:
            engine = create_async_engine(self.url, poolclass=NullPool)
            await create_outbox_tables(engine)
            await engine.dispose()

        asyncio.run(run())

    def add_junk(self, variant: int) -> bool:
        name = f"<ticket-junk-{variant}-{time.monotonic_ns()}>"
        row: dict[str, Any] = {"id": secrets.token_hex(16), "message_id": name, "mailer": "default", "state": "open"}
        row |= {"due": 0.0, "lease": None, "claim": None, "repeated": False, "created": time.time()}
        row |= {"progress": _PROGRESS, "head": b"", "parts": b"", **_JUNK[variant % len(_JUNK)]}
        try:
            self._run(lambda connection: connection.execute(insert(outbox_table).values(row)))
        except (SQLAlchemyError, OSError, TimeoutError):
            return False
        return True

    def in_hand(self) -> "set[str] | None":
        try:
            return self._ids("state = 'open' AND claim IS NOT NULL")
        except (SQLAlchemyError, OSError, TimeoutError):
            return None

    def scheduled(self) -> set[str]:
        return self._ids(f"state = 'open' AND due > {time.time() + FAR / 2}")

    def leftovers(self) -> dict[str, int]:
        counts = {
            "open rows": f"SELECT count(*) FROM email_outbox WHERE state = 'open' AND due < {time.time() + FAR / 2}",
            "parts": "SELECT count(*) FROM email_outbox_part WHERE outbox_id NOT IN (SELECT id FROM email_outbox)",
        }
        found = {name: self._values(query)[0] for name, query in counts.items()}
        return {name: number for name, number in found.items() if number}

    def let_leases_end(self) -> None:
        self._run(lambda connection: connection.execute(text(f"UPDATE email_outbox SET lease = lease - {LEASE}")))

    def _ids(self, condition: str) -> set[str]:
        return set(self._values(f"SELECT message_id FROM email_outbox WHERE {condition}"))

    def _values(self, query: str) -> list[Any]:
        async def read(connection: AsyncConnection) -> list[Any]:
            return list((await connection.execute(text(query))).scalars())

        return self._run(read)

    def _run(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async def run() -> T:
            engine = create_async_engine(self.url, poolclass=NullPool)
            if engine.dialect.name == "sqlite":
                prepare_sqlite(engine)
            async with asyncio.timeout(_ANSWER), engine.begin() as connection:
                return await work(connection)

        return asyncio.run(run())


class SqliteUnderTest(DatabaseUnderTest):
    """A file. Its only trouble is another program that writes for long; its clock is this machine's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = folder / "shop.sqlite3"
        self.url = f"sqlite+aiosqlite:///{self._file}"

    def start(self) -> None:
        self.create()

    def close(self) -> None:
        """Nothing runs."""

    def _begin(self, trouble: str) -> Callable[[], object]:
        assert trouble == "locked"
        connection = sqlite3.connect(self._file, isolation_level=None, timeout=PATIENCE, check_same_thread=False)
        connection.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(_LOCKED, connection.close)
        timer.start()
        return timer.join


class PostgresUnderTest(DatabaseUnderTest):
    """A server of its own, whose clock can be moved."""

    def __init__(self, folder: Path) -> None:
        # Not in ``folder``, which the server's user may not read.
        own = Path(tempfile.mkdtemp(prefix="openviper-postgres-"))
        super().__init__(own)
        self.server: PostgresServer = PostgresServer(own)
        self.url = self.server.url

    def start(self) -> None:
        super().start()
        self.create()

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.server.folder, ignore_errors=True)

    def _begin(self, trouble: str) -> Callable[[], object]:
        if trouble == "locked":
            return self._lock()
        if trouble == "connections ended":
            self._execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            return lambda: None
        assert trouble == "read only"
        self._execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        return lambda: self._execute(
            "SET default_transaction_read_only = off",
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        )

    def _lock(self) -> Callable[[], object]:
        """Lock the table, as a migration does, for a while."""
        runner = asyncio.Runner()

        async def lock() -> "asyncpg.Connection[Any]":
            connection = await self._connect()
            await connection.execute(f"SET idle_in_transaction_session_timeout = '{_LOCKED}s'")
            await connection.execute("BEGIN; LOCK TABLE email_outbox IN ACCESS EXCLUSIVE MODE")
            return connection

        connection = runner.run(lock())

        def end() -> None:
            runner.run(connection.close())
            runner.close()

        return end

    def _execute(self, *statements: str) -> None:
        async def run() -> None:
            connection = await self._connect()
            for statement in statements:
                await connection.execute(statement)
            await connection.close()

        asyncio.run(run())

    async def _connect(self) -> "asyncpg.Connection[Any]":
        return await asyncpg.connect(self.url.replace("+asyncpg", ""), ssl=False, timeout=PATIENCE)
