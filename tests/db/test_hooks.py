"""Lifecycle hooks on SQLite and PostgreSQL."""
# ruff: noqa: PT012  # what raises here is a whole transaction block

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import ForeignKey, create_engine, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_object_session
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column, relationship

from openviper import db
from openviper.db.transaction import hold

calls: list[tuple[Any, ...]] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


class Base(db.LifecycleHooks, DeclarativeBase):
    """Somebody's own declarative base."""


class Recorded(Base):
    """Every hook of the rows below says that it was called, and with what."""

    __abstract__ = True

    if TYPE_CHECKING:
        label: Mapped[str]

    async def before_insert(self) -> None:
        await asyncio.sleep(0)
        calls.append(("before_insert", self.label))

    async def after_insert(self) -> None:
        await asyncio.sleep(0)
        calls.append(("after_insert", self.label))

    async def before_update(self) -> None:
        calls.append(("before_update", self.label))

    async def after_update(self) -> None:
        calls.append(("after_update", self.label))

    async def on_change(self, previous_state: Mapping[str, Any]) -> None:
        calls.append(("on_change", self.label, dict(previous_state)))

    async def before_delete(self) -> None:
        calls.append(("before_delete", self.label))

    async def after_delete(self) -> None:
        calls.append(("after_delete", self.label))


class Basket(Recorded):
    __tablename__ = "baskets"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]
    note: Mapped[str] = mapped_column(default="")
    items: Mapped[list["Item"]] = relationship(cascade="all, delete-orphan", lazy="selectin", order_by="Item.id")


class Item(Recorded):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]
    basket_id: Mapped[int | None] = mapped_column(ForeignKey("baskets.id"))

    async def before_delete(self) -> None:
        await super().before_delete()
        if self.label == "keepsake":
            async with db.transaction() as session:
                session.add(Item(label="memory"))


class Event(Recorded):
    """An inheritance over two tables."""

    __tablename__ = "events"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "event"}  # noqa: RUF012

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    label: Mapped[str]


class Concert(Event):
    __tablename__ = "concerts"
    __mapper_args__ = {"polymorphic_identity": "concert"}  # noqa: RUF012

    id: Mapped[int] = mapped_column(ForeignKey("events.id"), primary_key=True)
    band: Mapped[str]


class Point(MappedAsDataclass, Base):
    """Compares by value, so it has no hash."""

    __tablename__ = "points"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    x: Mapped[int]

    async def after_insert(self) -> None:
        calls.append(("after_insert", self.id, self.x))


class Plain(Base):
    """Overrides no hook."""

    __tablename__ = "plain"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]


