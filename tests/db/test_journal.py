"""The journal of final answers, on SQLite and PostgreSQL."""

import asyncio
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import MetaData, update
from support.patience import PATIENCE
from support.smtpd import SmtpServer

from openviper import db
from openviper.conf import override
from openviper.core.email import Cancel, EmailMessageData, MessageEvent, submit_email, subscribe
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.checks.journal import check_journal
from openviper.core.email.delivery.health import HealthCheck
from openviper.core.email.errors import RecipientsRefused
from openviper.core.email.settings import EmailSettings
from openviper.db import transaction
from openviper.db.journal import JournalRow, JournalStore, create_journal, missing_columns
from openviper.db.outbox import add, create_outbox_tables
from openviper.db.outbox.tables import outbox_table
from openviper.network import mail_hash

pytestmark = pytest.mark.usefixtures("database")

KEY = "a key of the journal's hashes, which is long"


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
async def store(database: None) -> JournalStore:
    engine = await db.engine()
    await create_journal(engine)
    return JournalStore(engine)


def settings(server: SmtpServer, **more: Any) -> dict[str, Any]:
    return server.settings(default_sender="shop@example.test", journal=True, journal_key=KEY, **more)


def row(name: str, outcome: str, *, at: float) -> JournalRow:
    return JournalRow(name, f"<{name}@example.test>", None, mail_hash("ann@example.test", KEY), None, outcome, None, at)


async def answers(store: JournalStore) -> dict[str, tuple[str, int | None]]:
    """What the journal says of each of the addresses that these tests use."""
    names = {mail_hash(f"{name}@example.test", KEY): name for name in ("ann", "ben", "cleo", "dan")}
    return {names[row.recipient]: (row.outcome, row.code) for row in await store.find(limit=100)}


async def test_each_recipient_has_its_own_answer(server: SmtpServer, store: JournalStore) -> None:
    def suppressed(addresses: list[str], _stream: str | None) -> list[str]:
        return ["cleo@example.test"]

    server.refuse("ben@example.test", 550)
    server.refuse("dan@example.test", 451)
    mailer = Mailer(EmailSettings(**settings(server, suppress=suppressed)))
    people = [f"{name}@example.test" for name in ("Ann", "ben", "cleo", "dan")]
    with using_mailer(mailer):
        receipt = await submit_email(people, "Hello", text="Hi", ref="order-7", stream="orders")
    await mailer.aclose()
    assert await answers(store) == {
        "ann": ("delivered", 250),
        "ben": ("refused", 550),
        "cleo": ("suppressed", None),
        "dan": ("failed", 451),
    }
    found = await store.find(ref="order-7", limit=10)
    assert {(row.id, row.ref, row.stream) for row in found} == {(receipt.message_id, "order-7", "orders")}
    assert await store.find(recipient=mail_hash("ANN@example.test", KEY), limit=10) == [
        row for row in found if row.outcome == "delivered"
    ]
    assert await store.find(message_id="<other@example.test>", limit=10) == []


async def test_what_nobody_receives_is_recorded(server: SmtpServer, store: JournalStore) -> None:
    def check(message: EmailMessageData) -> EmailMessageData | Cancel:
        return Cancel("not today") if message.subject == "cancelled" else message

    server.refuse("ann@example.test", 554)
    server.fault("BDAT", "disconnect")
    mailer = Mailer(EmailSettings(**settings(server, before_send=check, retries=0)))
    with using_mailer(mailer):
        with pytest.raises(RecipientsRefused):
            await submit_email("ann@example.test", "refused", text="Hi")
        await submit_email("ben@example.test", "cancelled", text="Hi")
        await submit_email("cleo@example.test", "perhaps", text="Hi", fail_silently=True)
        async with transaction() as session:
            await submit_email("dan@example.test", "held", text="Hi")
            await session.rollback()
    await mailer.aclose()
    assert await answers(store) == {
        "ann": ("refused", 554),
        "ben": ("cancelled", None),
        "cleo": ("uncertain", None),
        "dan": ("discarded", None),
    }


