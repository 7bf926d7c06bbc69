"""Files uploaded to a real server of each framework, and mailed after the response has ended and closed them."""

import random
from pathlib import Path

import httpx
import pytest
from support.patience import PATIENCE
from support.smtpd import SmtpServer
from support.uvicorn import Hypercorn, Uvicorn

APPS = Path(__file__).parents[3] / "apps"
SMALL = bytes(range(256))
LARGE = random.Random(2).randbytes(3_000_000)


def environment(smtp: SmtpServer) -> dict[str, str]:
    email = {"HOST": smtp.host, "PORT": smtp.port, "DEFAULT_SENDER": "shop@example.test", "TIMEOUT": 2 * PATIENCE}
    return {f"EMAIL_{name}": str(value) for name, value in email.items()}


@pytest.mark.parametrize(
    ("server", "app"),
    [
        (Uvicorn, "uploads_app:on_starlette"),
        (Uvicorn, "uploads_app:on_fastapi"),
        (Uvicorn, "uploads_app:on_litestar"),
        (Hypercorn, "uploads_app:quart_app"),
    ],
)
def test_an_upload_is_mailed_byte_for_byte(server: type[Uvicorn], app: str) -> None:
    with SmtpServer() as smtp, server(app, APPS, environment(smtp)) as running:
        greeting = smtp.hold("greeting")
        for content in (SMALL, LARGE):
            files = {"file": ("Jahresübersicht.pdf", content, "application/x-other")}
            answer = httpx.post(f"{running.url}/upload", files=files, timeout=PATIENCE)
            assert (answer.status_code, answer.json()) == (200, {"mode": "deferred"})
        assert smtp.messages == [], "both responses have ended before the mail server says a word"
        greeting.release()
        smtp.wait_for(2)
        parts = [part for message in smtp.messages for part in message.parse().iter_attachments()]
        assert sorted(len(part.get_content()) for part in parts) == [len(SMALL), len(LARGE)]
        assert {part.get_content() for part in parts} == {SMALL, LARGE}
        assert {(part.get_filename(), part.get_content_type()) for part in parts} == {
            ("Jahresübersicht.pdf", "application/pdf")
        }