class Order(Base):
    """Does in its hooks what ``behaviour`` says."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int] = mapped_column(default=0)
    behaviour: Mapped[str]

    @property
    def session(self) -> AsyncSession:
        session = async_object_session(self)
        assert session is not None
        return session

    async def before_insert(self) -> None:
        await self.act("before_insert")

    async def after_insert(self) -> None:
        await self.act("after_insert")

    async def before_update(self) -> None:
        await self.act("before_update")

    async def after_update(self) -> None:
        await self.act("after_update")

    async def act(self, hook: str) -> None:
        wanted, _, action = self.behaviour.partition(" ")
        if wanted == hook:
            await getattr(self, f"do_{action}")()

    async def do_send(self) -> None:
        number = self.id  # expires at the commit
        assert hold(lambda: calls.append(("sent", number)), lambda: calls.append(("dropped",)))

    async def do_change(self) -> None:
        self.total = 42

    async def do_raise(self) -> None:
        raise LookupError("no such customer")

    async def do_add(self) -> None:
        self.session.add(Item(label="added"))

    async def do_nest(self) -> None:
        async with db.transaction() as session:
            assert session is self.session
            session.add(Item(label="nested"))
            count = len((await session.scalars(select(Order))).all())
            calls.append(("orders seen", count))

    async def do_flush(self) -> None:
        await self.session.flush()

    async def do_commit(self) -> None:
        await self.session.commit()

    async def do_rollback(self) -> None:
        await self.session.rollback()

    async def do_close(self) -> None:
        await self.session.close()

    async def do_savepoint(self) -> None:
        async with self.session.begin_nested():
            pass

    async def do_commit_directly(self) -> None:
        transaction = self.session.get_transaction()
        assert transaction is not None
        await transaction.commit()


@pytest.fixture(autouse=True)
async def tables(database: None) -> None:
    await db.create_tables(Base.metadata)


@pytest.fixture
async def plain(tables: None) -> AsyncIterator[AsyncSession]:
    """A session of SQLAlchemy with its defaults: attributes expire at the commit."""
    async with AsyncSession(await db.engine()) as session:
        yield session


async def save(*objects: object) -> None:
    async with db.transaction() as session:
        session.add_all(objects)
    calls.clear()


async def labels() -> list[str]:
    async with AsyncSession(await db.engine()) as reader:
        return list((await reader.scalars(select(Item.label).order_by(Item.label))).all())


async def test_an_insert_calls_before_and_after_it() -> None:
    async with db.transaction() as session:
        session.add(Item(label="a"))
        assert calls == []
        await session.flush()
        assert calls == [("before_insert", "a"), ("after_insert", "a")]
    assert len(calls) == 2


async def test_all_before_hooks_run_before_all_after_hooks_of_a_flush() -> None:
    async with db.transaction() as session:
        session.add_all([Item(label="a"), Item(label="b")])
    assert calls == [("before_insert", "a"), ("before_insert", "b"), ("after_insert", "a"), ("after_insert", "b")]


async def test_an_update_calls_before_after_and_on_change() -> None:
    basket = Basket(label="a", note="old")
    await save(basket)
    async with db.transaction() as session:
        session.add(basket)
        basket.note = "new"
    assert calls == [("before_update", "a"), ("after_update", "a"), ("on_change", "a", {"note": "old"})]


async def test_an_update_without_a_change_calls_nothing() -> None:
    basket = Basket(label="a", note="same")
    await save(basket)
    async with db.transaction() as session:
        session.add(basket)
        basket.note = "other"
        basket.note = "same"
        basket.label = "a"
    assert calls == []


async def test_adding_to_a_collection_is_no_update_of_its_owner() -> None:
    basket = Basket(label="a", items=[])
    await save(basket)
    async with db.transaction() as session:
        session.add(basket)
        basket.items.append(Item(label="new"))
    assert calls == [("before_insert", "new"), ("after_insert", "new")]


async def test_a_foreign_key_set_by_the_flush_is_an_update() -> None:
    """The item itself was not touched; SQLAlchemy only learns while flushing that its column changes."""
    item, basket = Item(label="i"), Basket(label="b", items=[])
    await save(item, basket)
    async with db.transaction() as session:
        session.add_all([item, basket])
        basket.items.append(item)
    assert calls == [("before_update", "i"), ("after_update", "i"), ("on_change", "i", {"basket_id": None})]


async def test_a_delete_calls_before_and_after_it() -> None:
    item = Item(label="a")
    await save(item)
    async with db.transaction() as session:
        await session.delete(item)
    assert calls == [("before_delete", "a"), ("after_delete", "a")]


async def test_cascades_call_the_hooks_of_the_children() -> None:
    async with db.transaction() as session:
        basket = Basket(label="b", items=[Item(label="i")])
        session.add(basket)
    assert sorted(calls) == [
        ("after_insert", "b"),
        ("after_insert", "i"),
        ("before_insert", "b"),
        ("before_insert", "i"),
    ]
    assert calls.index(("after_insert", "b")) < calls.index(("after_insert", "i"))
    calls.clear()
    async with db.transaction() as session:
        await session.delete(basket)
    assert sorted(calls) == [
        ("after_delete", "b"),
        ("after_delete", "i"),
        ("before_delete", "b"),
        ("before_delete", "i"),
    ]


async def test_an_orphan_is_deleted_with_its_hooks() -> None:
    basket = Basket(label="b", items=[Item(label="i")])
    await save(basket)
    async with db.transaction() as session:
        session.add(basket)
        basket.items.clear()
    assert calls == [("before_delete", "i"), ("after_delete", "i")]
    assert await labels() == []


async def test_a_child_that_moves_to_another_parent_is_no_orphan() -> None:
    old, new = Basket(label="old", items=[Item(label="i")]), Basket(label="new", items=[])
    await save(old, new)
    async with db.transaction() as session:
        session.add_all([old, new])
        new.items.append(old.items.pop())
    assert [call[:2] for call in calls] == [("before_update", "i"), ("after_update", "i"), ("on_change", "i")]
    assert await labels() == ["i"]


async def test_a_before_delete_of_an_orphan_may_add_objects() -> None:
    basket = Basket(label="b", items=[Item(label="keepsake")])
    await save(basket)
    async with db.transaction() as session:
        session.add(basket)
        basket.items.clear()
    assert await labels() == ["memory"]


async def test_a_row_is_inserted_and_deleted_in_one_transaction() -> None:
    async with db.transaction() as session:
        item = Item(label="a")
        session.add(item)
        await session.flush()
        await session.delete(item)
    assert [call[0] for call in calls] == ["before_insert", "after_insert", "before_delete", "after_delete"]


async def test_an_object_that_never_reaches_the_database_calls_nothing() -> None:
    async with db.transaction() as session:
        item = Item(label="a")
        session.add(item)
        session.expunge(item)
    assert calls == []


async def test_merge_calls_insert_or_update() -> None:
    async with db.transaction() as session:
        await session.merge(Item(id=7, label="a"))
    assert calls == [("before_insert", "a"), ("after_insert", "a")]
    calls.clear()
    async with db.transaction() as session:
        await session.merge(Item(id=7, label="b"))
    assert calls == [("before_update", "b"), ("after_update", "b"), ("on_change", "b", {"label": "a"})]


async def test_inheritance_calls_the_hooks_once() -> None:
    concert = Concert(label="c", band="old")
    async with db.transaction() as session:
        session.add(concert)
    assert calls == [("before_insert", "c"), ("after_insert", "c")]
    calls.clear()
    async with db.transaction() as session:
        session.add(concert)
        concert.band = "new"
    assert calls == [("before_update", "c"), ("after_update", "c"), ("on_change", "c", {"band": "old"})]


async def test_objects_without_a_hash_have_hooks() -> None:
    async with db.transaction() as session:
        session.add_all([Point(x=1), Point(x=1)])
    assert [(call[0], call[2]) for call in calls] == [("after_insert", 1), ("after_insert", 1)]
    assert None not in {call[1] for call in calls}


async def test_bulk_statements_call_nothing() -> None:
    async with db.transaction() as session:
        await session.execute(insert(Item), [{"label": "a"}, {"label": "b"}])
        await session.execute(update(Item).values(label="c"))
        await session.execute(delete(Item))
    assert calls == []


async def test_an_old_value_that_was_not_loaded_is_read_for_on_change(plain: AsyncSession) -> None:
    """With SQLAlchemy's default every attribute is expired after a commit."""
    basket = Basket(label="a", note="old")
    concert = Concert(label="c", band="old")
    plain.add_all([basket, concert])
    await plain.commit()
    calls.clear()
    basket.label, basket.note = "a", "new"
    concert.label, concert.band = "c", "new"
    await plain.commit()
    changes = {call[1]: call[2] for call in calls if call[0] == "on_change"}
    assert changes == {"a": {"note": "old"}, "c": {"band": "old"}}


