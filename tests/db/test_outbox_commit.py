"""Mail is stored by the commit that promises it, in every way in which a session can commit, and by no other."""
# ruff: noqa: PT012  # what raises here is a whole transaction block

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from support.patience import PATIENCE

from openviper import db
from openviper.db import LifecycleHooks, Model, OutboxMisplaced, OutboxNotCreated, transaction
from openviper.db.outbox import create_outbox_tables
from openviper.db.outbox.commit import StoredSend, check_database
from openviper.db.outbox.keeper import OutboxKeeper
from openviper.db.outbox.rows import DELETE, NewRow
from openviper.db.outbox.store import OutboxStore
from openviper.db.outbox.tables import database_id, outbox_table
from openviper.db.transaction import hold

pytestmark = pytest.mark.usefixtures("database")

_keepers: list[OutboxKeeper] = []
_released: list[str] = []
_dropped: list[str] = []


class Cart(Model):
    __tablename__ = "carts"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]

    async def before_insert(self) -> None:
        send(f"before {self.label}")

    async def after_insert(self) -> None:
        send(f"after {self.label}")


class Base(LifecycleHooks, DeclarativeBase):
    pass


class Other(Base):
    __tablename__ = "others"

    id: Mapped[int] = mapped_column(primary_key=True)

    async def after_insert(self) -> None:
        send("other")


class OtherSession(AsyncSession):
    pass


@pytest.fixture
async def keeper(database: None) -> AsyncIterator[OutboxKeeper]:
    engine = await db.engine()
    await db.create_tables(Model.metadata)
    await create_outbox_tables(engine)
    keeper = OutboxKeeper(OutboxStore(engine))
    _keepers.append(keeper)
    yield keeper
    _keepers.clear()
    _released.clear()
    _dropped.clear()
    await keeper.aclose(1)


def send(name: str, *, due_at: float | None = None) -> StoredSend:
    stored = StoredSend(_keepers[-1], NewRow(name, "default", b"{}", (b"text",), "{}", due_at))
    assert hold(lambda: _released.append(name), lambda: _dropped.append(name), stored)
    return stored


async def rows() -> list[str]:
    async with (await db.engine()).connect() as connection:
        return sorted((await connection.execute(select(outbox_table.c.message_id))).scalars())


async def test_a_transaction_stores_all_of_its_mail_and_nothing_before_its_commit(keeper: OutboxKeeper) -> None:
    async with transaction() as session:
        stored = send("a")
        send("b")
        assert await session.scalar(select(func.count()).select_from(outbox_table)) == 0
    assert await rows() == _released == ["a", "b"]
    assert await keeper.has(stored.row_id)


async def test_a_transaction_that_raises_stores_nothing(keeper: OutboxKeeper) -> None:
    with pytest.raises(LookupError):
        async with transaction() as session:
            session.add(Cart(label="x"))
            send("a")
            await session.flush()
            raise LookupError
    assert await rows() == _released == []
    assert _dropped == ["a", "before x", "after x"]


async def test_a_dropped_savepoint_stores_nothing_and_the_rest_is_stored(keeper: OutboxKeeper) -> None:
    async with transaction():
        send("outer")
        with pytest.raises(LookupError):
            async with transaction():
                send("inner")
                raise LookupError
    assert await rows() == _released == ["outer"]


async def test_a_kept_savepoint_is_stored_by_the_outer_commit(keeper: OutboxKeeper) -> None:
    async with transaction() as session:
        async with transaction():
            send("inner")
        assert await session.scalar(select(func.count()).select_from(outbox_table)) == 0
    assert await rows() == _released == ["inner"]


async def test_a_kept_savepoint_is_dropped_with_the_outer_transaction(keeper: OutboxKeeper) -> None:
    with pytest.raises(LookupError):
        async with transaction():
            async with transaction():
                send("inner")
            raise LookupError
    assert await rows() == _released == []


