"""The engines on DATABASE_URL, and what importing openviper.db needs."""
# ruff: noqa: PT012  # what raises here is a whole transaction block

import asyncio
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import ForeignKey, func, make_url, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from support.patience import PATIENCE

from openviper import conf, db
from openviper.db.engines import copy_engine
from openviper.exceptions import ImproperlyConfigured, MissingDependency


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("rows.id"))


async def count() -> int:
    async with db.transaction() as session:
        return await session.scalar(select(func.count()).select_from(Row)) or 0


def interpreter(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter in which a warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **environment},
    )


def test_several_event_loops_of_one_process_have_engines_of_their_own(tmp_path: Path) -> None:
    async def add() -> object:
        await db.create_tables(Base.metadata)
        async with db.transaction() as session:
            session.add(Row())
        return await db.engine()

    with conf.override(DATABASE_URL=f"sqlite:///{tmp_path / 'db.sqlite3'}"):
        engines = [asyncio.run(add()) for _ in range(3)]
        assert asyncio.run(count()) == 3
    assert len({id(engine) for engine in engines}) == 3


async def test_one_loop_keeps_its_engine_also_under_concurrent_first_use(database: None) -> None:
    engines = await asyncio.gather(*(db.engine() for _ in range(5)))
    assert {id(engine) for engine in engines} == {id(await db.engine())}


async def test_another_database_url_is_another_engine(tmp_path: Path) -> None:
    with conf.override(DATABASE_URL=f"sqlite:///{tmp_path / 'a.sqlite3'}"):
        first = await db.engine()
    with conf.override(DATABASE_URL=f"sqlite:///{tmp_path / 'b.sqlite3'}"):
        assert (await db.engine()) is not first
    with conf.override(DATABASE_URL=f"sqlite:///{tmp_path / 'a.sqlite3'}"):
        assert (await db.engine()) is first
    await db.dispose()


async def test_after_dispose_the_next_use_connects_again(database: None) -> None:
    await db.create_tables(Base.metadata)
    await db.dispose()
    assert await count() == 0


USE_WITHOUT_DISPOSE = """
import asyncio
from openviper import conf, db
conf.settings.configure(DATABASE_URL={url!r})

async def main():
    async with db.transaction() as session:
        await session.connection()
    print("done")

asyncio.run(main())
"""


async def test_a_process_ends_cleanly_without_dispose(database_url: str) -> None:
    """aiosqlite's threads do not keep it alive, and no connection is left to the garbage collector."""
    done = interpreter(USE_WITHOUT_DISPOSE.format(url=database_url))
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


async def test_sqlite_enforces_foreign_keys(tmp_path: Path) -> None:
    with conf.override(DATABASE_URL=f"sqlite:///{tmp_path / 'db.sqlite3'}"):
        await db.create_tables(Base.metadata)
        with pytest.raises(IntegrityError):
            async with db.transaction() as session:
                session.add(Row(parent_id=99))
        await db.dispose()


async def test_the_transactions_of_the_sqlite_driver_are_off(tmp_path: Path) -> None:
    with conf.override(DATABASE_URL=f"sqlite:///{tmp_path / 'db.sqlite3'}"):
        async with (await db.engine()).connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            assert driver.isolation_level is None
        await db.dispose()


async def test_autocommit_on_sqlite_stays_without_a_transaction(tmp_path: Path) -> None:
    """VACUUM refuses to run in one."""
    with conf.override(DATABASE_URL=f"sqlite:///{tmp_path / 'db.sqlite3'}"):
        async with (await db.engine()).connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("VACUUM"))
        await db.create_tables(Base.metadata)
        with pytest.raises(LookupError):
            async with db.transaction() as session:
                async with db.transaction():
                    session.add(Row())
                raise LookupError
        assert await count() == 0
        await db.dispose()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite+aiosqlite:///:memory:"])
async def test_sessions_take_turns_on_a_database_in_memory(url: str) -> None:
    """They share its one connection, so one's rollback must not undo another's work."""

    async def add(fails: bool) -> None:
        async with db.transaction() as session:
            session.add(Row())
            await session.flush()
            await asyncio.sleep(0)
            if fails:
                raise LookupError

    with conf.override(DATABASE_URL=url):
        await db.create_tables(Base.metadata)
        results = await asyncio.gather(add(False), add(True), add(False), return_exceptions=True)
        assert [type(result) for result in results] == [type(None), LookupError, type(None)]
        assert await count() == 2
        await db.dispose()


