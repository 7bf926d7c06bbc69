"""The shop in a real browser: order, then read the mail on the inbox page, or with the end-to-end kit."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, Request, ViewportSize
from support.browser import PHONE, VIEWPORTS, chromium, needs_chromium, opened_context
from support.commands import Cli
from support.patience import PATIENCE

from openviper.testing import AsyncInbox

__all__ = ["chromium"]

PROJECT = Path(__file__).parents[2] / "example_shop"

pytestmark = needs_chromium


@pytest.fixture
def shop_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where ``viperctl runserver`` serves the shop, with its own settings and a new database."""
    for name in ("DEBUG", "SHOP_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'shop.sqlite3'}")
    with Cli(PROJECT.parent).serve(PROJECT.name, "--port", "0") as served:
        yield served.address.rstrip("/")


@pytest.mark.parametrize("rounds", [1, pytest.param(25, marks=pytest.mark.long)])
async def test_eight_people_order_at_once_and_each_opens_the_link_in_the_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chromium: Browser, rounds: int
) -> None:
    """With --long two hundred visits, of which none may fail."""
    for number in range(rounds):
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / f'{number}.sqlite3'}")
        with Cli(PROJECT.parent).serve(PROJECT.name, "--port", "0") as served:
            async with AsyncInbox(served.address, timeout=PATIENCE) as inbox:
                visits = (order_and_open_the_link(chromium, served.address.rstrip("/"), inbox) for _ in range(8))
                await asyncio.gather(*visits)


async def order_and_open_the_link(chromium: Browser, shop_url: str, inbox: AsyncInbox) -> None:
    address = inbox.new_address("ana")
    async with opened_context(chromium, viewport=PHONE) as context:
        same_origin = {"Sec-Fetch-Site": "same-origin"}
        await context.request.post(f"{shop_url}/cart", form={"product": "1", "add": "1"}, headers=same_origin)
        page = await context.new_page()
        await page.goto(f"{shop_url}/checkout")
        await page.get_by_label("Name").fill(address)
        await page.get_by_label("Email").fill(address)
        await page.get_by_label("Address").fill("Rua Augusta 12\n1100-053 Lisboa")
        await page.get_by_role("button", name="Place the order").click()
        confirmation = await inbox.wait(to=address)
        await page.goto(confirmation.link("See your order"))
        await page.get_by_role("heading", name=f"Thank you, {address}").wait_for()
        assert page.url.startswith(f"{shop_url}/orders/")
    assert await inbox.messages(to=address) == [confirmation]


class Visit:
    """A page at one viewport that remembers what went wrong in it, and keeps a picture of every step."""

    def __init__(self, page: Page, width: int, folder: Path) -> None:
        self.page = page
        self.problems: list[str] = []
        self._width = width
        self._folder = folder
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("requestfailed", self._note_failure)

    async def look(self, name: str) -> None:
        """Take a screenshot; a page that scrolls sideways is a problem."""
        await self.page.screenshot(path=self._folder / f"{name}-{self._width}.png", full_page=True)
        width = await self.page.evaluate("document.documentElement.scrollWidth")
        if width > self._width:
            self.problems.append(f"{name} is {width} pixels wide")

    def _note_failure(self, request: Request) -> None:
        # Chromium gives up what it was still loading (the icon, mostly) when the next page is asked for.
        if request.failure != "net::ERR_ABORTED":
            self._note("error", f"{request.url}: {request.failure}")

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(f"{self.page.url}: {text}")


@pytest.mark.parametrize("viewport", VIEWPORTS)
async def test_a_person_orders_in_the_shop_and_reads_the_mail_in_the_inbox(
    shop_url: str, chromium: Browser, tmp_path: Path, viewport: ViewportSize
) -> None:
    async with opened_context(chromium, viewport=viewport) as context:
        visit = Visit(await context.new_page(), viewport["width"], tmp_path)
        await order_two_things(visit, shop_url)
        await read_the_confirmation(visit, shop_url)
        await ship_and_read_the_notice(visit, shop_url)
    assert visit.problems == []


async def test_a_faulty_form_comes_back_with_the_cursor_in_the_first_fault(
    shop_url: str, chromium: Browser, tmp_path: Path
) -> None:
    async with opened_context(chromium, viewport=PHONE) as context:
        page = await context.new_page()
        visit = Visit(page, PHONE["width"], tmp_path)
        await page.goto(shop_url)
        await page.get_by_role("button", name="Add to cart Reading lamp").click()
        await page.get_by_role("link", name="Check out").click()
        await page.get_by_label("Name").fill("Ana Costa")
        await page.get_by_label("Email").fill("ana")
        await page.keyboard.press("Enter")
        await page.get_by_role("alert").wait_for()
        await visit.look("faults")
        assert await page.evaluate("document.activeElement.id") == "email"
        assert await page.get_by_label("Name").input_value() == "Ana Costa"
        assert [problem for problem in visit.problems if "422" not in problem] == []


async def order_two_things(visit: Visit, shop_url: str) -> None:
    page = visit.page
    for product in ("Field notebook", "Brass fountain pen"):
        await page.goto(shop_url)
        await visit.look("products")
        await page.get_by_role("button", name=f"Add to cart {product}").click()
        await page.wait_for_url("**/cart")
    await page.get_by_label("Quantity of Field notebook").fill("2")
    await page.get_by_role("button", name="Update Field notebook").click()
    await page.get_by_text("€93.00").wait_for()
    await visit.look("cart")
    await page.get_by_role("link", name="Check out").click()
    await page.get_by_label("Name").fill("Ana <b>Costa</b>")
    await page.get_by_label("Email").fill("ana@example.com")
    await page.get_by_label("Address").fill("Rua Augusta 12\n1100-053 Lisboa")
    await visit.look("checkout")
    await page.get_by_role("button", name="Place the order").click()
    await page.get_by_role("heading", name="Thank you, Ana <b>Costa</b>").wait_for()
    await visit.look("order")


async def read_the_confirmation(visit: Visit, shop_url: str) -> None:
    page = visit.page
    await page.goto(shop_url)
    await page.get_by_role("link", name="Mail it sent").click()
    await visit.look("inbox")
    await page.get_by_role("link", name="Your order 1001 at Viper Supplies").click()
    mail = page.frame_locator("iframe")
    await mail.get_by_role("heading", name="Thank you, Ana <b>Costa</b>").wait_for()
    await mail.get_by_role("cell", name="€93.00").wait_for()
    await visit.look("confirmation")
    link = await mail.get_by_role("link", name="See your order").get_attribute("href")
    assert link is not None
    assert link.startswith(f"{shop_url}/orders/")
    await page.goto(link)
    await page.get_by_role("heading", name="Thank you, Ana").wait_for()


async def ship_and_read_the_notice(visit: Visit, shop_url: str) -> None:
    page = visit.page
    await page.goto(f"{shop_url}/staff")
    await page.get_by_role("button", name="Ship order 1001").click()
    await page.get_by_text("Shipped").wait_for()
    await visit.look("staff")
    await page.get_by_role("link", name="Mail it sent").click()
    await page.get_by_role("link", name="Your order 1001 is on its way").click()
    await page.frame_locator("iframe").get_by_role("heading", name="It is on its way, Ana <b>Costa</b>").wait_for()
    await page.get_by_role("link", name="invoice-1001.html", exact=True).wait_for()
    await visit.look("notice")