async def test_hooks_in_a_transaction_store_their_mail(keeper: OutboxKeeper) -> None:
    async with transaction() as session:
        session.add(Cart(label="x"))
    assert await rows() == sorted(_released) == ["after x", "before x"]


async def test_hooks_of_a_plain_commit_store_their_mail(keeper: OutboxKeeper) -> None:
    """They run in the commit's own flush, after the event before_commit."""
    async with AsyncSession(await db.engine()) as session:
        session.add(Cart(label="x"))
        await session.commit()
    assert await rows() == sorted(_released) == ["after x", "before x"]


async def test_hooks_of_an_earlier_flush_store_their_mail(keeper: OutboxKeeper) -> None:
    async with AsyncSession(await db.engine()) as session:
        session.add(Cart(label="x"))
        await session.flush()
        assert await session.scalar(select(func.count()).select_from(outbox_table)) == 0
        await session.commit()
        session.add(Cart(label="y"))
        await session.commit()
    assert await rows() == sorted(_released) == ["after x", "after y", "before x", "before y"]


async def test_a_savepoint_that_is_still_open_is_stored_by_the_commit(keeper: OutboxKeeper) -> None:
    async with AsyncSession(await db.engine()) as session:
        session.add(Cart(label="x"))
        await session.flush()
        await session.begin_nested()
        session.add(Cart(label="y"))
        await session.flush()
        await session.get_transaction().commit()  # type: ignore[union-attr]
    assert await rows() == sorted(_released) == ["after x", "after y", "before x", "before y"]


async def test_a_rollback_and_a_close_store_nothing(keeper: OutboxKeeper) -> None:
    async with AsyncSession(await db.engine()) as session:
        session.add(Cart(label="x"))
        await session.flush()
        await session.rollback()
        session.add(Cart(label="y"))
        await session.flush()
    assert await rows() == _released == []


async def test_session_begin_stores_the_mail_of_hooks(keeper: OutboxKeeper) -> None:
    async with AsyncSession(await db.engine()) as session, session.begin():
        session.add(Cart(label="x"))
    assert await rows() == sorted(_released) == ["after x", "before x"]


async def test_a_session_of_ones_own_stores_its_mail(keeper: OutboxKeeper) -> None:
    async with AsyncSession(await db.engine()) as session, transaction(session):
        send("a")
    assert await rows() == _released == ["a"]


async def test_a_subclass_of_the_session_stores_its_mail(keeper: OutboxKeeper) -> None:
    """SQLModel's AsyncSession is one."""

    await db.create_tables(Base.metadata)
    async with OtherSession(await db.engine()) as session:
        session.add(Other())
        await session.commit()
    assert await rows() == _released == ["other"]


async def test_a_commit_that_fails_stores_nothing(keeper: OutboxKeeper) -> None:
    async with AsyncSession(await db.engine()) as session:
        session.add(Cart(id=1, label="x"))
        await session.commit()
    with pytest.raises(Exception, match=r"(?i)unique"):
        async with transaction() as session:
            send("a")
            session.add(Cart(id=1, label="y"))
    assert "a" not in await rows()
    assert "a" not in _released


async def test_without_the_tables_the_commit_fails_and_nothing_is_sent(database: None) -> None:
    await db.create_tables(Model.metadata)
    keeper = OutboxKeeper(OutboxStore(await db.engine()))
    _keepers.append(keeper)
    with pytest.raises(OutboxNotCreated, match="viperctl email outbox create"):
        async with transaction() as session:
            session.add(Cart(label="secret"))
    assert _released == []
    assert sorted(_dropped) == ["after secret", "before secret"]
    async with transaction() as session:
        assert await session.scalar(select(func.count()).select_from(Cart)) == 0
    _dropped.clear()
    _keepers.clear()


async def test_a_transaction_without_mail_writes_nothing(keeper: OutboxKeeper) -> None:
    async with transaction() as session:
        await session.execute(text("SELECT 1"))
    async with AsyncSession(await db.engine()) as session:
        await session.commit()
    assert await rows() == []


