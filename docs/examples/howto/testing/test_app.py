from fastapi import FastAPI
from fastapi.testclient import TestClient
from openviper.core.email import Email, send_email
from openviper.testing import Mailbox

app = FastAPI()
Email({"default_sender": "orders@shop.example"}).attach(app)


@app.post("/orders")
async def order() -> dict[str, bool]:
    return {"ok": await send_email("alice@example.com", "Your order", text="!")}


def test_an_order_is_confirmed(mailbox: Mailbox) -> None:
    with TestClient(app) as client:  # "with" starts the application
        client.post("/orders")
    mailbox.assert_sent(to="alice@example.com", subject="Your order", count=1)


def test_an_order_is_taken_if_the_address_is_refused(mailbox: Mailbox) -> None:
    refused = mailbox.fail_with("550 no such user", at="rcpt")
    with TestClient(app) as client, refused:
        assert client.post("/orders").json() == {"ok": True}
    mailbox.assert_not_sent()
    ((message, reason),) = mailbox.failed
    assert message.subject == "Your order"
    assert "550 no such user" in str(reason)