async def test_setting_an_unloaded_value_to_what_it_was_is_no_change(plain: AsyncSession) -> None:
    basket = Basket(label="a", note="same")
    plain.add(basket)
    await plain.commit()
    calls.clear()
    basket.label, basket.note = "a", "same"
    await plain.commit()
    assert [call[0] for call in calls] == ["before_update", "after_update"]


async def test_on_change_names_only_what_this_flush_changed() -> None:
    basket = Basket(label="a", note="1")
    await save(basket)
    async with db.transaction() as session:
        session.add(basket)
        basket.note = "2"
        await session.flush()
        basket.label = "b"
    assert [call[2] for call in calls if call[0] == "on_change"] == [{"note": "1"}, {"label": "a"}]


async def test_an_autoflush_runs_hooks() -> None:
    async with db.transaction() as session:
        session.add(Item(label="a"))
        assert len((await session.scalars(select(Item))).all()) == 1
        assert calls == [("before_insert", "a"), ("after_insert", "a")]


async def test_after_insert_sees_the_primary_key_and_its_mail_waits_for_the_commit() -> None:
    async with db.transaction() as session:
        order = Order(behaviour="after_insert send")
        session.add(order)
        await session.flush()
        assert calls == []
    assert calls == [("sent", order.id)]


@pytest.mark.parametrize("hook", ["before_insert", "after_insert"])
async def test_mail_of_a_hook_waits_for_the_commit_of_a_plain_session(plain: AsyncSession, hook: str) -> None:
    plain.add(Order(behaviour=f"{hook} send"))
    await plain.flush()
    assert calls == []
    await plain.commit()
    assert [call[0] for call in calls] == ["sent"]


