"""The shop with a mail server of the test's, and its inbox page in a real browser: what one sees while mail leaves."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Browser, BrowserContext, Locator, Page, ViewportSize, expect
from support.browser import VIEWPORTS, chromium, needs_chromium, opened_context
from support.patience import PATIENCE
from support.shopper import place_order, ship_order
from support.smtpd import SmtpServer
from support.uvicorn import Uvicorn

__all__ = ["chromium"]

PROJECT = Path(__file__).parents[2] / "example_shop"
WIDTHS: dict[str, str | re.Pattern[str]] = {
    "Phone": re.compile(r"^3[0-9.]+px$"),
    "Tablet": "768px",
    "Desktop": "1100px",
}
CONFIRMATION, NOTICE = "Your order 1001 at Viper Supplies", "Your order 1001 is on its way"

pytestmark = needs_chromium


@dataclass(frozen=True)
class Site:
    """The shop, and the mail server that it sends to, one message at a time."""

    url: str
    smtp: SmtpServer


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with SmtpServer() as smtp:
        env = {
            "OPENVIPER_SETTINGS_MODULE": "shop.settings",
            "DATABASE_URL": f"sqlite:///{tmp_path / 'shop.sqlite3'}",
            "EMAIL_BACKEND": "SMTPBackend",
            "EMAIL_HOST": smtp.host,
            "EMAIL_PORT": str(smtp.port),
            "EMAIL_POOL_SIZE": "1",
            "EMAIL_TIMEOUT": str(3 * PATIENCE),  # a held step is not given up
        }
        with Uvicorn("shop.app:app", PROJECT, env) as server:
            yield Site(server.url, smtp)


async def open_inbox(context: BrowserContext, site: Site) -> Page:
    """The list of messages, marked so that a reload would be seen."""
    page = await context.new_page()
    await page.goto(f"{site.url}/_mail/")
    await page.evaluate("window.neverReloaded = true")
    return page


def row(inbox: Page, subject: str) -> Locator:
    return inbox.get_by_role("link", name=subject)


@pytest.mark.parametrize("viewport", VIEWPORTS)
async def test_mail_is_seen_live_from_deferred_to_delivered(
    site: Site, chromium: Browser, viewport: ViewportSize
) -> None:
    """While the server has not yet greeted for the first order, the mail of the second waits for its turn."""
    gate = site.smtp.hold("greeting")
    async with opened_context(chromium, viewport=viewport) as context:
        inbox = await open_inbox(context, site)
        await expect(inbox.get_by_text("No mail yet")).to_be_visible()
        await place_order(chromium, site.url, "Field notebook", email="ana@example.com")
        await expect(row(inbox, CONFIRMATION).locator(".state")).to_have_text("sending")
        await place_order(chromium, site.url, "Reading lamp", email="bo@example.com")
        second = row(inbox, "Your order 1002 at Viper Supplies")
        await expect(second.locator(".state")).to_have_text("deferred")
        await expect(inbox.locator("#news")).to_have_text("New mail: Your order 1002 at Viper Supplies")
        assert site.smtp.messages == []
        gate.release()
        await expect(second.locator(".state")).to_have_text("delivered")
        await expect(row(inbox, CONFIRMATION).locator(".state")).to_have_text("delivered")
        assert await inbox.evaluate("window.neverReloaded")
        await second.click()
        await expect(inbox.locator(".timeline .state")).to_have_text(["held", "deferred", "sending", "delivered"])
    assert [message.recipients for message in site.smtp.messages] == [["ana@example.com"], ["bo@example.com"]]


@pytest.mark.parametrize("viewport", VIEWPORTS)
async def test_the_notice_is_looked_at_in_every_width_and_theme_with_its_image_and_attachment(
    site: Site, chromium: Browser, viewport: ViewportSize
) -> None:
    async with opened_context(chromium, viewport=viewport) as context:
        inbox = await open_inbox(context, site)
        await place_order(chromium, site.url, "Field notebook", email="ana@example.com")
        await ship_order(chromium, site.url, 1001)
        await row(inbox, NOTICE).click()
        mail = inbox.frame_locator("iframe")
        await expect(mail.get_by_role("heading", name="It is on its way, Ana Costa")).to_be_visible()
        logo = mail.locator("img")
        assert await logo.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
        for width, pixels in WIDTHS.items():
            await inbox.get_by_role("link", name=width, exact=True).click()
            await expect(inbox.locator("iframe")).to_have_css("width", pixels)
            await expect(mail.locator("html")).to_have_css("width", pixels)
        for theme, page, sheet in (
            ("Dark", "rgb(14, 20, 17)", "rgb(23, 32, 27)"),
            ("Light", "rgb(243, 246, 243)", "rgb(255, 255, 255)"),
        ):
            await inbox.get_by_role("link", name=theme, exact=True).click()
            await expect(mail.locator("body")).to_have_css("background-color", page)
            await expect(mail.locator(".sheet")).to_have_css("background-color", sheet)
        async with inbox.expect_download() as download:
            await inbox.get_by_role("link", name="invoice-1001.html", exact=True).click()
        file = await (await download.value).path()
        invoice = await asyncio.to_thread(Path(file).read_bytes)
    (part,) = site.smtp.messages[-1].parse().iter_attachments()
    assert invoice == part.get_payload(decode=True)
    assert "€14.50" in invoice.decode()


async def test_what_the_server_refused_is_delivered_by_the_retry_button(site: Site, chromium: Browser) -> None:
    site.smtp.refuse("ana@example.com", 550, nth=1)
    async with opened_context(chromium) as context:
        inbox = await open_inbox(context, site)
        await place_order(chromium, site.url, "Field notebook", email="ana@example.com")
        await expect(row(inbox, CONFIRMATION).locator(".state")).to_have_text("failed")
        assert await inbox.evaluate("window.neverReloaded")
        await row(inbox, CONFIRMATION).click()
        await expect(inbox.locator(".timeline li").last).to_contain_text("550 5.0.0 as the test says")
        assert site.smtp.messages == []
        await inbox.get_by_role("button", name="Retry now").click()
        await expect(inbox.locator("#subject .state")).to_have_text("delivered")
        await expect(inbox.get_by_role("button", name="Retry now")).to_have_count(0)
    (message,) = site.smtp.messages
    assert message.recipients == ["ana@example.com"]
    assert message.parse()["Subject"] == CONFIRMATION
