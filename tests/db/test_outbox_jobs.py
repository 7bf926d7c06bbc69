"""The outbox as a job store: what the commands and the inbox page ask of it, on SQLite and PostgreSQL."""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from sqlalchemy import text
from support.prepared import make_outgoing

from openviper import conf, db
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.message.model import MUST_SENSITIVE
from openviper.core.email.message.storage import encode
from openviper.core.email.queue import stored_mail
from openviper.core.email.queue.found import Wanted
from openviper.core.email.queue.job import NewJob, Progress, job_key
from openviper.core.email.queue.outbox_store import OutboxJobStore
from openviper.db.outbox import create_outbox_tables
from openviper.db.outbox.store import OutboxStore
from openviper.exceptions import ImproperlyConfigured

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
pytestmark = pytest.mark.usefixtures("database")

T = TypeVar("T")
not_an_engine = object()


async def call(function: Callable[..., T], *arguments: Any, **more: Any) -> T:
    """In a thread, as pages do it: the store blocks."""
    return await asyncio.to_thread(function, *arguments, **more)


@pytest.fixture
async def store(database: None) -> OutboxJobStore:
    await create_outbox_tables(await db.engine())
    return OutboxJobStore("database")


async def new_job(subject: str = "Hello", *, due_at: float | None = None, sensitive: bool = False) -> NewJob:
    message = await make_outgoing(subject=subject)
    prepared = message.prepared._replace(must={MUST_SENSITIVE: True}) if sensitive else message.prepared
    progress = Progress(since=time.time())
    key = job_key(message.message_id, message.envelope.recipients)
    return NewJob(key, message.message_id, encode(prepared), progress, 60.0, due_at)


async def test_a_job_is_claimed_once_and_finished(store: OutboxJobStore) -> None:
    new = await new_job()
    await call(store.probe)
    assert await call(store.add, new, deadline=time.monotonic() + 1)
    job = await call(store.claim)
    assert job is not None
    assert (job.message_id, job.payload, job.repeated) == (new.message_id, new.payload, False)
    assert await call(store.claim) is None
    await call(store.finish, job, remember=60.0)
    assert (await call(store.stats))[1:4] == (0, 0, 0)


async def test_a_retry_is_claimed_when_it_is_due(store: OutboxJobStore) -> None:
    jobs = [await new_job("a"), await new_job("b", due_at=time.time() + 600)]
    assert await call(lambda: dict(store.add_many(jobs, deadline=0))) == {0: True, 1: True}
    job = await call(store.claim)
    assert job is not None
    await call(store.retry, job, Progress(since=1.0, attempts=1), delay=600.0)
    assert await call(store.claim) is None
    assert (await call(store.stats))[1:4] == (0, 2, 0)


async def test_failed_jobs_are_listed_retried_and_purged(store: OutboxJobStore) -> None:
    ids = []
    for name in "ab":
        new = await new_job(name)
        ids.append(new.message_id)
        await call(store.add, new, deadline=0)
        job = await call(store.claim)
        assert job is not None
        progress = Progress(since=1.0, attempts=2, refused={"user@example.test": "550 no"})
        await call(store.fail, job, progress, "550 no", keep=600.0, uncertain=False)
    found = await call(store.failed, 10)
    assert [each.message_id for each in found] == ids
    assert (found[0].reason, found[0].progress.attempts, found[0].queue) == ("550 no", 2, "emails")
    assert found[0].payload is not None
    assert found[0].payload.summary()["Subject"] == "a"
    assert (await call(store.stats)).failed == 2

    seen: list[int] = []
    assert await call(store.retry_failed, frozenset(ids[:1]), lambda: seen.append(1)) == 1
    assert len(seen) == 2
    again = await call(store.claim)
    assert again is not None
    assert (again.message_id, again.progress.attempts) == (ids[0], 0)
    assert again.progress.pending == ("user@example.test",)
    assert await call(store.purge_failed, None) == 1
    assert await call(store.failed, 10) == []


async def test_the_content_of_a_sensitive_message_is_gone_and_it_is_not_retried(store: OutboxJobStore) -> None:
    await call(store.add, await new_job(sensitive=True), deadline=0)
    job = await call(store.claim)
    assert job is not None
    await call(store.fail, job, job.progress, "no", keep=600.0, uncertain=False)
    (failed,) = await call(store.failed, 10)
    assert failed.content_dropped
    dropped: list[int] = []
    assert await call(store.retry_failed, None, on_dropped=lambda: dropped.append(1)) == 0
    assert dropped == [1]


async def test_relays_are_counted_until_they_end_or_their_time_is_over(store: OutboxJobStore) -> None:
    rows = OutboxStore(await db.engine())
    for token in "ab":
        await rows.announce(token)
        await rows.announce(token)
    assert await call(store.consumers) == 2
    await rows.withdraw("a")
    assert await call(store.consumers) == 1
    async with rows.engine.begin() as connection:
        await connection.execute(text("UPDATE email_meta SET value = '1.5' WHERE name = 'relay:b'"))
    assert await call(store.consumers) == 0
    await rows.withdraw("a")
    async with rows.engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM email_meta WHERE name LIKE 'relay:%'")) == 0


async def test_a_database_without_the_tables_is_told_without_any_content(database: None) -> None:
    store = OutboxJobStore("database")
    job = await new_job("a secret")
    with pytest.raises(QueueUnavailable, match=r"lacks email_key, .*; run `viperctl email outbox create`") as caught:
        await call(store.add, job, deadline=0)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_mail_is_read_where_the_settings_store_it(store: OutboxJobStore) -> None:
    assert await call(stored_mail) is None
    with conf.override(EMAIL={"outbox": "database"}):
        found = await call(stored_mail)
    assert found is not None
    assert (found.address, found.worker) == ("the database outbox", "viperctl email relay")
    assert await call(found.store.failed, 10) == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_setting_that_names_no_engine_is_refused(store: OutboxJobStore) -> None:
    with pytest.raises(ImproperlyConfigured, match="dotted path of an AsyncEngine"):
        await call(OutboxJobStore(f"{__name__}.not_an_engine").probe)


@on_postgresql
async def test_a_database_that_accepts_connections_and_says_nothing_is_told_soon(database: None) -> None:
    """The driver itself would wait for a minute."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+asyncpg://shop@127.0.0.1:{silent.getsockname()[1]}/shop"
        with conf.override(DATABASE_URL=url):
            hasty = OutboxJobStore("database", limit=0.3)
            asked = call(hasty.failed, 10), call(hasty.find, Wanted(address="a@example.test")), call(hasty.stats)
            results = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
    assert [str(error) for error in results] == ["the outbox does not answer: TimeoutError"] * 3
