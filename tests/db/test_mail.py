"""Mail that is sent inside transactions and hooks, on SQLite and PostgreSQL."""
# ruff: noqa: PT012  # what raises here is a whole transaction block

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from support.patience import PATIENCE

from openviper import db
from openviper.conf import override
from openviper.core.email import (
    ConnectionFailed,
    DeliveryMode,
    MessageEvent,
    send_email,
    send_email_sync,
    submit_email,
    subscribe,
)
from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.backends.memory import sent
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings
from openviper.db import Model, transaction

pytestmark = pytest.mark.usefixtures("database")


class Parcel(Model):
    __tablename__ = "parcels"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str]

    async def after_insert(self) -> None:
        await send_email("a@example.test", f"inserted {self.label}", text="From a hook")


class Recording(EmailBackend):
    """Fails as often as told, and keeps what it delivered."""

    def __init__(self, settings: EmailSettings) -> None:
        super().__init__(settings)
        self.failures: list[ConnectionFailed] = []
        self.subjects: list[str] = []

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        if self.failures:
            raise self.failures.pop()
        self.subjects.append(message.prepared.subject)
        return DeliveryReport(message.envelope.recipients)


@pytest.fixture
async def backend(database: None) -> AsyncIterator[Recording]:
    await db.create_tables(Model.metadata)
    settings = EmailSettings(backend=f"{__name__}.Recording", default_sender="shop@example.test", retries=1)
    mailer = Mailer(settings)
    assert isinstance(mailer.backend, Recording)
    with using_mailer(mailer):
        yield mailer.backend
    await mailer.aclose()


async def send(subject: str, background: bool | None = None) -> DeliveryMode:
    return (await submit_email("a@example.test", subject, text="", background=background)).mode


async def test_a_send_in_a_transaction_is_held_until_the_commit_and_awaited_by_its_exit(backend: Recording) -> None:
    async with transaction():
        assert await send("held") is DeliveryMode.HELD
        await asyncio.sleep(0)
        assert backend.subjects == []
    assert backend.subjects == ["held"]


async def test_a_rolled_back_transaction_sends_nothing_and_its_mail_is_reported_as_discarded(
    backend: Recording,
) -> None:
    events: list[MessageEvent] = []
    unsubscribe = subscribe(events.append)
    with pytest.raises(LookupError):
        async with transaction():
            await send("never")
            raise LookupError
    unsubscribe()
    assert backend.subjects == []
    assert [event.kind for event in events] == ["held", "discarded"]


async def test_a_hook_sends_after_the_commit_with_the_key_of_the_row(backend: Recording) -> None:
    async with transaction() as session:
        session.add(Parcel(label="one"))
        await session.flush()
        assert backend.subjects == []
    assert backend.subjects == ["inserted one"]


async def test_a_hook_of_a_plain_session_sends_after_its_commit_only(backend: Recording) -> None:
    async with AsyncSession(await db.engine()) as session:
        session.add(Parcel(label="closed"))
        await session.flush()
    async with AsyncSession(await db.engine()) as session:
        session.add(Parcel(label="committed"))
        await session.commit()
    assert backend.subjects == ["inserted committed"]


async def test_a_savepoint_that_is_rolled_back_takes_its_mail_with_it(backend: Recording) -> None:
    async with transaction() as session:
        session.add(Parcel(label="outer"))
        with pytest.raises(LookupError):
            async with transaction():
                session.add(Parcel(label="inner"))
                await send("inner by hand")
                await session.flush()
                raise LookupError
        assert (await session.scalars(select(Parcel.label))).all() == ["outer"]
    assert backend.subjects == ["inserted outer"]


async def test_background_false_is_not_held(backend: Recording) -> None:
    with pytest.raises(LookupError):
        async with transaction():
            assert await send("at once", background=False) is DeliveryMode.INLINE
            raise LookupError
    assert backend.subjects == ["at once"]


async def test_in_a_request_the_commit_passes_mail_on_to_the_outbox(backend: Recording) -> None:
    outbox = RequestOutbox()
    with collecting(outbox):
        async with transaction():
            assert await send("after the response") is DeliveryMode.HELD
        assert backend.subjects == []
    for accepted in outbox.flush():
        await asyncio.wait_for(accepted.done, PATIENCE)
    assert backend.subjects == ["after the response"]


async def test_a_commit_after_the_response_still_sends(backend: Recording) -> None:
    """A task that outlives its request commits when the outbox was handed over already."""
    outbox = RequestOutbox()
    with collecting(outbox):
        async with transaction():
            await send("late")
            outbox.flush()
    async with asyncio.timeout(PATIENCE):
        while not backend.subjects:
            await asyncio.sleep(0)
    assert backend.subjects == ["late"]


async def test_a_temporary_failure_after_the_commit_is_retried(backend: Recording) -> None:
    backend.failures = [ConnectionFailed("mail.test:25: refused", temporary=True)]
    async with transaction():
        await send("second try")
    assert backend.subjects == ["second try"]


async def test_a_final_failure_after_the_commit_is_logged_and_not_raised(
    backend: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    backend.failures = [ConnectionFailed("mail.test:25: certificate has expired")]
    async with transaction() as session:
        session.add(Parcel(label="kept"))
        receipt = await submit_email("a@example.test", "lost", text="")
    assert receipt.message_id in caplog.text
    async with transaction() as session:
        assert (await session.scalars(select(Parcel.label))).all() == ["kept"]


async def test_a_task_that_outlives_the_transaction_sends_directly(backend: Recording) -> None:
    ended = asyncio.Event()

    async def child() -> DeliveryMode:
        await ended.wait()
        return await send("from the child")

    async with transaction():
        task = asyncio.create_task(child())
    ended.set()
    assert await task is DeliveryMode.INLINE
    assert backend.subjects == ["from the child"]


async def test_a_session_that_only_read_holds_nothing_back(backend: Recording) -> None:
    async with AsyncSession(await db.engine()) as session:
        await session.execute(select(Parcel))
        assert await send("not held") is DeliveryMode.INLINE


async def test_the_sync_twin_in_a_thread_of_a_transaction_is_held_too(backend: Recording) -> None:
    outbox = RequestOutbox()
    with collecting(outbox), pytest.raises(LookupError):
        async with transaction():
            assert await asyncio.to_thread(send_email_sync, "a@example.test", "threaded", text="")
            raise LookupError
    assert outbox.flush() == []
    assert backend.subjects == []


async def test_mail_of_a_thread_whose_own_loop_has_ended_still_follows_the_transaction() -> None:
    """In a script the sync twin runs a loop of its own, and the mailer that it used is closed before the commit."""
    with override(EMAIL={"backend": "MemoryBackend", "default_sender": "shop@example.test"}):
        sent.clear()
        async with transaction():
            assert await asyncio.to_thread(send_email_sync, "a@example.test", "From a thread", text="") is True
            assert len(sent) == 0
        assert [message.prepared.subject for message in sent] == ["From a thread"]
