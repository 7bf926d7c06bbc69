"""The database outbox beside a broker: what a commit has stored goes to the broker, and from there to the workers."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from support.patience import PATIENCE

from openviper import db
from openviper.conf import override
from openviper.core.email import DeliveryMode, EmailMessageData, send_many, submit_email
from openviper.core.email.delivery import Mailer
from openviper.core.email.queue import queue_service
from openviper.core.email.settings import EmailSettings
from openviper.db import transaction
from openviper.db.outbox import add, create_outbox_tables
from openviper.db.outbox.rows import LEASE
from openviper.db.outbox.tables import outbox_table


@pytest.fixture
async def outbox(tmp_path: Path, scene: Any) -> AsyncIterator[None]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'shop.sqlite3'}"
    email = scene.email | {"outbox": "database"}
    with (scene.folder / "settings.py").open("a") as settings:
        settings.write(f"DATABASE_URL = {url!r}\nEMAIL = {email!r}\n")
    with override(EMAIL=email, DATABASE_URL=url):
        await create_outbox_tables(await db.engine())
        yield
        await db.dispose()


async def rows() -> int:
    async with (await db.engine()).connect() as connection:
        return len((await connection.execute(select(outbox_table.c.id))).all())


async def store(*subjects: str) -> None:
    async with (await db.engine()).begin() as connection:
        for subject in subjects:
            await connection.run_sync(add, EmailMessageData(["a@example.com"], subject, text="Hello"))


async def until_empty() -> None:
    async with asyncio.timeout(PATIENCE):
        while await rows():
            await asyncio.sleep(0.05)


async def waiting() -> int:
    service = queue_service()
    assert service is not None
    stats = await asyncio.to_thread(service.store.stats)
    return stats.waiting + (stats.later or 0)


async def test_a_row_is_gone_when_the_broker_has_accepted_its_message(outbox: None, scene: Any) -> None:
    async with transaction():
        assert (await submit_email("a@example.com", "Hi", text="Hello")).mode is DeliveryMode.HELD
    await until_empty()
    assert await waiting() == 1


async def test_the_relay_feeds_the_broker_and_delivers_nothing_itself(outbox: None, scene: Any) -> None:
    await store(*"abc")
    mailer = Mailer(EmailSettings.from_settings())
    await mailer.open()
    await mailer.start_relay()
    await until_empty()
    await mailer.aclose()
    assert await waiting() == 3
    assert scene.smtp.messages == []


async def test_keys_of_bulk_mail_in_transactions_are_claimed_on_its_way_to_the_broker(outbox: None, scene: Any) -> None:
    key = uuid.uuid4().hex
    given = {"recipients": "a@example.com", "subject": "Hi", "text": "Hello", "key": key}
    for committed in (False, True, True):
        with suppress(LookupError):
            async with transaction():
                assert [receipt.duplicate async for receipt in send_many([given], background=True)] == [None]
                if not committed:
                    raise LookupError
    assert await rows() == 2
    mailer = Mailer(EmailSettings.from_settings())
    await mailer.open()
    await mailer.start_relay()
    await until_empty()
    await mailer.aclose()
    assert await waiting() == 1
    assert [receipt.duplicate async for receipt in send_many([given], background=True)] == [True]


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
async def test_a_message_that_was_queued_before_its_process_died_is_queued_once(outbox: None) -> None:
    """Redis knows it; on RabbitMQ the time between its confirm and the deletion is a window for a second one."""
    await store("Hi")
    async with (await db.engine()).connect() as connection:
        (kept,) = (await connection.execute(select(outbox_table))).mappings().all()
    mailer = Mailer(EmailSettings.from_settings())
    await mailer.open()
    await mailer.start_relay()
    await until_empty()
    async with (await db.engine()).begin() as connection:
        await connection.execute(insert(outbox_table).values(dict(kept)))
    await until_empty()
    await mailer.aclose()
    assert await waiting() == 1


async def test_each_worker_relays_what_the_outbox_holds(outbox: None, scene: Any) -> None:
    await store("due")
    await store("orphan")
    async with (await db.engine()).begin() as connection:  # as a process leaves it that was killed in an attempt
        where = outbox_table.c.head.contains(b"orphan")
        await connection.execute(update(outbox_table).where(where).values(lease=time.time() - LEASE, claim="dead"))
    with scene.worker():
        await until_empty()
        async with asyncio.timeout(PATIENCE):
            while len(scene.smtp.messages) < 2:
                await asyncio.sleep(0.05)
    assert sorted(message.parse()["Subject"] for message in scene.smtp.messages) == ["due", "orphan"]
