"""Mail with the database outbox: stored by its commit, delivered from memory, or else by a relay."""
# ruff: noqa: PT012  # what raises here is a whole transaction block

import asyncio
import logging
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped, Session, mapped_column
from support.patience import PATIENCE
from support.silent_database import silent_at

from openviper import conf, db
from openviper.core.email import (
    ConnectionFailed,
    DeliveryMode,
    EmailMessageData,
    EmailMiddleware,
    InvalidMessage,
    MessageRefused,
    send_email,
    send_many,
    submit_email,
)
from openviper.core.email.attachments import AttachmentData
from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.pause.flag import change_state
from openviper.core.email.delivery.pause.outbox_flag import OutboxPauseStore
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue.job import Progress
from openviper.core.email.queue.outbox_store import OutboxJobStore
from openviper.core.email.settings import EmailSettings
from openviper.db import Model, OutboxMisplaced, OutboxNotCreated, transaction
from openviper.db.outbox import add, create_outbox_tables
from openviper.db.outbox.rows import LEASE
from openviper.db.outbox.tables import database_id, outbox_table
from openviper.exceptions import ImproperlyConfigured

pytestmark = pytest.mark.usefixtures("database")

own_engine: AsyncEngine
SENDER = "shop@example.test"
failures: list[Exception] = []
subjects: list[str] = []
hanging = [True]  # mutable: empty once nothing hangs any more


class Ticket(Model):
    __tablename__ = "tickets"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]

    async def after_insert(self) -> None:
        await send_email("a@example.test", f"inserted {self.label}", text="From a hook")


class Recording(EmailBackend):
    """Fails as often as told, and keeps what it delivered."""

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        if message.prepared.subject.startswith("hangs"):
            while hanging:
                await asyncio.sleep(0.01)
        if failures:
            raise failures.pop()
        subjects.append(message.prepared.subject)
        return DeliveryReport(message.envelope.recipients)


@pytest.fixture(autouse=True)
async def tables(database: None) -> AsyncIterator[None]:
    await db.create_tables(Model.metadata)
    await create_outbox_tables(await db.engine())
    failures.clear()
    subjects.clear()
    hanging[:] = [True]
    yield
    hanging.clear()


def outbox_settings(**more: object) -> EmailSettings:
    values = {"backend": f"{__name__}.Recording", "default_sender": SENDER, "outbox": "database", **more}
    return EmailSettings(**values)


@asynccontextmanager
async def opened(**more: object) -> AsyncIterator[Mailer]:
    mailer = Mailer(outbox_settings(**more))
    await mailer.open()
    with using_mailer(mailer):
        yield mailer
    await mailer.aclose()


async def send(subject: str, **more: object) -> DeliveryMode:
    return (await submit_email("a@example.test", subject, text="Hello", **more)).mode  # type: ignore[arg-type]


