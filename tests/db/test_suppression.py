"""The table of suppressed addresses, on SQLite and PostgreSQL, and as ``EMAIL["suppress"]``."""

import asyncio

import pytest
from sqlalchemy import MetaData
from support.smtpd import SmtpServer

from openviper import db
from openviper.conf import override
from openviper.core.email import submit_email
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.settings import EmailSettings
from openviper.db.suppression import hash_suppression, list_suppressions

pytestmark = pytest.mark.usefixtures("database")


async def test_an_address_is_suppressed_for_a_stream_or_for_all() -> None:
    await db.create_suppression_table()
    await db.create_suppression_table()  # again, as a start-up does
    await db.add_suppression("Ann@Example.test", "hard bounce")
    await db.add_suppression("ben@example.test", "opted out", stream="news")
    everybody = ["ann@example.test", "BEN@example.test", "cleo@example.test"]
    assert await db.find_suppressed(everybody, None) == {"ann@example.test": None}
    assert await db.find_suppressed(everybody, "news") == {"ann@example.test": None, "ben@example.test": "news"}
    assert await db.find_suppressed(everybody, "orders") == {"ann@example.test": None}
    await db.add_suppression("ann@example.test", "opted out", stream="news")
    assert await db.find_suppressed(everybody[:1], "news") == {"ann@example.test": "news"}


async def test_a_second_suppression_replaces_the_reason_and_one_removal_ends_it() -> None:
    await db.create_suppression_table()
    await db.add_suppression("ann@example.test", "soft bounce")
    await db.add_suppression("ANN@example.test", "hard bounce")
    assert [(row.address, row.reason, row.stream) for row in await list_suppressions()] == [
        ("ann@example.test", "hard bounce", None)
    ]
    assert not await db.remove_suppression("ann@example.test", stream="news")
    assert await db.remove_suppression("Ann@example.test")
    assert not await db.remove_suppression("ann@example.test")
    assert await list_suppressions() == []


async def test_a_domain_in_unicode_is_its_ascii_form() -> None:
    await db.create_suppression_table()
    await db.add_suppression("ann@München.example", "bounce")
    await db.add_suppression("ben@xn--mnchen-3ya.example", "bounce")
    for domain in ("münchen.example", "xn--mnchen-3ya.example"):
        found = await db.find_suppressed([f"ann@{domain}", f"ben@{domain}"], None)
        assert found == {"ann@xn--mnchen-3ya.example": None, "ben@xn--mnchen-3ya.example": None}
    assert await db.remove_suppression("ann@münchen.example")
    assert await db.remove_suppression("ben@münchen.example")
    assert await list_suppressions() == []


@pytest.mark.parametrize("address", ["Ann <ann@example.test>", "example.test", ""])
async def test_what_would_never_be_found_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"^add_suppression\(\): .* without a name$"):
        await db.add_suppression(address, "bounce")


async def test_many_addresses_are_asked_for_at_once() -> None:
    await db.create_suppression_table()
    await db.add_suppression("u1999@example.test", "bounce")
    found = await db.find_suppressed([f"u{number}@example.test" for number in range(2000)], None)
    assert found == {"u1999@example.test": None}


async def test_the_table_joins_the_metadata_of_an_application_once() -> None:
    metadata = MetaData()
    assert db.suppression_table(metadata) is db.suppression_table(metadata)
    assert list(metadata.tables) == ["email_suppression"]


async def test_the_setting_takes_the_table() -> None:
    await db.create_suppression_table()
    await db.add_suppression("ann@example.test", "bounce")
    with SmtpServer() as server:
        settings = server.settings(default_sender="shop@example.test", suppress="openviper.db.find_suppressed")
        mailer = Mailer(EmailSettings(**settings))
        with using_mailer(mailer):
            receipt = await submit_email(["Ann@example.test", "ben@example.test"], "Hello", text="Hi")
        await mailer.aclose()
    assert receipt.suppressed == ("Ann@example.test",)
    assert receipt.accepted == ("ben@example.test",)


async def test_reports_that_come_at_once_are_one_suppression() -> None:
    await db.create_suppression_table()
    await asyncio.gather(*(db.add_suppression("ann@example.test", f"bounce {number}") for number in range(5)))
    assert len(await list_suppressions()) == 1


async def test_an_erased_address_stays_suppressed_by_its_keyed_hash() -> None:
    await db.create_suppression_table()
    await db.add_suppression("ann@example.test", "ann@example.test bounced")
    await db.add_suppression("ann@example.test", "opted out", stream="news")
    with pytest.raises(ValueError, match="only with a key"):
        await hash_suppression("Ann@example.test")
    with override(EMAIL={"journal_key": "a key that is long enough for this"}):
        assert await hash_suppression("Ann@example.test") == 2
        assert await hash_suppression("Ann@example.test") == 0
        assert "ann" not in repr(await list_suppressions())
        assert await db.find_suppressed(["Ann@example.test", "ben@example.test"], None) == {"ann@example.test": None}
        assert await db.find_suppressed(["ann@example.test"], "news") == {"ann@example.test": "news"}
        assert await db.remove_suppression("ann@example.test")
        assert await db.find_suppressed(["ann@example.test"], None) == {}
    assert await db.find_suppressed(["ann@example.test"], "news") == {}