@pytest.mark.parametrize("end", ["rollback", "close"])
async def test_mail_of_a_hook_is_dropped_with_a_plain_session(plain: AsyncSession, end: str) -> None:
    plain.add(Order(behaviour="after_insert send"))
    await plain.flush()
    await getattr(plain, end)()
    assert calls == [("dropped",)]


async def test_mail_of_a_hook_is_dropped_with_its_savepoint(plain: AsyncSession) -> None:
    savepoint = await plain.begin_nested()
    plain.add(Order(behaviour="after_insert send"))
    await plain.flush()
    await savepoint.rollback()
    assert calls == [("dropped",)]
    await plain.commit()
    assert calls == [("dropped",)]


async def test_mail_of_a_hook_belongs_to_the_session_of_its_object(plain: AsyncSession) -> None:
    """A commit of another session inside a transaction() is its own."""
    async with db.transaction() as outer:
        outer.add(Order(behaviour="none"))
        if (await db.engine()).dialect.name == "sqlite":
            await outer.rollback()  # one writer at a time
        plain.add(Order(behaviour="after_insert send"))
        await plain.commit()
        assert [call[0] for call in calls] == ["sent"]


async def test_what_a_before_hook_changes_is_written() -> None:
    order = Order(behaviour="before_insert change")
    await save(order)
    async with db.transaction() as session:
        assert await session.scalar(select(Order.total)) == 42
        session.add(order)
        order.total, order.behaviour = 1, "before_update change"
    async with db.transaction() as session:
        assert await session.scalar(select(Order.total)) == 42


async def test_what_an_after_hook_changes_is_written_at_the_commit(plain: AsyncSession) -> None:
    plain.add(Order(behaviour="after_insert change"))
    await plain.commit()
    assert await plain.scalar(select(Order.total)) == 42


@pytest.mark.parametrize("hook", ["before_insert", "after_insert"])
async def test_what_a_hook_adds_is_written_with_its_own_hooks(plain: AsyncSession, hook: str) -> None:
    plain.add(Order(behaviour=f"{hook} add"))
    await plain.commit()
    assert calls == [("before_insert", "added"), ("after_insert", "added")]
    assert await labels() == ["added"]


@pytest.mark.parametrize("hook", ["before_insert", "after_insert"])
async def test_transaction_in_a_hook_is_that_of_the_object(plain: AsyncSession, hook: str) -> None:
    plain.add(Order(behaviour=f"{hook} nest"))
    await plain.commit()
    seen = 0 if hook == "before_insert" else 1
    assert calls == [("orders seen", seen), ("before_insert", "nested"), ("after_insert", "nested")]
    assert await labels() == ["nested"]


