import httpx
import pytest
from openviper.testing import Mailbox

pytestmark = pytest.mark.anyio


async def sign_up(
    client: httpx.AsyncClient, mailbox: Mailbox, email: str
) -> None:
    await client.post("/signup", json={"email": email})
    (link,) = mailbox.assert_sent(
        to=email, subject="Confirm your address"
    ).links()
    assert (await client.get(link)).status_code == 200


async def test_a_customer_confirms_the_address(
    client: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    await sign_up(client, mailbox, "alice@example.com")


async def test_a_wrong_address_is_named(
    client: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    answer = await client.post(
        "/signup", json={"email": "alice at example.com"}
    )
    assert answer.status_code == 422
    mailbox.assert_not_sent()


async def test_an_order_is_confirmed_after_the_commit(
    client: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    await client.post("/orders", json={"email": "alice@example.com"})
    mailbox.assert_sent(
        to="alice@example.com", subject="Order 1", mode="deferred", count=1
    )
    await client.post(
        "/orders", json={"email": "bob@example.com", "quantity": 101}
    )
    mailbox.assert_not_sent(to="bob@example.com")


async def test_with_a_broker_it_is_queued(
    queue: None, client: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    await client.post("/orders", json={"email": "alice@example.com"})
    mailbox.assert_sent(subject="Order 1", mode="queued")


async def test_an_upload_is_attached(
    client: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    files = {"invoice": ("invoice.pdf", b"%PDF-1.7 ...", "application/pdf")}
    await client.post(
        "/orders/1/invoice", data={"email": "alice@example.com"}, files=files
    )
    mailbox.assert_sent(attachment="invoice.pdf")


async def test_an_upload_that_is_too_large_is_refused(
    client: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    files = {
        "invoice": ("invoice.pdf", bytes(26 * 1024 * 1024), "application/pdf")
    }
    answer = await client.post(
        "/orders/1/invoice", data={"email": "alice@example.com"}, files=files
    )
    assert answer.status_code == 413
    mailbox.assert_not_sent()


async def test_the_newsletter_goes_to_confirmed_customers(
    queue: None, client: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    await sign_up(client, mailbox, "alice@example.com")
    await client.post("/signup", json={"email": "bob@example.com"})
    assert (await client.post("/newsletter")).json() == {
        "queued": 1,
        "failed": 0,
    }
    mailbox.assert_sent(
        subject="News", recipients=["alice@example.com"], mode="queued", count=1
    )


async def test_without_a_broker_the_newsletter_is_refused(
    client: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    assert (await client.post("/newsletter")).status_code == 503


async def test_staging_mails_no_customer(
    staging: None, client: httpx.AsyncClient, mailbox: Mailbox
) -> None:
    await client.post("/orders", json={"email": "alice@example.com"})
    copy = mailbox.assert_sent(recipients=["team@shop.example"], count=1)
    assert copy.headers["X-Original-Recipients"] == "alice@example.com"
