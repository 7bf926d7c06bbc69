"""Shipping, and who may do it."""

import asyncio
import base64
from datetime import date

import pytest
from support.shopping import Shop, Visitor

from example_shop.shop.models import Order
from openviper.conf import override
from openviper.db import transaction


async def ordered(visitor: Visitor, **details: str) -> str:
    """Order one notebook; returns the path of the order page."""
    await visitor.add("Field notebook")
    location: str = (await visitor.check_out(**details)).headers["location"]
    return location


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"staff:{password}".encode()).decode()}


async def test_shipping_tells_the_customer_once_with_the_invoice(shop: Shop) -> None:
    async with shop.visited() as visitor:
        order = await ordered(visitor)
        for _ in range(2):
            assert (await visitor.post("/staff/orders/1/ship")).headers["location"] == "/staff"
        assert "Shipped" in (await visitor.get("/staff")).text
        assert "Order 1001 was shipped on" in (await visitor.get(order)).text
    [notice] = [mail for mail in shop.mail if "on its way" in mail.prepared.subject]
    assert notice.envelope.recipients == ("ana@example.com",)
    assert notice.prepared.subject == "Your order 1001 is on its way"
    assert "Total: €14.50" in (notice.prepared.text or "")
    assert f'href="https://shop.example{order}"' in (notice.prepared.html or "")
    [logo, invoice] = notice.prepared.attachments
    assert (logo.inline, logo.mimetype) == (True, "image/png")
    assert f'src="cid:{logo.content_id}"' in (notice.prepared.html or "")
    assert (invoice.filename, invoice.mimetype) == ("invoice-1001.html", "text/html")
    assert "€14.50" in invoice.content.decode()
    assert "Ana Costa" in invoice.content.decode()


async def test_two_people_who_ship_at_once_send_one_notice(shop: Shop) -> None:
    async with shop.open() as visitor:
        await ordered(visitor())
        answers = await asyncio.gather(*(visitor().post("/staff/orders/1/ship") for _ in range(4)))
        assert {answer.status_code for answer in answers} == {303}
    assert sum("on its way" in mail.prepared.subject for mail in shop.mail) == 1


async def test_an_order_that_was_shipped_keeps_its_date(shop: Shop) -> None:
    async with shop.visited() as visitor:
        page = await ordered(visitor)
        async with transaction() as session:
            (await session.get_one(Order, 1)).shipped_on = date(2024, 2, 29)
        await visitor.post("/staff/orders/1/ship")
        assert "Order 1001 was shipped on 29 February 2024." in (await visitor.get(page)).text


async def test_correcting_an_order_sends_nothing(shop: Shop) -> None:
    async with shop.visited() as visitor:
        await ordered(visitor)
        async with transaction() as session:
            (await session.get_one(Order, 1)).address = "Porto"
    assert [mail.prepared.subject for mail in shop.mail] == ["Your order 1001 at Viper Supplies"]


async def test_an_order_that_does_not_exist_cannot_be_shipped(shop: Shop) -> None:
    async with shop.visited() as visitor:
        assert (await visitor.post("/staff/orders/7/ship")).status_code == 404


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_staff_page_is_closed_to_other_machines_without_a_password(shop: Shop) -> None:
    async with shop.open(host="203.0.113.9") as visitor:
        assert (await visitor().get("/staff")).status_code == 403
        assert (await visitor().post("/staff/orders/1/ship")).status_code == 403


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_foreign_host_name_does_not_open_the_staff_page(shop: Shop) -> None:
    """A page that points its own name at 127.0.0.1 is not on this machine."""
    async with shop.visited() as visitor:
        assert (await visitor.client.get("/staff", headers={"Host": "evil.example"})).status_code == 403


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_password_opens_the_staff_page_outside_debug_mode(shop: Shop) -> None:
    with override(DEBUG=False, SHOP_STAFF_PASSWORD="päss:word"):
        async with shop.visited() as visitor:
            asked = await visitor.get("/staff")
            assert asked.status_code == 401
            assert asked.headers["www-authenticate"].startswith("Basic ")
            for wrong in (
                basic(""),
                basic("päss"),
                {"Authorization": "Basic !"},
                {"Authorization": "Bearer päss:word"},
            ):
                encoded = {name.encode(): value.encode() for name, value in wrong.items()}
                assert (await visitor.client.get("/staff", headers=encoded)).status_code == 401
            assert (await visitor.client.get("/staff", headers=basic("päss:word"))).status_code == 200
            assert (await visitor.post("/staff/orders/1/ship")).status_code == 401
