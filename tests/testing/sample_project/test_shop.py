import asyncio
import unittest

import httpx
import pytest
import shop
from asgi_lifespan import LifespanManager

from openviper import OpenViper
from openviper.conf import override
from openviper.core.email import Email, RecipientsRefused, send_email
from openviper.db import dispose, transaction
from openviper.testing import capture_mail


async def order(email, number):
    # An application is started once: each test has its own.
    app = OpenViper(title="Shop", routes=shop.app.routes)
    app.add_extension(Email())
    async with LifespanManager(app) as started:
        transport = httpx.ASGITransport(started.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await client.post("/orders", json={"email": email, "number": number})


@pytest.mark.parametrize("number", range(20))
async def test_a_customer_gets_the_mail_of_the_own_order_only(mailbox, number):
    await order(f"c{number}@example.com", number)
    message = mailbox.assert_sent(to=f"c{number}@example.com", subject=f"Your order {number}", mode="queued")
    assert mailbox.messages == [message]
    assert mailbox.links() == [f"https://shop.example/orders/{number}"]


async def test_without_a_broker_it_is_deferred(mailbox):
    with override(TASKS={}):
        await order("alice@example.com", 7)
    mailbox.assert_sent(to="alice@example.com", mode="deferred")


async def test_mail_of_a_transaction_that_is_rolled_back_can_be_looked_at(mailbox):
    class RollBack(Exception):
        pass

    with pytest.raises(RollBack):  # noqa: PT012 - what raises is a whole transaction
        async with transaction():
            await shop.ship("alice@example.com")
            mailbox.assert_not_sent()
            assert [message.subject for message in mailbox.held] == ["On its way"]
            await mailbox.commit_held()
            mailbox.assert_sent(subject="On its way", text_contains="has left")
            await send_email("bob@example.com", "Never", text="Rolled back")
            raise RollBack
    mailbox.assert_not_sent(to="bob@example.com")
    await dispose()


async def test_a_refusal_reaches_the_application(mailbox):
    with mailbox.fail_with("550 no such user", at="rcpt"), pytest.raises(RecipientsRefused):
        await send_email("gone@example.com", "Hi", text="Hello", background=False)


class WithUnittest(unittest.TestCase):
    def test_the_context_manager_does_the_same(self):
        with capture_mail() as mailbox:
            asyncio.run(order("alice@example.com", 7))
        mailbox.assert_sent(to="alice@example.com", count=1)
