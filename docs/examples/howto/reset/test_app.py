from app import app, resets
from fastapi.testclient import TestClient
from openviper.testing import Mailbox


def test_a_user_gets_a_link(mailbox: Mailbox) -> None:
    with TestClient(app) as client:
        user = {"email": "alice@example.com"}
        stranger = {"email": "eve@example.com"}
        known = client.post("/password/forgotten", json=user)
        unknown = client.post("/password/forgotten", json=stranger)
    assert known.json() == unknown.json()
    message = mailbox.assert_sent(count=1, to="alice@example.com")
    assert message.mode == "deferred"  # so the answer did not wait for it
    assert message.sensitive
    (link,) = mailbox.links()
    assert link.rpartition("/")[2] not in resets  # only its hash is kept
