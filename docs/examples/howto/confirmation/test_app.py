from urllib.parse import urlsplit

from app import app, confirmed
from fastapi.testclient import TestClient
from openviper.testing import Mailbox


def test_the_link_in_the_mail_confirms_the_address(mailbox: Mailbox) -> None:
    with TestClient(app) as client:
        person = {"name": "Alice", "email": "alice@example.com"}
        client.post("/sign-up", json=person)
        mailbox.assert_sent(
            to="alice@example.com", subject="Confirm your address"
        )
        (link,) = mailbox.links()
        assert link.startswith("https://shop.example/confirm/")
        assert client.get(urlsplit(link).path).status_code == 200
        assert client.get(urlsplit(link).path).status_code == 404
    assert "alice@example.com" in confirmed


def test_a_wrong_address_is_told(mailbox: Mailbox) -> None:
    with TestClient(app) as client:
        person = {"name": "Alice", "email": "alice at example.com"}
        answer = client.post("/sign-up", json=person)
    assert answer.status_code == 422
    assert answer.json()["detail"] == "the address has no '@'"
    mailbox.assert_not_sent()
