"""From the shelf to the confirmation."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session
from support.shopping import Shop

from openviper.conf import override


@contextmanager
def failing_commits() -> Iterator[None]:
    """The database refuses every commit, after all inserts and hooks."""

    def refuse(session: Session) -> None:
        raise ConnectionResetError("the database went away")

    event.listen(Session, "before_commit", refuse)
    try:
        yield
    finally:
        event.remove(Session, "before_commit", refuse)


async def test_an_order_is_confirmed_by_one_mail(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await visitor.add("Field notebook", 2)
        await visitor.add("Brass fountain pen")
        answer = await visitor.check_out()
        assert answer.status_code == 303
        page = (await visitor.get(answer.headers["location"])).text
        assert "Thank you, <bdi>Ana Costa</bdi>" in page
        assert "€93.00" in page
    [mail] = shop.mail
    assert mail.envelope.recipients == ("ana@example.com",)
    assert str(mail.prepared.sender) == '"Viper Supplies" <orders@shop.example>'
    assert mail.prepared.subject == "Your order 1001 at Viper Supplies"
    link = f"https://shop.example{answer.headers['location']}"
    for body in (mail.prepared.text, mail.prepared.html):
        assert body is not None
        for expected in ("Ana Costa", "Field notebook", "€29.00", "€64.00", "€93.00", "1100-053 Lisboa", link):
            assert expected in body
    assert "<table>" in (mail.prepared.html or "")


async def test_the_cart_is_empty_after_the_order(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await visitor.add("Reading lamp")
        await visitor.check_out()
        assert "Your cart is empty" in (await visitor.get("/cart")).text


async def test_a_checkout_that_fails_after_the_insert_sends_nothing(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await visitor.add("Coiled viper paperweight")
        token = await visitor.form_token()
        with failing_commits():
            answer = await visitor.post(
                "/checkout", {"token": token, "name": "Ana", "email": "ana@example.com", "address": "Lisboa"}
            )
        assert answer.status_code == 500
        assert "Last one" in (await visitor.get("/")).text
        assert "No orders yet" in (await visitor.get("/staff")).text
    assert shop.mail == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_customer_sees_no_traceback(shop: Shop) -> None:
    with override(DEBUG=False):
        async with shop.visited() as visitor:
            with failing_commits():
                answer = await visitor.get("/")
    assert answer.status_code == 500
    assert "Something broke on our side. Nothing was ordered." in answer.text
    assert "the database went away" not in answer.text


async def test_two_checkouts_of_the_last_piece_make_one_order_and_one_mail(shop: Shop) -> None:
    async with shop.open() as visitor:
        people = [visitor(), visitor()]
        for person in people:
            await person.add("Coiled viper paperweight")
        answers = await asyncio.gather(
            people[0].check_out(email="ana@example.com"), people[1].check_out(email="bo@example.com")
        )
        assert sorted(answer.status_code for answer in answers) == [303, 409]
        loser = next(answer for answer in answers if answer.status_code == 409)
        assert "No longer in stock" in loser.text
        assert 'value="Ana Costa"' in loser.text
        assert "Sold out" in (await visitor().get("/")).text
    assert len(shop.mail) == 1


async def test_what_is_short_is_named_and_the_rest_stays_on_the_shelf(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await visitor.add("Brass fountain pen", 2)
        await visitor.add("Reading lamp", 4)
        assert "Only 3 left." in (await visitor.get("/cart")).text
        answer = await visitor.check_out()
        assert answer.status_code == 409
        assert re.search(r"Reading lamp:\s+only 3 left", answer.text)
        assert "6 left" in (await visitor.get("/")).text
    assert shop.mail == []


async def test_the_same_form_sent_twice_makes_one_order(shop: Shop) -> None:
    async with shop.open() as visitor:
        person = visitor()
        await person.add("Coiled viper paperweight")
        fields = {"token": await person.form_token(), "name": "Ana", "email": "ana@example.com", "address": "Lisboa"}
        first, second = await asyncio.gather(person.post("/checkout", fields), person.post("/checkout", fields))
        assert first.headers["location"] == second.headers["location"] == f"/orders/{fields['token']}"
    assert len(shop.mail) == 1


async def test_a_price_in_the_form_or_the_cart_changes_nothing(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await visitor.post("/cart", {"product": "8", "add": "1", "price": "0.01"})
        answer = await visitor.check_out(price="0.01", total="0.01")
        assert "€120.00" in (await visitor.get(answer.headers["location"])).text
    assert "€120.00" in (shop.mail[0].prepared.text or "")


async def test_an_empty_cart_cannot_be_checked_out(shop: Shop) -> None:
    async with shop.visited() as visitor:
        assert (await visitor.get("/checkout")).headers["location"] == "/cart"
        fields = {"token": "A" * 22, "name": "Ana", "email": "ana@example.com", "address": "Lisboa"}
        assert (await visitor.post("/checkout", fields)).headers["location"] == "/cart"
    assert shop.mail == []


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("name", " ", "Please enter your name."),
        ("name", "x" * 81, "Please shorten your name to 80 characters."),
        ("name", "Ana\r\nBcc: eve@example.net", "without control characters"),
        ("name", "Ana\0", "without control characters"),
        ("email", "", "Please enter your email address"),
        ("email", "ana", "This is not an email address."),
        ("email", "ana@example.com, eve@example.net", "This is not an email address."),
        ("email", "Ana <ana@example.com>", "Please enter the address alone"),
        ("email", "<ana@example.com>", "Please enter the address alone"),
        ("email", "ana@example.com\r\nBcc: eve@example.net", "This is not an email address."),
        ("address", "", "Please enter the address to ship to."),
        ("address", "Lisboa\x1b[2J", "without control characters"),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_fault_is_shown_beside_its_field_and_what_was_typed_stays(
    shop: Shop, field: str, value: str, fault: str
) -> None:
    async with shop.visited() as visitor:
        await visitor.add("Field notebook")
        answer = await visitor.check_out(**{field: value})
        assert answer.status_code == 422
        assert re.search(rf'id="{field}-fault">[^<]*{re.escape(fault)}', answer.text)
        assert f'aria-describedby="{field}-fault"' in answer.text
        kept = {"name": 'value="Ana Costa"', "email": 'value="ana@example.com"', "address": "1100-053 Lisboa"}
        del kept[field]
        assert [text for text in kept.values() if text not in answer.text] == []
    assert shop.mail == []


async def test_order_numbers_begin_at_1001_and_rise(shop: Shop) -> None:
    async with shop.visited() as visitor:
        for _ in range(2):
            await visitor.add("Field notebook")
            await visitor.check_out()
    assert sorted(mail.prepared.subject for mail in shop.mail) == [
        "Your order 1001 at Viper Supplies",
        "Your order 1002 at Viper Supplies",
    ]


async def test_the_shelf_is_filled_once(shop: Shop) -> None:
    """A second start finds the first one's stock."""
    async with shop.visited() as visitor:
        await visitor.add("Coiled viper paperweight")
        await visitor.check_out()
    async with shop.visited() as visitor:
        page = (await visitor.get("/")).text
        assert page.count('<li class="product') == 8
        assert "Sold out" in page


async def test_three_times_9_80_is_29_40(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await visitor.add("Lined envelopes", 3)
        assert "€29.40" in (await visitor.get("/cart")).text


async def test_previews_show_the_mails_without_an_order(shop: Shop) -> None:
    async with shop.visited() as visitor:
        shelf = (await visitor.get("/_mail/templates")).text
        confirmation = (await visitor.get("/_mail/previews/example_shop.shop.mails.order_confirmation")).text
        notice = (await visitor.get("/_mail/previews/example_shop.shop.mails.order_shipped?value-lines=3")).text
    assert "example_shop.shop.mails.order_shipped" in shelf
    assert "<h1>Your order 1042 at Viper Supplies</h1>" in confirmation
    assert "invoice-1042.html" in notice
    assert shop.mail == []