async def rows(*columns: str) -> list[tuple[object, ...]]:
    query = select(*(outbox_table.c[name] for name in columns or ("state",))).order_by(outbox_table.c.created)
    async with (await db.engine()).connect() as connection:
        return [tuple(row) for row in await connection.execute(query)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def until_empty() -> None:
    async with asyncio.timeout(PATIENCE):
        while await rows():
            await asyncio.sleep(0.05)


async def let_time_pass(seconds: float) -> None:
    async with (await db.engine()).begin() as connection:
        moments = {"due": outbox_table.c.due - seconds, "lease": outbox_table.c.lease - seconds}
        await connection.execute(update(outbox_table).values(moments))


async def test_mail_of_a_transaction_is_delivered_and_its_row_is_gone_when_the_block_returns() -> None:
    async with opened():
        async with transaction():
            assert await send("a") is DeliveryMode.HELD
            assert (await rows(), subjects) == ([], [])
        assert subjects == ["a"]
        assert await rows() == []


async def test_mail_of_a_rolled_back_transaction_is_never_stored() -> None:
    async with opened() as mailer:
        await mailer.start_relay()
        with pytest.raises(LookupError):
            async with transaction() as session:
                session.add(Ticket(label="x"))
                await send("a")
                await session.flush()
                raise LookupError
        assert (await rows(), subjects) == ([], [])


async def test_mail_of_a_hook_in_a_plain_commit_is_stored_and_delivered() -> None:
    async with opened():
        async with AsyncSession(await db.engine()) as session:
            session.add(Ticket(label="x"))
            await session.commit()
        assert subjects == ["inserted x"]
        assert await rows() == []


async def test_a_temporary_failure_stays_in_the_outbox_and_the_relay_retries_it() -> None:
    failures.append(ConnectionFailed("down", temporary=True))
    async with opened() as mailer:
        async with transaction():
            await send("a")
        ((state, lease, progress),) = await rows("state", "lease", "progress")
        assert (state, lease) == ("open", None)
        assert '"attempts": 1' in str(progress)
        assert subjects == []
        await let_time_pass(10)
        await mailer.start_relay()
        await until(lambda: subjects == ["a"])
        await until_empty()


async def test_a_final_failure_is_kept_as_failed() -> None:
    failures.append(MessageRefused("no", code=554))
    async with opened():
        async with transaction():
            await send("a")
        ((state, reason),) = await rows("state", "reason")
        assert state == "failed"
        assert "no" in str(reason)


async def test_a_reason_that_postgresql_cannot_store_does_not_keep_the_failure_from_being_recorded() -> None:
    failures.append(MessageRefused("no\x00way", code=554))
    async with opened():
        async with transaction():
            await send("a")
        ((state, reason),) = await rows("state", "reason")
        assert (state, "no way" in str(reason)) == ("failed", True)


async def test_of_sensitive_mail_that_failed_the_content_is_not_kept() -> None:
    failures.append(MessageRefused("no", code=554))
    async with opened():
        async with transaction():
            await submit_email("a@example.test", "reset", text="the-secret-link", sensitive=True)
        ((state, head, parts),) = await rows("state", "head", "parts")
        assert (state, parts) == ("failed", b"")
        assert b"reset" in head  # type: ignore[operator]


async def test_a_failure_is_not_kept_where_nothing_is_to_be_kept() -> None:
    failures.append(MessageRefused("no", code=554))
    async with opened(failed_keep=0):
        async with transaction():
            await send("a")
        assert await rows() == []


async def test_deferred_mail_of_a_request_is_stored_by_one_insert_after_the_response() -> None:
    inserts: list[int] = []
    events: list[str] = []

    async def app(scope: object, receive: object, respond: Callable[[object], AsyncIterator[None]]) -> None:
        for name in "abc":
            assert await send(f"hangs {name}") is DeliveryMode.DEFERRED
        await respond({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[misc]
        await respond({"type": "http.response.body", "body": b""})  # type: ignore[misc]
        events.append(f"{len(inserts)} inserts")

    def count(_c: object, _cursor: object, statement: str, _p: object, _x: object, _many: object) -> None:
        if "INSERT INTO email_outbox " in statement:
            inserts.append(1)

    async def ignore(_message: object) -> None:
        pass

    event.listen((await db.engine()).sync_engine, "before_cursor_execute", count)
    wrapped = EmailMiddleware(app, {"backend": f"{__name__}.Recording", "default_sender": SENDER, "outbox": "database"})
    async with lifespan(wrapped):
        await wrapped({"type": "http", "method": "GET", "path": "/", "headers": []}, ignore, ignore)
        assert events == ["0 inserts"]
        await until(lambda: len(inserts) == 1)
        assert await rows() == [("open",)] * 3
        hanging.clear()
        await until(lambda: len(subjects) == 3)
        await until_empty()
        assert len(inserts) == 1


async def test_outbox_wait_stores_the_mail_before_the_response_ends() -> None:
    stored: list[int] = []

    async def app(scope: object, receive: object, respond: Callable[[object], AsyncIterator[None]]) -> None:
        await send("hangs")
        await respond({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[misc]
        await respond({"type": "http.response.body", "body": b"1", "more_body": True})  # type: ignore[misc]
        await respond({"type": "http.response.body", "body": b""})  # type: ignore[misc]

    async def look(message: dict[str, object]) -> None:
        if message["type"] == "http.response.body":
            stored.append(len(await rows()))

    values = {"backend": f"{__name__}.Recording", "default_sender": SENDER, "outbox": "database", "outbox_wait": True}
    wrapped = EmailMiddleware(app, values)
    async with lifespan(wrapped):
        await wrapped({"type": "http", "method": "GET", "path": "/", "headers": []}, look, look)
        assert stored == [0, 1]
        hanging.clear()
        await until(lambda: subjects == ["hangs"])
        await until_empty()


@asynccontextmanager
async def lifespan(app: EmailMiddleware) -> AsyncIterator[None]:
    runtime = app._runtime
    async with runtime.lifespan():
        yield


async def test_a_database_that_does_not_answer_keeps_no_deferred_mail_from_its_recipients(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: object, receive: object, respond: object) -> None:
        await send("a")

    async def ignore(_message: object) -> None:
        pass

    async with (await db.engine()).begin() as connection:
        await connection.execute(text("DROP TABLE email_outbox_part"))
        await connection.execute(text("DROP TABLE email_outbox"))
    wrapped = EmailMiddleware(app, {"backend": f"{__name__}.Recording", "default_sender": SENDER, "outbox": "database"})
    async with lifespan(wrapped):
        assert "email outbox create" in caplog.text
        await wrapped({"type": "http", "method": "GET", "path": "/", "headers": []}, ignore, ignore)
        await until(lambda: subjects == ["a"])
    assert "1 message not in the outbox" in caplog.text


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_deferred_mail_whose_insert_is_not_confirmed_is_sent_once() -> None:
    """It goes on from memory, so the row that may be there must not be sent by a relay as well."""

    async def app(scope: object, receive: object, respond: object) -> None:
        await send("a")

    async def ignore(_message: object) -> None:
        pass

    async with silent_at("COMMIT", hang_up=True) as silence:
        values = {"backend": f"{__name__}.Recording", "default_sender": SENDER, "outbox": "database"}
        wrapped = EmailMiddleware(app, values)
        async with lifespan(wrapped):
            silence.begin()
            await wrapped({"type": "http", "method": "GET", "path": "/", "headers": []}, ignore, ignore)
            await until(lambda: subjects == ["a"])
            silence.begun = False
            await until_empty()
    assert subjects == ["a"]


async def test_a_transaction_with_mail_fails_without_the_tables() -> None:
    async with (await db.engine()).begin() as connection:
        await connection.execute(text("DROP TABLE email_outbox_part"))
        await connection.execute(text("DROP TABLE email_outbox"))
    async with opened():
        with pytest.raises(OutboxNotCreated, match="viperctl email outbox create"):
            async with transaction():
                await send("a")
    assert subjects == []


@pytest.mark.parametrize("kept", ["commit", "no transaction", "bulk", "connection"])
async def test_send_at_is_the_rows_due_time_and_no_process_has_the_row(kept: str) -> None:
    at = datetime.now(UTC) + timedelta(days=2)
    message = EmailMessageData(recipients=["a@example.test"], subject="later", text="Hello", sender=SENDER)
    async with opened():
        if kept == "commit":
            async with transaction():
                await send("later", send_at=at)
        elif kept == "no transaction":
            await send("later", send_at=at)
        elif kept == "bulk":
            each = {"recipients": ["a@example.test"], "subject": "later", "text": "Hello", "send_at": at}
            assert all([receipt async for receipt in send_many([each], background=True)])
        else:
            with conf.override(EMAIL={"outbox": "database"}):
                async with (await db.engine()).begin() as connection:
                    await connection.run_sync(add, message, send_at=at)
        ((due, lease, claim, progress),) = await rows("due", "lease", "claim", "progress")
    assert due == pytest.approx(at.timestamp(), abs=PATIENCE)  # by the database's clock
    assert (lease, claim) == (None, None)
    assert Progress.from_json(str(progress)).since == pytest.approx(at.timestamp())


async def test_a_session_that_commits_in_two_phases_is_refused_at_the_send() -> None:
    async with opened(), AsyncSession(await db.engine(), twophase=True) as session:
        with pytest.raises(OutboxMisplaced, match=r"two phases \(twophase=True\).* send the message after"):
            async with transaction(session):
                await send("misplaced")
    assert (await rows(), subjects) == ([], [])


@pytest.mark.parametrize("in_transaction", [True, False])
async def test_mail_for_later_waits_in_the_outbox_without_a_broker(in_transaction: bool) -> None:
    async with opened() as mailer:
        at = datetime.now(UTC) + timedelta(hours=1)
        if in_transaction:
            async with transaction():
                assert await send("later", send_at=at) is DeliveryMode.HELD
        else:
            assert await send("later", send_at=at) is DeliveryMode.QUEUED
        ((due, lease),) = await rows("due", "lease")
        assert lease is None
        assert abs(float(str(due)) - at.timestamp()) < 5
        await mailer.start_relay()
        await let_time_pass(3590)
        await asyncio.sleep(1.2)
        assert subjects == []
        await let_time_pass(60)
        await until(lambda: subjects == ["later"])
        await until_empty()


async def test_mail_whose_time_comes_before_its_commit_is_sent_by_the_relay_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With RabbitMQ, which knows no message again, a second copy would arrive."""
    caplog.set_level(logging.INFO)
    async with opened() as mailer:
        async with transaction():
            await send("later", delay=0.01)
            await asyncio.sleep(0.05)
        assert "has taken it over" not in caplog.text
        assert await rows() == [("open",)]
        await mailer.start_relay()
        await until_empty()
    assert subjects == ["later"]


async def test_mail_for_later_is_refused_with_background_off() -> None:
    async with opened():
        with pytest.raises(InvalidMessage, match="background is False"):
            await send("later", delay=60, background=False)


async def test_what_a_shutdown_leaves_is_the_relays_of_another_process(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "openviper.email")
    async with opened(shutdown_timeout=0.1, pool_size=1) as mailer:
        async with asyncio.timeout(PATIENCE):
            block = asyncio.create_task(_two_in_a_transaction())
            await until(lambda: mailer.dispatcher.pending == 1)
    await asyncio.gather(block, return_exceptions=True)
    assert "stays in the outbox" in caplog.text
    assert "was not delivered" not in caplog.text
    hanging.clear()
    await let_time_pass(LEASE + 1)
    async with opened() as mailer:
        await mailer.start_relay()
        await until(lambda: "second" in subjects)
        await let_time_pass(600)  # the first one may have been sent: it counts as an attempt
        await until(lambda: sorted(subjects) == ["hangs", "second"])
        await until_empty()


async def _two_in_a_transaction() -> None:
    async with transaction():
        await send("hangs")
        await send("second")


_PROCESS = """
import asyncio, sys
from openviper import conf, db
from openviper.core.email import send_email
from openviper.core.email.backends.base import EmailBackend

class Hanging(EmailBackend):
    async def send(self, message):
        await asyncio.sleep(600)

async def main():
    async with db.transaction():
        for n in range(3):
            await send_email("a@example.test", f"hangs {n}", text="Hello")
        print("committing", flush=True)

conf.settings.configure(
    DATABASE_URL=sys.argv[1],
    EMAIL={"backend": "__main__.Hanging", "default_sender": "shop@example.test", "outbox": "database"},
)
asyncio.run(main())
"""


async def test_mail_of_a_killed_process_is_delivered_by_the_relay_of_another(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def kill_while_it_sends() -> None:
        command = [sys.executable, "-c", _PROCESS, database_url]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "committing\n"
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and asyncio.run(_count(database_url)) < 3:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE)

    await asyncio.to_thread(kill_while_it_sends)
    assert len(await rows()) == 3
    hanging.clear()
    async with opened() as mailer:
        await mailer.start_relay()
        await let_time_pass(LEASE + 1)
        async with asyncio.timeout(PATIENCE):  # it may have been sent: the relay counts an attempt first
            while '"attempts": 1' not in str(await rows("progress")):
                await asyncio.sleep(0.05)
        while len(subjects) < 3:
            await let_time_pass(10)
            await asyncio.sleep(0.1)
        await until_empty()
        assert sorted(subjects) == ["hangs 0", "hangs 1", "hangs 2"]
    assert len(re.findall(r"message \S+ is taken over, and sent in [\d.]+ s: its process ended", caplog.text)) == 3
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def _count(database_url: str) -> int:
    with conf.override(DATABASE_URL=database_url):
        found = len(await rows())
        await db.dispose()
        return found


async def test_core_connections_store_mail_in_their_transaction() -> None:
    engine = await db.engine()
    message = EmailMessageData(recipients=["a@example.test"], subject="core", text="Hello", sender=SENDER)
    with conf.override(EMAIL={"outbox": "database"}):
        async with engine.begin() as connection:
            message_id = await connection.run_sync(add, message)
        async with engine.connect() as connection:
            await connection.run_sync(add, message)
            await connection.rollback()
        with pytest.raises(TypeError, match="run_sync"):
            add(engine.connect(), message)  # type: ignore[arg-type]
    assert await rows("message_id", "lease") == [(message_id, None)]
    async with opened() as mailer:
        await mailer.start_relay()
        await until(lambda: subjects == ["core"])
        await until_empty()


async def bulk(names: Iterable[str] | AsyncIterable[str]) -> list[tuple[DeliveryMode, bool]]:
    async def messages() -> AsyncIterator[dict[str, object]]:
        if isinstance(names, AsyncIterable):
            async for name in names:
                yield {"recipients": "a@example.test", "subject": name, "text": "Hello"}
        else:
            for name in names:
                yield {"recipients": "a@example.test", "subject": name, "text": "Hello"}

    return [(receipt.mode, bool(receipt)) async for receipt in send_many(messages(), background=True)]


async def test_bulk_mail_without_a_broker_is_stored_and_delivered_by_the_relay() -> None:
    async with opened() as mailer:
        assert await bulk(f"{n:03}" for n in range(300)) == [(DeliveryMode.QUEUED, True)] * 300
        assert set(await rows("lease")) == {(None,)}
        await mailer.start_relay()
        await until_empty()
    assert sorted(subjects) == [f"{n:03}" for n in range(300)]


async def test_bulk_mail_in_a_transaction_is_part_of_it_even_if_read_from_its_session() -> None:
    async def labels(session: AsyncSession) -> AsyncIterator[str]:
        for number in range(300):
            label = await session.scalar(select(Ticket.label).where(Ticket.id == number + 1))
            assert label is not None
            yield label

    async with opened() as mailer:
        async with AsyncSession(await db.engine()) as session:
            await session.execute(insert(Ticket), [{"label": f"{n:03}"} for n in range(300)])
            await session.commit()
        async with transaction() as session:
            assert await bulk(labels(session)) == [(DeliveryMode.HELD, True)] * 300
            with pytest.raises(LookupError):
                async with transaction():
                    await bulk(["dropped"])
                    raise LookupError
        with pytest.raises(LookupError):
            async with transaction():
                await bulk(["rolled back"])
                raise LookupError
        assert len(await rows()) == 300
        await mailer.start_relay()
        await until_empty()
    assert sorted(subjects) == [f"{n:03}" for n in range(300)]


async def test_bulk_mail_in_a_transaction_claims_its_keys_after_the_commit(tmp_path: Path) -> None:
    """A rollback has claimed none."""
    key = f"order-{tmp_path.name}"

    async def store() -> list[bool | None]:
        given = {"recipients": "a@example.test", "subject": "keyed", "text": "Hello", "key": key}
        return [receipt.duplicate async for receipt in send_many([given], background=True)]

    async with opened() as mailer:
        with pytest.raises(LookupError):
            async with transaction():
                assert await store() == [None]
                raise LookupError
        for _ in range(2):
            async with transaction():
                assert await store() == [None]
        assert len(await rows()) == 2
        await mailer.start_relay()
        await until_empty()
        receipt = await submit_email("a@example.test", "keyed", text="Hello", key=key)
    assert receipt.duplicate
    assert subjects == ["keyed"]


async def test_bulk_mail_that_outlives_its_transaction_is_refused() -> None:
    messages = [{"recipients": "a@example.test", "subject": f"{n}", "text": "Hello"} for n in range(1000)]
    async with opened():
        receipts = send_many(messages, background=True)
        async with transaction():
            stored = [await anext(receipts)]
        stored += [receipt async for receipt in receipts]
        refused = [receipt for receipt in stored if receipt.error is not None]
        assert {type(receipt.error) for receipt in refused} == {InvalidMessage}
        assert len(stored) == 1000
        assert len(await rows()) == 1000 - len(refused) > 0


async def test_synchronous_code_stores_mail_in_its_transaction(tmp_path: Path) -> None:
    path = tmp_path / "sync.sqlite3"
    with conf.override(DATABASE_URL=f"sqlite+aiosqlite:///{path}", EMAIL={"outbox": "database"}):
        await create_outbox_tables(await db.engine())

        def place_order() -> str | None:
            engine = create_engine(f"sqlite:///{path}")
            message = EmailMessageData(recipients=["a@example.test"], subject="sync", text="Hello", sender=SENDER)
            with engine.begin() as connection:
                message_id = add(connection, message, delay=0.01)
            with Session(engine) as session:
                add(session.connection(), message)
                session.rollback()
            engine.dispose()
            return message_id

        message_id = await asyncio.to_thread(place_order)
        assert await rows("message_id", "lease") == [(message_id, None)]
        async with opened() as mailer:
            await mailer.start_relay()
            await until(lambda: subjects == ["sync"])
            await until_empty()
        await db.dispose()


async def test_add_on_the_event_loop_names_the_way_that_does_not_block_it() -> None:
    engine = create_engine("sqlite://")
    message = EmailMessageData(recipients=["a@example.test"], subject="sync", text="Hello", sender=SENDER)
    with engine.connect() as connection, pytest.raises(RuntimeError, match="run_sync"):
        add(connection, message)
    engine.dispose()


async def test_mail_that_no_relay_would_find_is_refused_before_the_row_is_stored(tmp_path: Path) -> None:
    path, alias = tmp_path / "other.sqlite3", tmp_path / "alias.sqlite3"
    message = EmailMessageData(recipients=["a@example.test"], subject="lost", text="Hello", sender=SENDER)
    other = create_async_engine(f"sqlite+aiosqlite:///{path}")
    await create_outbox_tables(other)
    alias.symlink_to(path)
    async with other.begin() as connection:
        with conf.override(EMAIL={}), pytest.raises(ImproperlyConfigured, match=r"outbox.* is not set, so no relay"):
            await connection.run_sync(add, message)
        with conf.override(EMAIL={"outbox": "database"}), pytest.raises(OutboxMisplaced, match="this connection is on"):
            await connection.run_sync(add, message)
    async with other.begin() as connection:
        with conf.override(DATABASE_URL=f"sqlite:///{alias}", EMAIL={"outbox": "database"}):
            assert await connection.run_sync(add, message)  # by another name, and the relay reads the same file
            await db.dispose()
    await other.dispose()
    assert await rows() == []


async def test_an_engine_of_ones_own_keeps_the_mail_of_its_sessions(database_url: str) -> None:
    global own_engine
    own_engine = create_async_engine(database_url)
    try:
        async with opened(outbox=f"{__name__}.own_engine"):
            async with AsyncSession(own_engine) as session, transaction(session):
                await send("own")
            assert subjects == ["own"]
            failures.append(MessageRefused("no", code=554))
            async with AsyncSession(own_engine) as session, transaction(session):
                await send("fails")
        found = await asyncio.to_thread(OutboxJobStore(f"{__name__}.own_engine").failed, 10)
        assert [job.reason for job in found] == ["MessageRefused: no"]
        async with AsyncSession(own_engine) as session:  # its connections are still those of this loop
            assert await session.scalar(text("SELECT 1")) == 1
    finally:
        await own_engine.dispose()


async def test_a_transaction_of_another_database_is_refused_at_the_send(tmp_path: Path) -> None:
    engine = await db.engine()
    async with engine.begin() as connection:
        await connection.run_sync(database_id)
    other = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'other.sqlite3'}")
    async with opened(), AsyncSession(other) as session, transaction(session):
        with pytest.raises(OutboxMisplaced, match="another database"):
            await send("misplaced")
    await other.dispose()
    assert (await rows(), subjects) == ([], [])


async def test_no_connection_is_left_open_where_the_engine_was_disposed_of_before_the_mailer_closes() -> None:
    async with opened() as mailer:
        await mailer.start_relay()
        async with transaction():
            await send("a")
        engine = await db.engine()
        await db.dispose()
        await rows()  # on a new engine
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]


async def test_two_relays_deliver_each_message_once() -> None:
    engine = await db.engine()
    with conf.override(EMAIL={"outbox": "database"}):
        async with engine.begin() as connection:
            for n in range(60):
                data = EmailMessageData(recipients=["a@example.test"], subject=f"{n:02}", text="Hello", sender=SENDER)
                await connection.run_sync(add, data)
    async with opened() as first, opened() as second:
        await first.start_relay()
        await second.start_relay()
        await until(lambda: len(subjects) >= 60)
        await until_empty()
    assert sorted(subjects) == [f"{n:02}" for n in range(60)]


async def test_a_relay_that_was_stopped_for_longer_than_its_lease_changes_nothing_afterwards() -> None:
    """The other one counts its attempt as uncertain, and sends the message again."""
    engine = await db.engine()
    with conf.override(EMAIL={"outbox": "database"}):
        async with engine.begin() as connection:
            data = EmailMessageData(recipients=["a@example.test"], subject="hangs", text="Hello", sender=SENDER)
            await connection.run_sync(add, data)
    async with opened() as stopped, opened() as other:
        await stopped.start_relay()
        async with asyncio.timeout(PATIENCE):
            while (await rows("claim"))[0][0] is None:
                await asyncio.sleep(0.01)
        await let_time_pass(LEASE + 1)
        await other.start_relay()
        async with asyncio.timeout(PATIENCE):
            while '"attempts": 1' not in str((await rows("progress"))[0]):
                await asyncio.sleep(0.01)
        hanging.clear()
        await until(lambda: subjects == ["hangs"])
        await asyncio.sleep(0.3)  # for the late answer
        ((state, progress, due),) = await rows("state", "progress", "due")
        assert (state, '"uncertain": true' in str(progress)) == ("open", True)
        assert float(str(due)) > time.time()
        await let_time_pass(10)
        await until(lambda: subjects == ["hangs", "hangs"])
        await until_empty()


async def test_a_large_message_is_delivered_whole_by_the_relay() -> None:
    content = bytes(range(256)) * 2000
    async with opened() as mailer:
        failures.append(ConnectionFailed("down", temporary=True))
        async with transaction():
            await send("large", attachments=[("data.bin", content, "application/octet-stream")])
        await mailer.start_relay()
        await let_time_pass(10)
        await until(lambda: subjects == ["large"])
        await until_empty()


async def test_a_row_whose_parts_could_not_be_read_is_delivered_when_they_can(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It must not stay in the hands of the relay for as long as that lives."""
    engine = await db.engine()
    data = EmailMessageData(
        ["a@example.test"], "large", text="Hello", sender=SENDER, attachments=[AttachmentData("a", bytes(20_000))]
    )
    with conf.override(EMAIL={"outbox": "database"}):
        async with engine.begin() as connection:
            await connection.run_sync(add, data)
            await connection.execute(text("ALTER TABLE email_outbox_part RENAME TO away"))
    async with opened() as mailer:
        await mailer.start_relay()
        await until(lambda: "is not attempted: " in caplog.text)
        async with asyncio.timeout(PATIENCE):
            while (await rows("lease"))[0][0] is not None:
                await asyncio.sleep(0.05)
        async with engine.begin() as connection:
            await connection.execute(text("ALTER TABLE away RENAME TO email_outbox_part"))
        await let_time_pass(10)
        await until(lambda: subjects == ["large"])
        await until_empty()
    assert "taken over" not in caplog.text


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_relay_says_that_a_database_does_not_answer_instead_of_waiting_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+asyncpg://shop@127.0.0.1:{silent.getsockname()[1]}/shop"
        with conf.override(DATABASE_URL=url, DATABASE_TIMEOUT=0.3):
            async with asyncio.timeout(PATIENCE / 2), opened(shutdown_timeout=0.1) as mailer:
                await mailer.start_relay()
                assert "does not answer (TimeoutError)" in caplog.text
                await until(lambda: "the relay waits: the outbox does not answer: TimeoutError" in caplog.text)


async def test_with_hold_only_what_a_process_had_begun_is_kept_when_it_loses_its_rows() -> None:
    async with opened(on_uncertain="hold", pool_size=1) as stopped:
        block = asyncio.create_task(_two_in_a_transaction())
        async with asyncio.timeout(PATIENCE):
            while [(bool(each),) for (each,) in await rows("repeated")] != [(True,), (False,)]:
                await asyncio.sleep(0.01)
        await let_time_pass(LEASE + 1)
        other = Mailer(outbox_settings(on_uncertain="hold"))
        await other.open()
        await other.start_relay()
        async with asyncio.timeout(PATIENCE):
            while await rows("state", "reason") == [] or (await rows())[0] != ("failed",) or subjects != ["second"]:
                await asyncio.sleep(0.05)
        hanging.clear()
        await block
        await other.aclose()
        assert stopped.dispatcher.pending == 0
    assert subjects == ["second", "hangs"]
    ((state, progress),) = await rows("state", "progress")
    assert (state, '"uncertain": true' in str(progress)) == ("failed", True)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_with_hold_nothing_is_sent_while_the_database_cannot_note_that_it_begins(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "openviper.email")
    async with opened(on_uncertain="hold", pool_size=1) as mailer:
        first = asyncio.create_task(_in_a_transaction("hangs"))
        async with asyncio.timeout(PATIENCE):
            while [(bool(each),) for (each,) in await rows("repeated")] != [(True,)]:
                await asyncio.sleep(0.01)
        second = asyncio.create_task(_in_a_transaction("second"))
        await until(lambda: mailer.dispatcher.pending == 2)
        with conf.override(DATABASE_TIMEOUT=0.3):
            async with (await db.engine()).begin() as connection:
                unbegun = outbox_table.c.repeated.is_(False)
                await connection.execute(select(outbox_table.c.id).where(unbegun).with_for_update())
                hanging.clear()
                await until(lambda: "is left to the relay: the outbox does not answer: TimeoutError" in caplog.text)
            await asyncio.gather(first, second)
        assert subjects == ["hangs"]
        await mailer.start_relay()
        await until(lambda: subjects == ["hangs", "second"])
        await until_empty()


async def _in_a_transaction(subject: str) -> None:
    async with transaction():
        await send(subject)


async def test_paused_mail_stays_in_the_outbox_without_an_attempt_and_is_relayed_afterwards() -> None:
    store = OutboxPauseStore("database")
    await asyncio.to_thread(change_state, store, None, seconds=None, stop=True)
    async with opened() as mailer:
        await mailer.start_relay()
        pause = mailer.own_transport.pause
        assert pause is not None
        await until(lambda: pause.on)
        async with transaction():
            assert await send("held") is DeliveryMode.HELD
        await until(lambda: mailer.dispatcher.pending == 0)
        await asyncio.sleep(2)  # in which the relay has looked for what is due
        assert subjects == []
        ((state, progress),) = await rows("state", "progress")
        assert (state, Progress.from_json(str(progress)).attempts) == ("open", 0)
        await asyncio.to_thread(change_state, store, None, seconds=None, stop=False)
        await until(lambda: subjects == ["held"])
    await asyncio.to_thread(store.close)


async def test_key_that_was_used_before_the_commit_drops_the_message_and_its_row(tmp_path: Path) -> None:
    key = f"order-{tmp_path.name}"
    async with opened():
        await send("first", key=key, background=False)
        async with transaction():
            await send("first", key=key)
            await send("other", key=f"{key}-other")
        await until_empty()
    assert subjects == ["first", "other"]


@pytest.mark.parametrize("subject", ["first", "changed"])
async def test_relay_drops_a_message_whose_key_another_one_has(
    tmp_path: Path, subject: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = f"order-{tmp_path.name}"
    data = EmailMessageData(recipients="a@example.test", subject=subject, text="Hello", key=key)
    async with opened() as mailer:
        receipt = await submit_email("a@example.test", "first", text="Hello", key=key, background=False)
        with conf.override(EMAIL={"outbox": "database", "default_sender": SENDER}):
            async with (await db.engine()).begin() as connection:
                await connection.run_sync(add, data)
        await mailer.start_relay()
        await until_empty()
    assert subjects == ["first"]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert any(receipt.message_id in text for text in errors) is (subject == "changed")


async def test_message_that_the_relay_sends_has_its_key_from_then_on(tmp_path: Path) -> None:
    key = f"order-{tmp_path.name}"
    data = EmailMessageData(recipients="a@example.test", subject="first", text="Hello", key=key)
    async with opened() as mailer:
        with conf.override(EMAIL={"outbox": "database", "default_sender": SENDER}):
            async with (await db.engine()).begin() as connection:
                await connection.run_sync(add, data)
        await mailer.start_relay()
        await until_empty()
        again = EmailMessageData(recipients="a@example.test", subject="first", text="Hello", key=key)
        (receipt,) = [each async for each in send_many([again])]
    assert (receipt.duplicate, subjects) == (True, ["first"])
