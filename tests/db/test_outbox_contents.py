"""A stored message has in its row all that a process which did not accept it needs to deliver it."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from openviper import conf, db
from openviper.core.email import ConnectionFailed, EmailMessageData, EmailMiddleware, send_many, submit_email
from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.job_attempt import read_message
from openviper.core.email.message import OutgoingMessage, PreparedMessage
from openviper.core.email.queue.job import ClaimedJob
from openviper.core.email.queue.outbox_rows import claimed_job
from openviper.core.email.settings import EmailSettings
from openviper.db import transaction
from openviper.db.outbox import add, create_outbox_tables
from openviper.db.outbox.rows import ClaimedRow
from openviper.db.outbox.tables import outbox_table

pytestmark = pytest.mark.usefixtures("database")

GIVEN: dict[str, Any] = {
    "recipients": ["ana@example.test"],
    "subject": "Your order",
    "text": "Thank you",
    "mailer": "bulk",
    "stream": "news",
    "tags": ["order"],
    "ref": "order-7",
    "sensitive": True,
}
EXPIRES = datetime.now(UTC) + timedelta(hours=2)
SETTINGS: dict[str, Any] = {
    "default_sender": "shop@example.test",
    "outbox": "database",
    "redirect_to": ["staging@example.test"],
    "mailers": {"bulk": {}},
}


class Down(EmailBackend):
    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        raise ConnectionFailed("down", temporary=True)


async def in_transaction(given: dict[str, Any]) -> None:
    async with transaction():
        await submit_email(**given, expires_at=EXPIRES)


async def in_a_request(given: dict[str, Any]) -> None:
    async def app(scope: Any, receive: Any, respond: Any) -> None:
        await submit_email(**given, expires_at=EXPIRES)
        await respond({"type": "http.response.start", "status": 200, "headers": []})
        await respond({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def ignore(_message: Any) -> None:
        pass

    settings = {**SETTINGS, "backend": f"{__name__}.Down"}
    await EmailMiddleware(app, settings)({"type": "http", "path": "/", "headers": []}, receive, ignore)


async def for_later(given: dict[str, Any]) -> None:
    await submit_email(**given, expires_at=EXPIRES, delay=60)


async def in_bulk(given: dict[str, Any]) -> None:
    messages = [{**given, "expires_at": EXPIRES}]
    assert [receipt async for receipt in send_many(messages, background=True)]


async def by_core(given: dict[str, Any]) -> None:
    with conf.override(EMAIL=SETTINGS):
        async with (await db.engine()).begin() as connection:
            data = EmailMessageData(**given)
            await connection.run_sync(lambda sync: add(sync, data, expires_at=EXPIRES))


@asynccontextmanager
async def opened() -> AsyncIterator[None]:
    mailer = Mailer(EmailSettings(**{**SETTINGS, "backend": f"{__name__}.Down"}))
    await mailer.open()
    with using_mailer(mailer):
        yield
    await mailer.aclose()


async def stored() -> tuple[ClaimedJob, PreparedMessage, str]:
    """Return the only row's job, its message, and its mailer."""
    columns = ("id", "message_id", "mailer", "head", "parts", "progress", "repeated")
    async with (await db.engine()).connect() as connection:
        (row,) = await connection.execute(select(*(outbox_table.c[name] for name in columns)))
    job = claimed_job(ClaimedRow(*row))
    return job, read_message(job), row.mailer


@pytest.mark.parametrize("send", [in_transaction, in_a_request, for_later, in_bulk, by_core])
async def test_whichever_way_it_is_stored_every_instruction_is_in_the_row(
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    key = secrets.token_hex(8)
    await create_outbox_tables(await db.engine())
    async with opened():
        await send({**GIVEN, "key": key})
        job, message, mailer = await stored()
    assert job.progress.expires_at == pytest.approx(EXPIRES.timestamp())
    assert (mailer, message.mailer) == ("bulk", "bulk")
    assert message.must["stream"] == "news"
    assert message.must["key"]["name"] == key
    assert {"redirect", "sensitive"} <= message.must.keys()
    assert job.sensitive
    assert dict(message.extra) == {"tags": ("order",), "ref": "order-7"}
