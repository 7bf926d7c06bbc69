"""Applications that create the outbox's tables when they start, and dispose of the engine when they end."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from starlette.applications import Starlette
from support.lifespan import Lifespan
from support.patience import PATIENCE

from openviper import OpenViper, conf, db
from openviper.core.email import Email, EmailMiddleware
from openviper.core.email.delivery import Mailer
from openviper.core.email.settings import EmailSettings
from openviper.db.outbox import create_outbox_tables
from openviper.db.outbox.store import OutboxStore

pytestmark = pytest.mark.usefixtures("database")

EMAIL = {"backend": "NullBackend", "default_sender": "shop@example.test", "outbox": "database"}
own_engine: AsyncEngine


Starts = Callable[[Any], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def creates_tables(_app: object) -> AsyncIterator[None]:
    await create_outbox_tables(await db.engine())
    yield
    await db.dispose()


@asynccontextmanager
async def creates_nothing(_app: object) -> AsyncIterator[None]:
    yield
    await db.dispose()


def attached(lifespan: Starts) -> Any:
    return Email().attach(Starlette(lifespan=lifespan))


def wrapped(lifespan: Starts) -> Any:
    return EmailMiddleware(Starlette(lifespan=lifespan))


def added(lifespan: Starts) -> Any:
    app = Starlette(lifespan=lifespan)
    app.add_middleware(EmailMiddleware)
    return app


def extended(lifespan: Starts) -> Any:
    app = OpenViper(lifespan=lifespan)
    app.add_extension(Email())
    return app


@pytest.mark.parametrize("make", [attached, wrapped, added, extended])
async def test_tables_that_the_application_creates_at_its_start_are_not_missed(
    make: Callable[[Starts], Any], caplog: pytest.LogCaptureFixture
) -> None:
    with conf.override(EMAIL=EMAIL):
        async with Lifespan(make(creates_tables)):
            pass
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("make", [attached, extended])
async def test_tables_that_nobody_creates_are_told_with_the_remedy(
    make: Callable[[Starts], Any], caplog: pytest.LogCaptureFixture
) -> None:
    with conf.override(EMAIL=EMAIL):
        async with Lifespan(make(creates_nothing)):
            pass
    assert "lacks email_key, email_meta, email_outbox, email_outbox_part" in caplog.text
    assert "viperctl email outbox create" in caplog.text


@pytest.mark.parametrize("outbox", ["database", f"{__name__}.own_engine"])
async def test_a_connection_in_use_when_the_engine_is_disposed_of_is_closed_once_it_is_returned(
    outbox: str, database_url: str
) -> None:
    global own_engine
    own_engine = await db.engine() if outbox == "database" else create_async_engine(database_url)
    mailer = Mailer(EmailSettings(**EMAIL | {"outbox": outbox}))
    await mailer.open()
    opened: list[object] = []
    closed: list[object] = []
    event.listen(own_engine.sync_engine, "connect", lambda connection, _: opened.append(connection))
    event.listen(own_engine.sync_engine, "close", lambda connection, _: closed.append(connection))
    for _ in range(2):
        async with own_engine.connect():
            await own_engine.dispose()
            assert len(opened) == len(closed) + 1
        assert len(opened) == len(closed)
    async with own_engine.connect():
        pass
    assert len(opened) == len(closed) + 1, "the next connection is kept"
    await mailer.aclose()
    assert len(opened) == len(closed)


async def test_a_relay_that_waits_for_missing_tables_names_them_and_goes_on_once_they_exist(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mailer = Mailer(EmailSettings(**EMAIL))
    await mailer.open()
    await mailer.start_relay()
    async with asyncio.timeout(PATIENCE):
        while "the relay waits" not in caplog.text:
            await asyncio.sleep(0.01)
    assert re.search(r"the relay waits: \S+ lacks email_key, .*email_outbox_part; run `viperctl", caplog.text)
    await create_outbox_tables(await db.engine())
    async with asyncio.timeout(PATIENCE):
        while not await OutboxStore(await db.engine()).relays():
            await asyncio.sleep(0.05)
    await mailer.aclose()