async def test_a_message_that_is_due_later_is_in_nobodys_hands(keeper: OutboxKeeper) -> None:
    async with transaction():
        stored = send("later", due_at=9e9)
    assert await rows() == ["later"]
    assert not await keeper.has(stored.row_id)


async def test_a_delivered_row_is_deleted(keeper: OutboxKeeper) -> None:
    async with transaction():
        stored = send("a")
    assert await keeper.answer(stored.row_id, DELETE)
    assert await rows() == []
    assert not await keeper.answer(stored.row_id, DELETE)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_on_sqlite_a_deletion_is_part_of_the_next_commit(keeper: OutboxKeeper) -> None:
    async with transaction():
        first = send("first")
    recorded = keeper.answer(first.row_id, DELETE)
    async with transaction():
        send("second")
    assert recorded.done()
    assert await rows() == ["second"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_row_that_another_transaction_locks_is_deleted_once_it_is_free(keeper: OutboxKeeper) -> None:
    """Otherwise it would be sent again."""
    async with transaction():
        first = send("first")
    async with keeper.store.engine.begin() as connection:
        await connection.execute(select(outbox_table.c.id).with_for_update())
        recorded = keeper.answer(first.row_id, DELETE)
        await asyncio.sleep(1)  # several rounds
    assert await asyncio.wait_for(recorded, PATIENCE)
    assert await rows() == []


async def test_rows_of_an_insert_that_was_cancelled_are_deleted(keeper: OutboxKeeper) -> None:
    """The message is stored anew, or goes on from memory: a relay must not send it as well."""
    new = NewRow("a", "default", b"{}", (b"text",), "{}")
    async with keeper.store.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            await connection.execute(text("LOCK TABLE email_outbox"))
        storing = asyncio.create_task(keeper.insert([new]))
        await asyncio.sleep(0.2)  # in which the statement has begun to wait for the lock
        storing.cancel()
    await asyncio.gather(storing, return_exceptions=True)
    assert storing.cancelled()
    async with asyncio.timeout(PATIENCE):
        while await rows() or keeper.unanswered() or keeper.deletions():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_deletion_is_repeated_when_the_commit_that_it_was_part_of_fails(keeper: OutboxKeeper) -> None:
    async with transaction():
        first = send("first")
    recorded = keeper.answer(first.row_id, DELETE)
    with pytest.raises(Exception, match="FOREIGN KEY"):
        async with transaction() as session:
            await session.execute(text("CREATE TABLE parents (id INTEGER PRIMARY KEY)"))
            await session.execute(
                text("CREATE TABLE children (id INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
            )
            await session.execute(text("INSERT INTO children VALUES (7)"))
            send("second")
    assert await recorded
    assert await rows() == []


async def test_another_engine_on_the_same_database_is_fine_and_another_database_is_refused(
    keeper: OutboxKeeper, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with keeper.store.engine.begin() as connection:
        await connection.run_sync(database_id)
    same = create_async_engine(database_url)
    other = create_async_engine(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('other') / 'other.sqlite3'}")
    await create_outbox_tables(other)
    async with AsyncSession(same) as session:
        await check_database(session, keeper)
    async with AsyncSession(other) as session:
        with pytest.raises(OutboxMisplaced, match="another database"):
            await check_database(session, keeper)
    await same.dispose()
    await other.dispose()


async def test_mail_that_several_tasks_hold_is_stored_by_each_ones_commit(keeper: OutboxKeeper) -> None:
    async def order(name: str, fails: bool) -> None:
        async with transaction():
            send(name)
            await asyncio.sleep(0)
            if fails:
                raise LookupError

    ended = await asyncio.gather(*(order(f"{n}", n % 2 == 0) for n in range(6)), return_exceptions=True)
    assert [type(each) for each in ended] == [LookupError, type(None)] * 3, ended
    assert await rows() == sorted(_released) == ["1", "3", "5"]