async def test_a_url_object_keeps_its_password(postgres_url: str) -> None:
    with conf.override(DATABASE_URL=make_url(postgres_url)):
        async with db.transaction() as session:
            assert await session.scalar(text("SELECT 1")) == 1
        await db.dispose()


async def test_an_own_sqlite_engine_can_be_prepared(tmp_path: Path) -> None:
    """Without it the row of the released savepoint survives the outer rollback."""
    own = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'own.sqlite3'}")
    db.prepare_sqlite(own)
    async with own.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(own) as session:
        async with session.begin_nested():
            session.add(Row())
        await session.rollback()
        assert (await session.scalars(select(Row))).all() == []
    await own.dispose()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
async def test_a_platforms_url_means_asyncpg(postgres_url: str, scheme: str) -> None:
    url = postgres_url.replace("postgresql+asyncpg", scheme) + "?sslmode=prefer"
    with conf.override(DATABASE_URL=url):
        async with db.transaction() as session:
            assert await session.scalar(text("SELECT 1")) == 1
        await db.dispose()


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("not a url of secret", "not a database URL; give one such as"),
        ("postgresql://user:secret@host:port/name", "not a database URL; give one such as"),
        ("oracle9+nothing://user:secret@host/db", "SQLAlchemy does not know the database 'oracle9+nothing'"),
        ("sqlite+pysqlite:///secret.db", "'sqlite+pysqlite' is not an asynchronous driver; name one, such as sqlite+a"),
        ("mysql://user:secret@host/db", "'mysql' is not an asynchronous driver; name one, such as mysql+aiomysql"),
        ("mssql+pyodbc://user:secret@host/db", "'mssql+pyodbc' is not an asynchronous driver"),
    ],
)
async def test_an_unusable_url_is_refused_without_repeating_it(url: str, fault: str) -> None:
    with conf.override(DATABASE_URL=url), pytest.raises(ImproperlyConfigured) as refused:
        await db.engine()
    assert str(refused.value).startswith("DATABASE_URL: ")
    assert fault in str(refused.value)
    assert "secret" not in str(refused.value)


async def test_a_missing_driver_is_named_with_its_pip_line() -> None:
    with (
        conf.override(DATABASE_URL="mysql+aiomysql://user:secret@host/db"),
        pytest.raises(MissingDependency, match=r"needs 'aiomysql', which is not installed: pip install 'aiomysql'"),
    ):
        await db.engine()


HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {library!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.parametrize("library", ["sqlalchemy", "greenlet"])
@pytest.mark.parametrize(
    "use",
    [
        "from openviper.db import Model",
        "import asyncio, openviper.db; asyncio.run(openviper.db.transaction().__aenter__())",
    ],
)
def test_a_missing_library_is_named_with_its_extra(library: str, use: str) -> None:
    done = interpreter(HIDE.format(library=library) + use)
    assert done.returncode == 1
    assert f"openviper.db needs '{library}', which is not installed: pip install 'openviper-email[db]'" in done.stderr


def test_holding_works_without_sqlalchemy() -> None:
    done = interpreter(
        HIDE.format(library="sqlalchemy")
        + "import openviper.db\nfrom openviper.db.transaction import hold\nprint(hold(print))"
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_missing_aiosqlite_is_named_with_its_extra() -> None:
    done = interpreter(HIDE.format(library="aiosqlite") + USE_WITHOUT_DISPOSE.format(url="sqlite://"))
    assert done.returncode == 1
    assert (
        "'sqlite+aiosqlite' needs 'aiosqlite', which is not installed: pip install 'openviper-email[db]'" in done.stderr
    )


def test_transaction_is_the_function_however_the_module_is_imported_before() -> None:
    done = interpreter(
        "import openviper.db.transaction, openviper.db.session\n"
        "from openviper.db import transaction, engine, on_commit\n"
        "print([type(name).__name__ for name in (transaction, engine, on_commit)])"
    )
    assert done.stdout == "['function', 'function', 'function']\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'transactions'"):
        _ = db.transactions  # type: ignore[attr-defined]


async def test_copy_waits_for_a_lock_on_sqlite_as_long_as_it_is_told(tmp_path: Path) -> None:
    with conf.override(DATABASE_URL=f"sqlite:///{tmp_path}/copied.sqlite3"):
        for seconds, milliseconds in ((None, 30_000), (2.0, 2_000), (math.inf, 30_000)):
            copied = copy_engine(await db.engine(), lock_seconds=seconds)
            async with copied.connect() as connection:
                assert (await connection.exec_driver_sql("PRAGMA busy_timeout")).scalar_one() == milliseconds
            await copied.dispose()
        await db.dispose()
