"""Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, ViewportSize, async_playwright, expect

__all__ = ["DESKTOP", "PHONE", "VIEWPORTS", "chromium", "needs_chromium", "opened_chromium"]

_PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
# Nothing but what the test asks for: no sandbox (containers run as root), no services that call home.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE, DESKTOP = ViewportSize(width=390, height=844), ViewportSize(width=1280, height=900)
VIEWPORTS = [pytest.param(PHONE, id="phone"), pytest.param(DESKTOP, id="desktop")]

expect.set_options(timeout=20_000)  # milliseconds; several browsers may share the machine

needs_chromium = pytest.mark.skipif(_PROGRAM is None, reason="chromium is not installed")


@asynccontextmanager
async def opened_chromium() -> AsyncIterator[Browser]:
    """A browser, closed at the end of the block."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=_PROGRAM, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """One browser for the tests of a module; each opens a context of its own."""
    async with opened_chromium() as browser:
        yield browser
