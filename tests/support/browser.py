"""Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Page, ViewportSize, async_playwright, expect

from support.patience import PATIENCE

__all__ = [
    "CHROMIUM",
    "DESKTOP",
    "PHONE",
    "VIEWPORTS",
    "chromium",
    "needs_chromium",
    "opened_chromium",
    "opened_context",
    "serious_violations",
]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
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

_MILLISECONDS = PATIENCE * 1000
expect.set_options(timeout=_MILLISECONDS)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@asynccontextmanager
async def opened_chromium() -> AsyncIterator[Browser]:
    """A browser, closed at the end of the block."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS, timeout=_MILLISECONDS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def opened_context(browser: Browser, **options: Any) -> AsyncIterator[BrowserContext]:
    """Open a context, by ``Browser.new_context``'s options, whose actions wait as long as a slow machine needs."""
    async with await browser.new_context(**options) as context:
        context.set_default_timeout(_MILLISECONDS)
        yield context


async def serious_violations(page: Page, **options: Any) -> list[str]:
    """Return axe's serious and critical violations on the open page, each with its first element.

    ``options`` are axe's own. The context needs ``bypass_csp`` where the page's policy forbids scripts from elsewhere.
    """
    # Describing every element that passes takes twice as long as all else.
    results = await Axe().run(page, options={"resultTypes": ["violations"], **options})
    return [
        f"{violation['id']} ({violation['impact']}): {violation['nodes'][0]['html']}"
        for violation in results.response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.fixture(scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """One browser for the tests of a module; each opens a context of its own."""
    async with opened_chromium() as browser:
        yield browser
