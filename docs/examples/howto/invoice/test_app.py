from app import app
from fastapi.testclient import TestClient
from openviper.testing import Mailbox


def test_the_invoice_is_attached(mailbox: Mailbox) -> None:
    with TestClient(app) as client:
        order = {"email": "alice@example.com"}
        number = client.post("/orders", json=order).json()["number"]
    message = mailbox.assert_sent(attachment=f"invoice-{number}.pdf")
    assert message.mode == "deferred"  # sent after commit and response
    (invoice,) = message.attachments
    assert invoice.mimetype == "application/pdf"
    assert invoice.content.startswith(b"%PDF")
