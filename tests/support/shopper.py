"""People in a browser of their own who order in the example shop, and the one who ships it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, Page, expect

from support.browser import opened_context

__all__ = ["place_order", "ship_order"]


async def place_order(browser: Browser, shop: str, product: str, *, email: str, name: str = "Ana Costa") -> None:
    """Order one ``product`` in the shop at the address ``shop``, from the shelf to the page that says thank you."""
    async with _visiting(browser, shop) as page:
        await page.get_by_role("button", name=f"Add to cart {product}").click()
        await page.get_by_role("link", name="Check out").click()
        await page.get_by_label("Name").fill(name)
        await page.get_by_label("Email").fill(email)
        await page.get_by_label("Address").fill("Rua Augusta 12\n1100-053 Lisboa")
        await page.get_by_role("button", name="Place the order").click()
        await expect(page.get_by_role("heading", name="Thank you")).to_be_visible()


async def ship_order(browser: Browser, shop: str, number: int) -> None:
    """Ship the order with this number, on the staff page."""
    async with _visiting(browser, f"{shop}/staff") as page:
        await page.get_by_role("button", name=f"Ship order {number}").click()
        await expect(page.get_by_text("Shipped")).to_be_visible()


@asynccontextmanager
async def _visiting(browser: Browser, address: str) -> AsyncIterator[Page]:
    async with opened_context(browser) as context:
        page = await context.new_page()
        await page.goto(address)
        yield page