async def test_who_was_left_out_of_an_attempt_that_fails_is_suppressed(server: SmtpServer, store: JournalStore) -> None:
    def suppressed(addresses: list[str], _stream: str | None) -> list[str]:
        return ["cleo@example.test"]

    server.fault("MAIL", "451 4.3.0 later", nth=1)
    server.fault("MAIL", "554 5.7.1 no", nth=2)
    failed: list[MessageEvent] = []
    unsubscribe = subscribe(lambda event: failed.extend([event] * (event.kind in ("retrying", "failed"))))
    mailer = Mailer(EmailSettings(**settings(server, suppress=suppressed)))
    with using_mailer(mailer):
        async with transaction():
            await submit_email(["ann@example.test", "cleo@example.test"], "Hello", text="Hi")
    await mailer.aclose()
    unsubscribe()
    found = await store.find(limit=10)
    assert len(found) == 2, "the first attempt was no answer"
    assert await answers(store) == {"ann": ("refused", 554), "cleo": ("suppressed", None)}
    assert [(event.kind, event.message.envelope.recipients) for event in failed if event.message] == [
        ("retrying", ("ann@example.test",)),
        ("failed", ("ann@example.test",)),
    ]


async def test_redirected_mail_is_not_called_delivered(server: SmtpServer, store: JournalStore) -> None:
    staging = {"redirect_to": ["team@example.test"], "redirect_except": ["ben@example.test"]}
    mailer = Mailer(EmailSettings(**settings(server, **staging)))
    with using_mailer(mailer):
        await submit_email(["ann@example.test", "ben@example.test"], "Hello", text="Hi")
    await mailer.aclose()
    assert await answers(store) == {"ann": ("redirected", 250), "ben": ("delivered", 250)}


async def test_a_retry_is_no_answer_until_it_ends(server: SmtpServer, store: JournalStore) -> None:
    server.refuse("ann@example.test", 451, nth=1)
    mailer = Mailer(EmailSettings(**settings(server)))
    with using_mailer(mailer):
        async with transaction():
            await submit_email("ann@example.test", "Hello", text="Hi")
    await mailer.aclose()
    assert [row.outcome for row in await store.find(limit=10)] == ["delivered"]


async def test_a_relay_records_what_it_delivers(server: SmtpServer, store: JournalStore) -> None:
    engine = await db.engine()
    await create_outbox_tables(engine)
    with override(EMAIL=settings(server, outbox="database")):
        async with engine.begin() as connection:
            message = EmailMessageData(["ann@example.test"], "Hello", text="Hi", ref="order-7")
            await connection.run_sync(add, message)
        mailer = Mailer(EmailSettings.from_settings())
        await mailer.open()
        await mailer.start_relay()
        await server.arrive(1)
        await mailer.aclose()
    assert [(row.ref, row.outcome) for row in await store.find(limit=10)] == [("order-7", "delivered")]