@pytest.mark.parametrize("hook", ["before_insert", "after_insert"])
async def test_an_error_in_a_hook_reaches_the_caller_and_rolls_back(hook: str) -> None:
    with pytest.raises(LookupError, match="no such customer"):
        async with db.transaction() as session:
            hold(lambda: calls.append(("sent",)), lambda: calls.append(("dropped",)))
            session.add(Order(behaviour=f"{hook} raise"))
    assert calls == [("dropped",)]
    async with db.transaction() as session:
        assert (await session.scalars(select(Order))).all() == []


async def test_an_error_in_a_hook_undoes_only_its_savepoint() -> None:
    async with db.transaction() as session:
        session.add(Item(label="kept"))
        with pytest.raises(LookupError):
            async with db.transaction():
                session.add(Order(behaviour="after_insert raise"))
    assert await labels() == ["kept"]


@pytest.mark.parametrize("hook", ["before_insert", "after_insert"])
@pytest.mark.parametrize("action", ["flush", "commit", "rollback", "close", "savepoint"])
async def test_a_hook_may_not_end_or_divide_its_flush(plain: AsyncSession, hook: str, action: str) -> None:
    plain.add(Order(behaviour=f"{hook} {action}"))
    with pytest.raises(db.ForbiddenInHook, match="not possible inside a hook"):
        await plain.commit()
    await plain.rollback()
    plain.add(Order(behaviour="none"))
    await plain.commit()
    assert len((await plain.scalars(select(Order))).all()) == 1


async def test_the_error_names_the_hook(plain: AsyncSession) -> None:
    plain.add(Order(behaviour="after_insert flush"))
    with pytest.raises(db.ForbiddenInHook, match=r"Order\.after_insert: flush\(\)"):
        await plain.flush()


async def test_a_synchronous_session_is_refused_where_a_hook_would_run() -> None:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Plain(label="without hooks"))
        session.commit()
        session.add(Item(label="a"))
        with pytest.raises(db.AsyncSessionRequired, match=r"cannot run Item\.before_insert\(\)"):
            session.commit()
    engine.dispose()
    assert calls == []


async def test_run_sync_on_an_async_session_runs_hooks(plain: AsyncSession) -> None:
    def work(session: Session) -> None:
        session.add(Item(label="a"))
        session.commit()

    await plain.run_sync(work)
    assert calls == [("before_insert", "a"), ("after_insert", "a")]


async def test_a_hook_that_is_not_async_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.after_insert is a lifecycle hook and must be written 'async def'"):

        class Wrong(db.LifecycleHooks):
            def after_insert(self) -> None:  # type: ignore[override]
                pass


async def test_a_hook_from_a_mixin_is_checked_too() -> None:
    class Mixin:
        def after_delete(self) -> None:
            pass

    with pytest.raises(TypeError, match=r"Wrong\.after_delete"):

        class Wrong(Mixin, db.LifecycleHooks):  # type: ignore[misc]
            pass


async def test_concurrent_flushes_of_two_sessions_keep_their_hooks_apart() -> None:
    async def work(name: str) -> None:
        async with db.transaction() as session:
            session.add_all([Item(label=f"{name}1"), Item(label=f"{name}2")])

    await asyncio.gather(work("a"), work("b"))
    assert sorted(calls) == sorted(
        (hook, f"{name}{number}") for hook in ("before_insert", "after_insert") for name in "ab" for number in (1, 2)
    )


async def test_super_reaches_the_base_hooks() -> None:
    class Loud(Item):
        async def after_insert(self) -> None:
            await super().after_insert()
            calls.append(("loud", self.label))

    async with db.transaction() as session:
        session.add(Loud(label="a"))
    assert calls == [("before_insert", "a"), ("after_insert", "a"), ("loud", "a")]
