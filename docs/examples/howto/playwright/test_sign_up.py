import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from openviper.testing import Inbox
from playwright.sync_api import sync_playwright


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", port]
    server = subprocess.Popen(command)
    try:
        while not answers(f"{url}/docs"):
            assert server.poll() is None, "the server ended: see its output"
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=60).is_success
    except httpx.ConnectError:
        return False


def test_a_visitor_confirms_the_address(base_url: str, inbox: Inbox) -> None:
    address = inbox.new_address("alice")
    person = {"name": "Alice", "email": address}
    httpx.post(f"{base_url}/sign-up", json=person).raise_for_status()
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