async def test_a_missing_table_is_logged_once_and_delays_no_mail(
    server: SmtpServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What was recorded meanwhile is written when the table is there."""
    engine = await db.engine()
    mailer = Mailer(EmailSettings(**settings(server)))
    with using_mailer(mailer), caplog.at_level(logging.INFO, "openviper.email"):
        for _ in range(2):
            assert (await submit_email("ann@example.test", "Hello", text="Hi")).accepted
        await until(lambda: "answers are not written, mail is still sent" in caplog.text)
        await create_journal(engine)
        assert (await submit_email("ann@example.test", "Hello", text="Hi")).accepted
        await until(lambda: "answers are written again; 0 were lost" in caplog.text)
    await mailer.aclose()
    assert caplog.text.count("answers are not written") == 1
    assert "run `viperctl email journal create`" in caplog.text
    assert "ann@example.test" not in caplog.text
    assert len(await JournalStore(engine).find(limit=10)) == 3


async def test_answers_that_cannot_be_written_at_the_end_are_counted(
    server: SmtpServer, caplog: pytest.LogCaptureFixture
) -> None:
    mailer = Mailer(EmailSettings(**settings(server)))
    with using_mailer(mailer):
        await submit_email(["ann@example.test", "ben@example.test"], "Hello", text="Hi")
    await mailer.aclose()
    assert "2 answer(s) were not written, and are lost" in caplog.text


async def test_old_rows_are_deleted_in_steps(store: JournalStore) -> None:
    now = time.time()
    await store.insert([row(f"old{number}", "delivered", at=now - 100 - number) for number in range(7)])
    await store.insert([row("new", "delivered", at=now)])
    assert [await store.purge(60.0, most=5) for _ in range(3)] == [5, 2, 0]
    assert [found.entry for found in await store.find(limit=10)] == ["new"]


async def test_an_address_is_erased_with_its_answers_and_from_the_ref_of_others(store: JournalStore) -> None:
    own = row("own", "delivered", at=1.0)
    refs = {"named": "of An%n_1@Example.test, 7", "other": "of AnXn_1@example.test"}
    others = [
        row(name, "delivered", at=2.0)._replace(recipient=mail_hash("ben@example.test", KEY), ref=ref)
        for name, ref in refs.items()
    ]
    await store.insert([own, *others])
    assert await store.erase(own.recipient, "an%n_1@example.test") == 1
    found = await store.find(limit=10)
    assert {each.id: each.ref for each in found} == {
        "<named@example.test>": None,
        "<other@example.test>": "of AnXn_1@example.test",
    }


async def test_a_row_that_is_written_twice_is_there_once(store: JournalStore) -> None:
    same = row("one", "delivered", at=1.0)
    await store.insert([same])
    await store.insert([same, row("two", "failed", at=2.0)])
    assert [found.entry for found in await store.find(limit=10)] == ["one", "two"]
    assert [found.entry for found in await store.find(limit=1)] == ["two"]


async def test_health_shows_that_answers_are_not_written_until_they_are(server: SmtpServer) -> None:
    mailer = Mailer(EmailSettings(**settings(server)))
    with using_mailer(mailer):
        await submit_email("ann@example.test", "Hello", text="Hi", background=False)
        while (found := await HealthCheck().result(mailer)).status == "ok":
            await asyncio.sleep(0.05)
        assert (found.status, [problem.name for problem in found.problems]) == ("degraded", ["journal"])
        assert found.stats["journal"] == {"waiting": 1}
        await create_journal(await db.engine())
        while (found := await HealthCheck().result(mailer)).status != "ok":
            await asyncio.sleep(0.05)
        assert found.stats["journal"] == {"waiting": 0}
    await mailer.aclose()


async def test_the_table_is_created_once_and_joins_the_metadata_of_an_application() -> None:
    engine = await db.engine()
    assert await missing_columns(engine) == ["email_journal"]
    assert [await create_journal(engine), await create_journal(engine)] == [True, False]
    assert await missing_columns(engine) == []
    metadata = MetaData()
    assert db.journal_table(metadata) is db.journal_table(metadata)


async def test_the_check_says_what_the_journal_lacks_and_what_it_holds(server: SmtpServer) -> None:
    email = EmailSettings(**settings(server))

    async def check() -> str:
        (result,) = await check_journal(email, asyncio.get_running_loop().time() + PATIENCE)
        return str(result)

    assert "lacks email_journal: mail is still sent, but its answers are not recorded; run `viperctl" in await check()
    engine = await db.engine()
    await create_journal(engine)
    assert ": 0 answers, none yet; kept 30 days" in await check()
    await JournalStore(engine).insert([row("one", "delivered", at=time.time())])
    pool = engine.pool
    assert re.search(r"ok journal: .*: 1 answer, the newest \d+ s ago", await check())
    assert engine.pool is pool  # the application's connections are not closed by a check
    assert await check_journal(EmailSettings(), 0.0) == []


async def test_a_death_that_ends_a_message_of_the_relay_is_recorded(server: SmtpServer, store: JournalStore) -> None:
    """Its process died in the attempt, and ``on_uncertain`` holds what may have been sent."""
    engine = await db.engine()
    await create_outbox_tables(engine)
    with override(EMAIL=settings(server, outbox="database", on_uncertain="hold")):
        async with engine.begin() as connection:
            await connection.run_sync(add, EmailMessageData(["ann@example.test"], "Hello", text="Hi"))
            await connection.execute(update(outbox_table).values(lease=1.0, claim="a process that died"))
        mailer = Mailer(EmailSettings.from_settings())
        await mailer.open()
        await mailer.start_relay()
        async with asyncio.timeout(PATIENCE):
            while not (found := await store.find(limit=10)):
                await asyncio.sleep(0.02)
        await mailer.aclose()
    assert [each.outcome for each in found] == ["uncertain"]
    assert server.messages == []


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)
