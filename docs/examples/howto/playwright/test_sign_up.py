import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from openviper.testing import Inbox
from playwright.sync_api import sync_playwright

PORT = os.environ.get("PORT", "8123")


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    url = f"http://127.0.0.1:{PORT}"
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", PORT]
    server = subprocess.Popen(command)
    try:
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(transport=transport) as client:
            client.get(f"{url}/docs")
        yield url
    finally:
        server.terminate()
        server.wait()


def test_a_visitor_confirms_the_address(base_url: str, inbox: Inbox) -> None:
    address = inbox.new_address("alice")
    person = {"name": "Alice", "email": address}
    httpx.post(f"{base_url}/sign-up", json=person)
    link = inbox.wait(to=address).link("confirm your address")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM"),
            args=os.environ.get("CHROMIUM_ARGUMENTS", "").split(),
        )
        page = browser.new_page()
        page.goto(link.replace("https://shop.example", base_url))
        assert f"{address} is confirmed" in page.content()
        browser.close()
