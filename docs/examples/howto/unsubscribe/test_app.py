import os
from pathlib import Path

from fastapi.testclient import TestClient
from openviper.conf import override
from openviper.testing import Mailbox

os.environ["UNSUBSCRIBE_KEY"] = "a key of the tests, long enough for one"

from app import app


def test_one_click_stops_the_newsletter(
    mailbox: Mailbox, tmp_path: Path
) -> None:
    database = override(DATABASE_URL=f"sqlite:///{tmp_path}/shop.db")
    with database, TestClient(app) as client:
        assert client.post("/newsletter").json() == {"sent": 2}
        message = mailbox.assert_sent(to="alice@example.com")
        link = message.headers["List-Unsubscribe"].strip("<>")
        assert f'<a href="{link}">' in (message.html or "")

        assert "Unsubscribe" in client.get(link).text  # changes nothing
        assert client.post("/newsletter").json() == {"sent": 2}

        form = {"List-Unsubscribe": "One-Click"}
        assert client.post(link, data=form).status_code == 200
        assert client.post("/newsletter").json() == {"sent": 1}
