"""Transactions on SQLite and PostgreSQL: what is held is done after the root's commit, or not at all."""
# ruff: noqa: PT012  # what raises here is a whole transaction block

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped, Session, mapped_column
from support.patience import PATIENCE

from openviper import db
from openviper.db.transaction import current_record, hold


class Base(db.Model):
    __abstract__ = True


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)


@pytest.fixture(autouse=True)
async def tables(database: None) -> None:
    await db.create_tables(Note.metadata)


@pytest.fixture
async def session() -> AsyncIterator[AsyncSession]:
    """A plain session of SQLAlchemy, as an application without transaction() has it."""
    async with AsyncSession(await db.engine()) as plain:
        yield plain


class Mail:
    """Stands for what the mail component holds: one call for each outcome."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.dropped: list[str] = []

    def send(self, name: str) -> bool:
        async def deliver() -> None:
            await asyncio.sleep(0)
            self.sent.append(name)

        return hold(deliver, lambda: self.dropped.append(name))


@pytest.fixture
def mail() -> Mail:
    return Mail()


async def notes() -> list[str]:
    async with AsyncSession(await db.engine()) as reader:
        return list((await reader.scalars(select(Note.text).order_by(Note.text))).all())


async def test_a_commit_sends_after_the_block_in_order(mail: Mail) -> None:
    async with db.transaction() as session:
        session.add(Note(text="kept"))
        assert mail.send("first")
        assert mail.send("second")
        await session.flush()
        assert mail.sent == []
    assert mail.sent == ["first", "second"]
    assert mail.dropped == []
    assert await notes() == ["kept"]


async def test_an_exception_discards(mail: Mail) -> None:
    with pytest.raises(LookupError):
        async with db.transaction() as session:
            session.add(Note(text="lost"))
            await session.flush()
            mail.send("confirmation")
            raise LookupError
    assert (mail.sent, mail.dropped) == ([], ["confirmation"])
    assert await notes() == []


async def test_a_rollback_in_the_block_discards_and_the_block_ends_quietly(mail: Mail) -> None:
    async with db.transaction() as session:
        session.add(Note(text="lost"))
        mail.send("confirmation")
        await session.rollback()
        assert mail.dropped == ["confirmation"]
        assert current_record() is None
    assert mail.sent == []
    assert await notes() == []


async def test_a_commit_in_the_block_sends_and_ends_the_transaction(mail: Mail) -> None:
    async with db.transaction() as session:
        session.add(Note(text="kept"))
        mail.send("confirmation")
        await session.commit()
        assert mail.sent == ["confirmation"]
        assert mail.send("later") is False
        with pytest.raises(InvalidRequestError, match="closed transaction inside context manager"):
            await session.execute(select(Note))
    assert mail.dropped == []
    assert await notes() == ["kept"]


async def test_a_failing_commit_discards_and_raises(mail: Mail) -> None:
    async with db.transaction() as session:
        session.add(Note(text="taken"))
    with pytest.raises(IntegrityError):
        async with db.transaction() as session:
            session.add(Note(text="taken"))
            mail.send("confirmation")
    assert (mail.sent, mail.dropped) == ([], ["confirmation"])


async def test_a_caught_flush_error_does_not_pass_for_a_commit(mail: Mail) -> None:
    """SQLAlchemy has undone the transaction by then; ending quietly would lose it in silence."""
    async with db.transaction() as session:
        session.add(Note(text="taken"))
    with pytest.raises(PendingRollbackError):
        async with db.transaction() as session:
            mail.send("confirmation")
            session.add(Note(text="taken"))
            with pytest.raises(IntegrityError):
                await session.flush()
    assert (mail.sent, mail.dropped) == ([], ["confirmation"])


async def test_a_nested_transaction_is_a_savepoint_of_the_same_session(mail: Mail) -> None:
    async with db.transaction() as outer:
        mail.send("outer")
        async with db.transaction() as inner:
            assert inner is outer
            inner.add(Note(text="inner"))
            mail.send("inner")
        assert mail.sent == []
    assert mail.sent == ["outer", "inner"]
    assert await notes() == ["inner"]


async def test_a_released_savepoint_is_discarded_with_the_outer_rollback(mail: Mail) -> None:
    with pytest.raises(LookupError):
        async with db.transaction() as session:
            async with db.transaction():
                session.add(Note(text="inner"))
                mail.send("inner")
            raise LookupError
    assert (mail.sent, mail.dropped) == ([], ["inner"])
    assert await notes() == []


async def test_a_rolled_back_savepoint_takes_only_its_own_with_it(mail: Mail) -> None:
    async with db.transaction() as session:
        session.add(Note(text="outer"))
        mail.send("before")
        with pytest.raises(LookupError):
            async with db.transaction():
                session.add(Note(text="inner"))
                mail.send("inner")
                raise LookupError
        mail.send("after")
    assert (mail.sent, mail.dropped) == (["before", "after"], ["inner"])
    assert await notes() == ["outer"]


async def test_a_savepoint_of_sqlalchemy_counts_too(mail: Mail) -> None:
    """Also for the tasks of a gather() inside it."""

    async def send(name: str) -> bool:
        return mail.send(name)

    async with db.transaction() as session:
        savepoint = await session.begin_nested()
        await asyncio.gather(send("dropped"), send("dropped too"))
        await savepoint.rollback()
        async with session.begin_nested():
            mail.send("kept")
    assert (mail.sent, mail.dropped) == (["kept"], ["dropped", "dropped too"])


async def test_savepoints_of_three_levels(mail: Mail) -> None:
    async with db.transaction():
        with pytest.raises(LookupError):
            async with db.transaction() as session:
                mail.send("middle")
                async with session.begin_nested(), db.transaction():
                    mail.send("innermost")
                assert mail.dropped == []
                raise LookupError
        mail.send("outer")
    assert (mail.sent, mail.dropped) == (["outer"], ["middle", "innermost"])


async def test_two_concurrent_transactions_do_not_mix(mail: Mail) -> None:
    inside = asyncio.Event()

    async def fails() -> None:
        async with db.transaction():
            mail.send("dropped")
            inside.set()
            await asyncio.sleep(0)
            raise LookupError

    async def commits() -> None:
        await inside.wait()
        async with db.transaction():
            mail.send("sent")

    results = await asyncio.gather(fails(), commits(), return_exceptions=True)
    assert [type(result) for result in results] == [LookupError, type(None)]
    assert (mail.sent, mail.dropped) == (["sent"], ["dropped"])


async def test_a_child_task_that_outlives_the_transaction_sends_directly(mail: Mail) -> None:
    ended = asyncio.Event()

    async def child() -> tuple[bool, bool]:
        while_open = mail.send("held")
        await ended.wait()
        return while_open, mail.send("direct")

    async with db.transaction():
        task = asyncio.create_task(child())
        await asyncio.sleep(0)
    ended.set()
    assert await task == (True, False)
    assert mail.sent == ["held"]


async def test_a_child_task_may_open_its_own_transaction_after_the_first_has_ended(mail: Mail) -> None:
    ended = asyncio.Event()

    async def child() -> None:
        await ended.wait()
        async with db.transaction() as session:
            session.add(Note(text="child"))
            mail.send("child")

    async with db.transaction() as outer:
        await outer.execute(select(Note))
        task = asyncio.create_task(child())
    ended.set()
    await task
    assert mail.sent == ["child"]
    assert await notes() == ["child"]


async def test_two_tasks_cannot_nest_in_one_session_at_the_same_time() -> None:
    opened = asyncio.Event()
    tried = asyncio.Event()

    async def first() -> None:
        async with db.transaction():
            opened.set()
            await tried.wait()

    async def second() -> None:
        await opened.wait()
        try:
            async with db.transaction():
                pass
        finally:
            tried.set()

    async with db.transaction():
        results = await asyncio.gather(first(), second(), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), db.SessionInUse]


async def test_a_block_does_not_end_while_a_task_is_inside_a_savepoint_of_it(mail: Mail) -> None:
    """Committing would keep half of what that task does."""
    opened = asyncio.Event()
    ended = asyncio.Event()

    async def child() -> None:
        async with db.transaction() as session:
            session.add(Note(text="half"))
            mail.send("half")
            await session.flush()
            opened.set()
            await ended.wait()

    with pytest.raises(db.SessionInUse, match="await the task"):
        async with db.transaction():
            task = asyncio.create_task(child())
            await opened.wait()
    ended.set()
    await task
    assert (mail.sent, mail.dropped) == ([], ["half"])
    assert await notes() == []


async def test_a_failing_callback_is_logged_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    async def fail() -> None:
        raise OSError("server is gone")

    with caplog.at_level(logging.ERROR, logger="openviper.db"):
        async with db.transaction() as session:
            session.add(Note(text="kept"))
            db.on_commit(fail)
            db.on_commit(lambda: calls.append("next"))
    assert calls == ["next"]
    assert "server is gone" in caplog.text
    assert "Traceback" in caplog.text
    assert await notes() == ["kept"]


async def test_callbacks_run_outside_every_transaction_and_after_the_end() -> None:
    seen: list[object] = []

    async def callback() -> None:
        seen.append(current_record())
        async with db.transaction() as own:
            seen.append(await own.scalar(select(func.count()).select_from(Note)))
            own.add(Note(text="by the callback"))

    async with db.transaction() as session:
        session.add(Note(text="kept"))
        db.on_commit(callback)
    assert seen == [None, 1]
    assert await notes() == ["by the callback", "kept"]


@pytest.mark.parametrize("plain", [False, True])
async def test_a_cancelled_commit_still_sends_and_then_raises(mail: Mail, session: AsyncSession, plain: bool) -> None:
    """The cancellation comes while the first callback runs: the commit has happened, so all mail must go."""
    running = asyncio.Event()
    go_on = asyncio.Event()

    async def slow() -> None:
        running.set()
        await go_on.wait()
        mail.sent.append("slow")

    async def work() -> None:
        if plain:
            session.add(Note(text="kept"))
            db.on_commit(slow, session=session)
            db.on_commit(lambda: mail.sent.append("next"), session=session)
            await session.commit()
        else:
            async with db.transaction() as own:
                own.add(Note(text="kept"))
                db.on_commit(slow)
                mail.send("next")

    task = asyncio.create_task(work())
    await running.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert mail.sent == ["slow", "next"]
    assert await notes() == ["kept"]


async def test_a_cancellation_while_the_connection_is_returned_loses_nothing(session: AsyncSession) -> None:
    """SQLAlchemy then never reports the end of the transaction."""
    sent = asyncio.Event()

    def cancelled(*_: object) -> None:
        raise asyncio.CancelledError

    pool = (await db.engine()).sync_engine.pool
    session.add(Note(text="kept"))
    db.on_commit(sent.set, session=session)
    event.listen(pool, "reset", cancelled)
    with pytest.raises(asyncio.CancelledError):
        await session.commit()
    event.remove(pool, "reset", cancelled)
    await asyncio.wait_for(sent.wait(), PATIENCE)
    assert await notes() == ["kept"]


async def test_a_rollback_whose_end_is_never_reported_still_discards(mail: Mail) -> None:
    def cancelled(*_: object) -> None:
        raise asyncio.CancelledError

    pool = (await db.engine()).sync_engine.pool
    with pytest.raises(asyncio.CancelledError):
        async with db.transaction() as session:
            session.add(Note(text="lost"))
            await session.flush()
            mail.send("dropped")
            event.listen(pool, "reset", cancelled)
            raise LookupError
    event.remove(pool, "reset", cancelled)
    assert (mail.sent, mail.dropped) == ([], ["dropped"])
    assert await notes() == []


async def test_a_savepoint_that_the_block_left_open_is_committed_with_it(mail: Mail) -> None:
    async with db.transaction() as session:
        await session.begin_nested()
        session.add(Note(text="kept"))
        mail.send("sent")
    assert mail.sent == ["sent"]
    assert await notes() == ["kept"]


@pytest.mark.parametrize("steps", range(12))
async def test_whenever_it_is_cancelled_mail_and_data_agree(mail: Mail, steps: int) -> None:
    """Cancelled after any number of turns of the loop: both or neither."""

    async def work() -> None:
        async with db.transaction() as session:
            session.add(Note(text="note"))
            mail.send("note")

    task = asyncio.create_task(work())
    for _ in range(steps):
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait({task})
    assert mail.sent == await notes()
    assert len(mail.sent) + len(mail.dropped) <= 1


async def test_a_cancelled_block_rolls_back(mail: Mail) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with db.transaction() as session:
            session.add(Note(text="lost"))
            await session.flush()
            mail.send("dropped")
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (mail.sent, mail.dropped) == ([], ["dropped"])
    assert await notes() == []


async def test_on_commit_of_a_plain_session_runs_before_commit_returns(session: AsyncSession, mail: Mail) -> None:
    async def callback() -> None:
        await asyncio.sleep(0)
        mail.sent.append("sent")

    session.add(Note(text="kept"))
    db.on_commit(callback, session=session)
    await session.flush()
    assert mail.sent == []
    await session.commit()
    assert mail.sent == ["sent"]
    assert await notes() == ["kept"]


async def test_the_callbacks_of_one_commit_do_not_run_again_with_the_next(session: AsyncSession) -> None:
    calls: list[str] = []
    for name in ("first", "second"):
        session.add(Note(text=name))
        db.on_commit(partial(calls.append, name), session=session)
        await session.commit()
    assert calls == ["first", "second"]


async def test_callbacks_of_an_inner_commit_are_outside_the_transaction_around_it(session: AsyncSession) -> None:
    seen: list[object] = []
    async with db.transaction():
        session.add(Note(text="kept"))
        db.on_commit(lambda: seen.append(current_record()), session=session)
        await session.commit()
        assert seen == [None]
        assert current_record() is not None


@pytest.mark.parametrize("end", ["rollback", "close", "reset", "invalidate"])
async def test_a_plain_session_that_ends_without_commit_discards(session: AsyncSession, end: str) -> None:
    calls: list[str] = []
    session.add(Note(text="lost"))
    db.on_commit(lambda: calls.append("sent"), session=session)
    await session.flush()
    await getattr(session, end)()
    session.add(Note(text="kept"))
    await session.commit()
    assert calls == []
    assert await notes() == ["kept"]


async def test_on_commit_in_a_savepoint_of_a_plain_session(session: AsyncSession) -> None:
    calls: list[str] = []
    session.add(Note(text="outer"))
    savepoint = await session.begin_nested()
    db.on_commit(lambda: calls.append("dropped"), session=session)
    await savepoint.rollback()
    async with session.begin_nested():
        db.on_commit(lambda: calls.append("kept"), session=session)
    assert calls == []
    await session.commit()
    assert calls == ["kept"]


async def test_on_commit_with_begin_as_a_context_manager(session: AsyncSession) -> None:
    calls: list[str] = []
    async with session.begin():
        db.on_commit(lambda: calls.append("sent"), session=session)
    assert calls == ["sent"]


async def test_a_plain_session_that_read_something_holds_nothing_back(session: AsyncSession) -> None:
    await session.execute(select(Note))
    assert hold(lambda: None) is False


async def test_a_session_with_an_earlier_query_commits_at_the_end_of_the_block(
    session: AsyncSession, mail: Mail
) -> None:
    """SQLAlchemy began that transaction by itself, so nobody else would commit it."""
    await session.execute(select(Note))
    async with db.transaction(session) as same:
        assert same is session
        session.add(Note(text="kept"))
        mail.send("sent")
    assert mail.sent == ["sent"]
    assert not session.in_transaction()
    assert await notes() == ["kept"]


async def test_in_an_explicit_begin_the_block_is_a_savepoint(session: AsyncSession, mail: Mail) -> None:
    async with session.begin():
        async with db.transaction(session):
            session.add(Note(text="kept"))
            mail.send("sent")
        assert mail.sent == []
    assert mail.sent == ["sent"]
    assert await notes() == ["kept"]


async def test_a_given_session_stays_open_for_the_next_block(session: AsyncSession, mail: Mail) -> None:
    for name in ("first", "second"):
        async with db.transaction(session):
            session.add(Note(text=name))
            mail.send(name)
    assert mail.sent == ["first", "second"]
    assert await notes() == ["first", "second"]


async def test_a_session_inside_the_transaction_of_a_test_sends_at_its_own_commit(mail: Mail) -> None:
    """The usual way to undo what a test did: the session's commit is a savepoint of the test's connection."""
    async with (await db.engine()).connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as joined:
            async with db.transaction(joined):
                joined.add(Note(text="undone"))
                mail.send("sent")
            assert mail.sent == ["sent"]
        await outer.rollback()
    assert await notes() == []


async def test_on_commit_outside_a_transaction_is_refused(session: AsyncSession) -> None:
    with pytest.raises(db.NoTransaction, match="no transaction"):
        db.on_commit(lambda: None)
    with pytest.raises(db.NoTransaction, match="not begun"):
        db.on_commit(lambda: None, session=session)


async def test_a_synchronous_session_is_refused() -> None:
    with Session() as sync:
        with pytest.raises(db.AsyncSessionRequired, match="must be an AsyncSession, not Session"):
            db.on_commit(lambda: None, session=sync)  # type: ignore[arg-type]
        with pytest.raises(db.AsyncSessionRequired, match="must be an AsyncSession, not Session"):
            async with db.transaction(sync):  # type: ignore[arg-type]
                pass


async def test_on_commit_works_in_a_thread_of_the_transaction() -> None:
    calls: list[str] = []
    async with db.transaction():
        await asyncio.to_thread(db.on_commit, lambda: calls.append("sent"))
        assert calls == []
    assert calls == ["sent"]


async def test_objects_stay_readable_after_the_commit() -> None:
    async with db.transaction() as session:
        note = Note(text="kept")
        session.add(note)
    assert note.id is not None
    assert note.text == "kept"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_broken_connection_discards(mail: Mail, database_url: str) -> None:
    administration = create_async_engine(database_url)
    with pytest.raises(DBAPIError):
        async with db.transaction() as session:
            mail.send("dropped")
            process = await session.scalar(text("SELECT pg_backend_pid()"))
            async with administration.connect() as other:
                await other.execute(text("SELECT pg_terminate_backend(:pid, 100000)"), {"pid": process})
            session.add(Note(text="lost"))
    await administration.dispose()
    assert (mail.sent, mail.dropped) == ([], ["dropped"])
    assert await notes() == []


async def test_eight_concurrent_writers_wait_for_their_turn() -> None:
    """With a plain BEGIN on SQLite most of them would fail with "database is locked"."""
    async with db.transaction() as session:
        session.add(Note(text="0"))

    async def read_then_write() -> None:
        async with db.transaction() as session:
            note = (await session.scalars(select(Note).with_for_update())).one()
            await asyncio.sleep(0.005)
            note.text = str(int(note.text) + 1)

    await asyncio.gather(*(read_then_write() for _ in range(8)))
    assert await notes() == ["8"]
