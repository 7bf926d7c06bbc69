"""Place orders in the running example shop and take the docs' screenshots; run by ``./scripts/screenshots``."""

import asyncio
import base64
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.async_api import Page, ViewportSize, expect
from support.browser import PHONE, opened_chromium
from support.commands import Cli
from support.shopper import place_order, ship_order
from support.smtpd import SmtpServer

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
VIEWPORTS = (PHONE, ViewportSize(width=1280, height=715))
ORDERS = [
    ("Ana Costa", "ana@example.com", "Field notebook"),
    ("Jonas Berg", "jonas@example.org", "Reading lamp"),
    ("Mira Okafor", "mira@example.net", "Iron gall ink"),
    ("Tom Reed", "tom@example.com", "Laid writing paper"),
]


@contextmanager
def open_shop() -> Iterator[str]:
    """Yield the URL of a shop with a new database, whose mail server refuses two customers, one of them temporarily."""
    with tempfile.TemporaryDirectory() as folder, SmtpServer() as server:
        server.refuse("jonas@example.org", 550)
        server.refuse("tom@example.com", 451)
        email = {"EMAIL_BACKEND": "SMTPBackend", "EMAIL_HOST": server.host, "EMAIL_PORT": str(server.port)}
        os.environ.update(email, DATABASE_URL=f"sqlite:///{folder}/shop.sqlite3", TZ="UTC")
        with Cli(ROOT).serve("example_shop", "--port", "0") as served:
            yield served.address.rstrip("/")


async def take_pictures(shop: str) -> None:
    """Place all orders, ship the first, then take screenshots of all pages at all widths."""
    async with opened_chromium() as browser:
        for name, address, product in ORDERS:
            await place_order(browser, shop, product, email=address, name=name)
        await ship_order(browser, shop, 1001)
        for viewport in VIEWPORTS:
            page = await browser.new_page(viewport=viewport, device_scale_factor=2)
            await look_around(page, shop)


async def look_around(page: Page, shop: str) -> None:
    heading_of_the_mail = page.frame_locator("iframe").get_by_role("heading").first
    await page.goto(shop)
    await take(page, "shop")
    await page.get_by_role("link", name="Mail it sent").click()
    await expect(page.get_by_text("retrying")).to_be_visible()
    await take(page, "inbox", below="#list")
    await page.get_by_role("link", name="on its way").click()
    await expect(heading_of_the_mail).to_be_visible()
    await take(page, "message")
    await page.get_by_role("link", name="Templates", exact=True).click()
    await page.get_by_role("link", name="emails/order_shipped").click()
    await expect(heading_of_the_mail).to_be_visible()
    await take(page, "preview")
    await page.get_by_role("link", name="All templates").click()
    await page.get_by_role("link", name="order_confirmation").first.click()
    await page.get_by_role("link", name="many lines").click()
    await expect(heading_of_the_mail).to_be_visible()
    await take(page, "code-preview")


async def take(page: Page, name: str, *, below: str | None = None) -> None:
    """Take a screenshot of the viewport, or of its part that ends just below the element ``below``."""
    await page.wait_for_timeout(300)  # a frame with a loaded document may not be painted yet
    assert page.viewport_size is not None
    area = {"x": 0, "y": 0, "scale": 1, **page.viewport_size}
    if below is not None:
        box = await page.locator(below).bounding_box()
        assert box is not None
        area["height"] = box["y"] + box["height"] + 24
    # Playwright cannot write WebP, which is a third of PNG's size.
    session = await page.context.new_cdp_session(page)
    picture = await session.send("Page.captureScreenshot", {"format": "webp", "quality": 80, "clip": area})
    file = IMAGES / f"{name}-{page.viewport_size['width']}.webp"
    await asyncio.to_thread(file.write_bytes, base64.b64decode(picture["data"]))


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    with open_shop() as address:
        asyncio.run(take_pictures(address))
