import os
import re
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import sync_playwright

PORT = os.environ.get("PORT", "8123")
SHOP = f"http://127.0.0.1:{PORT}"


@pytest.fixture
def shop() -> Iterator[str]:
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", PORT]
    server = subprocess.Popen(command)
    try:
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(transport=transport) as client:
            client.get(f"{SHOP}/docs")
        yield SHOP
    finally:
        server.terminate()
        server.wait()


def test_a_visitor_confirms_the_address(shop: str) -> None:
    person = {"name": "Alice", "email": "alice@example.com"}
    httpx.post(f"{shop}/sign-up", json=person)
    mail = httpx.get(
        f"{shop}/_mail/api/messages/wait",
        params={"to": "alice@example.com", "timeout": 10},
        timeout=15,
    ).json()
    link = re.search(r"https://shop.example/confirm/[\w-]+", mail["text"])
    assert link is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM"),
            args=os.environ.get("CHROMIUM_ARGUMENTS", "").split(),
        )
        page = browser.new_page()
        page.goto(link[0].replace("https://shop.example", shop))
        assert "is confirmed" in page.content()
        browser.close()
