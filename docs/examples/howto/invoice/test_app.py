from app import app
from fastapi.testclient import TestClient
from openviper.testing import Mailbox


def test_the_invoice_is_attached(mailbox: Mailbox) -> None:
    with TestClient(app) as client:
        client.post("/orders/7/pay")
    message = mailbox.assert_sent(attachment="invoice-7.pdf")
    (invoice,) = message.attachments
    assert invoice.mimetype == "application/pdf"
    assert invoice.content.startswith(b"%PDF")
