"""A database that does not answer COMMIT or ROLLBACK: bounded, told, and no mail for rows that may not be there."""
# ruff: noqa: PT012  # what raises here is a whole transaction block

import asyncio
import logging
import pickle

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Mapped, mapped_column
from support.patience import PATIENCE
from support.silent_database import silent_at

from openviper import db
from openviper.conf import override
from openviper.core.email import send_email
from openviper.core.email.backends.memory import sent
from openviper.db import CommitUnanswered, Model, on_commit, transaction
from openviper.exceptions import ImproperlyConfigured

pytestmark = pytest.mark.usefixtures("database")

EMAIL = {"backend": "MemoryBackend", "default_sender": "shop@example.test"}


class Order(Model):
    __tablename__ = "unanswered_orders"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(autouse=True)
async def tables(database: None) -> None:
    await db.create_tables(Model.metadata)
    sent.clear()


async def test_a_commit_that_is_not_answered_ends_and_drops_the_mail(caplog: pytest.LogCaptureFixture) -> None:
    called: list[str] = []
    async with silent_at("COMMIT") as silence, asyncio.timeout(PATIENCE):
        with override(DATABASE_TIMEOUT=0.5, EMAIL=EMAIL), pytest.raises(CommitUnanswered) as raised:
            async with transaction() as session:
                session.add(Order(id=1))
                silence.begin()
                on_commit(lambda: called.append("callback"))
                await send_email("a@example.test", "Thanks", text="Your order")
    assert isinstance(raised.value, TimeoutError)
    assert "the rows may be there" in str(raised.value)
    assert "dropped" in str(raised.value)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    assert called == []
    assert len(sent) == 0
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [str(raised.value)]
    with override(EMAIL=EMAIL):  # the engine goes on
        async with transaction() as session:
            assert len((await session.scalars(select(Order))).all()) <= 1
            await send_email("a@example.test", "Later", text="Another")
    assert [message.prepared.subject for message in sent] == ["Later"]


async def test_a_task_that_waits_for_a_commit_can_be_cancelled_within_the_limit() -> None:
    async def work() -> None:
        async with transaction() as session:
            session.add(Order(id=2))
            silence.begin()
            on_commit(lambda: called.append("callback"))

    called: list[str] = []
    async with silent_at("COMMIT") as silence, asyncio.timeout(PATIENCE):
        with override(DATABASE_TIMEOUT=2.0):
            task = asyncio.create_task(work())
            await silence.reached.wait()
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError) as raised:
                await task
    assert isinstance(raised.value.__cause__, TimeoutError)
    assert called == []


async def test_a_rollback_that_is_not_answered_leaves_the_error_of_the_block(caplog: pytest.LogCaptureFixture) -> None:
    async with silent_at("ROLLBACK") as silence, asyncio.timeout(PATIENCE):
        with override(DATABASE_TIMEOUT=0.5), pytest.raises(LookupError, match="of the block"):
            async with transaction() as session:
                session.add(Order(id=3))
                await session.flush()
                silence.begin()
                raise LookupError("of the block")
    assert any("ROLLBACK was not answered" in record.getMessage() for record in caplog.records)


async def test_callbacks_may_take_longer_than_the_limit_for_the_database() -> None:
    done: list[str] = []

    async def slow() -> None:
        await asyncio.sleep(1.5)
        done.append("slow")

    with override(DATABASE_TIMEOUT=1.0):
        async with transaction() as session:
            await session.execute(text("SELECT 1"))
            on_commit(slow)
    assert done == ["slow"]


async def test_a_cancelled_caller_waits_for_callbacks_no_longer_than_the_limit() -> None:
    running, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        running.set()
        await go.wait()
        done.set()

    async def work() -> None:
        async with transaction() as session:
            await session.execute(text("SELECT 1"))
            on_commit(endless)

    async with asyncio.timeout(PATIENCE):
        with override(DATABASE_TIMEOUT=1.0):
            task = asyncio.create_task(work())
            await running.wait()
            await asyncio.sleep(1.5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not done.is_set()
        go.set()
        await done.wait()  # it has gone on without its caller


@pytest.mark.parametrize("value", [0, -1, "30", True, None, float("inf"), float("nan")])
async def test_a_wrong_limit_is_refused_before_the_transaction_begins(value: object) -> None:
    with override(DATABASE_TIMEOUT=value), pytest.raises(ImproperlyConfigured, match="DATABASE_TIMEOUT"):
        async with transaction():
            pytest.fail("the block ran")


async def test_the_loop_ends_although_the_database_does_not_answer() -> None:
    """Closing the engine's connections at the end has a limit, too."""

    async def work() -> None:
        async with silent_at("COMMIT") as silence:
            with override(DATABASE_TIMEOUT=0.2), pytest.raises(CommitUnanswered):
                async with transaction() as session:
                    session.add(Order(id=4))
                    silence.begin()

    async with asyncio.timeout(PATIENCE):
        await asyncio.to_thread(asyncio.run, work())
