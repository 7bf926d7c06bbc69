from app import app
from fastapi.testclient import TestClient
from openviper.testing import Mailbox

QUESTION = {"email": "alice@example.com", "question": "Why?"}


def test_an_upload_is_attached(mailbox: Mailbox) -> None:
    with TestClient(app) as client:
        file = ("photo.jpg", b"\xff\xd8", "image/jpeg")
        client.post("/support", data=QUESTION, files={"file": file})
    message = mailbox.assert_sent(attachment="photo.jpg")
    assert message.reply_to == ("alice@example.com",)


def test_a_large_upload_is_refused(mailbox: Mailbox) -> None:
    with TestClient(app) as client:
        file = ("film.mp4", b"x" * (5 * 1024 * 1024 + 1), "video/mp4")
        answer = client.post("/support", data=QUESTION, files={"file": file})
    assert answer.status_code == 413
    assert "film.mp4" in answer.json()["detail"]
    mailbox.assert_not_sent()
