"""The inbox page in a real browser: live, at every width, with messages that attack it, and for everyone."""

import asyncio
import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, Page, ViewportSize, expect
from support.browser import DESKTOP, PHONE, VIEWPORTS, chromium, needs_chromium, opened_context, serious_violations
from support.elsewhere import elsewhere
from support.patience import PATIENCE
from support.redis import RedisServer, redis_server
from support.smtpd import SmtpServer
from support.uvicorn import Uvicorn
from support.workers import Worker, write_project

__all__ = ["chromium", "redis_server"]

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10"><script>alert(1)</script></svg>'
LOGO = {
    "content_b64": base64.b64encode(SVG).decode(),
    "filename": "logo.svg",
    "mimetype": "image/svg+xml",
    "inline": True,
    "content_id": "logo",
}
TERMS = {"content_b64": base64.b64encode(b"our terms").decode(), "filename": "terms.txt", "mimetype": "text/plain"}
GUIDE = {
    "content_b64": base64.b64encode(b"%PDF-1.4\n").decode(),
    "filename": "guide.pdf",
    "mimetype": "application/pdf",
}
WELCOME = {
    "recipients": "Ana Costa <ana@example.test>",
    "subject": "Welcome, Ana",
    "text": "Welcome, Ana. Please confirm.",
    "html": '<!doctype html><meta name="color-scheme" content="light dark"><style>body{background:rgb(255,255,255)}'
    "@media (prefers-color-scheme:dark){body{background:rgb(1,2,3)}}</style><h1>Welcome, Ana</h1>"
    '<img src="cid:logo" alt="Shop"><p><a href="https://shop.example/confirm">Confirm</a></p><img src="/x.png">'
    '<div style="height:1500px"></div>',
    "bcc": "archive@example.test",
    "attachments": [LOGO, TERMS, GUIDE],
}

pytestmark = needs_chromium


class Site:
    """The application, the mail server behind it, and what it is asked to send."""

    def __init__(self, url: str, smtp: SmtpServer) -> None:
        self.url = url
        self.smtp = smtp
        self.inbox = f"{url}/_mail/"

    async def send(self, **message: Any) -> None:
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            values = {"recipients": "a@example.test", "subject": "Hello", "text": "Hello", **message}
            (await client.post(f"{self.url}/send", json=values)).raise_for_status()


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    (tmp_path / "emails").mkdir()
    (tmp_path / "emails/hello.html").write_text("<h1>Hello {{ name }}</h1>")
    shop = Path(__file__).parents[4] / "example_shop/shop/templates/emails"
    for name in ("order_shipped.html", "order_shipped.txt"):
        shutil.copy(shop / name, tmp_path / "emails")
    (tmp_path / "emails/a_template_whose_name_is_longer_than_a_phone_is_wide.txt").write_text("Hello")
    return tmp_path


@contextmanager
def served(templates: Path, tasks: Mapping[str, Any] | None = None) -> Iterator[Site]:
    with SmtpServer() as smtp:
        settings = smtp.settings(backend="SMTPBackend", default_sender="Shop <shop@example.test>")
        environment = {f"EMAIL_{name.upper()}": str(value) for name, value in settings.items()}
        environment["OPENVIPER_TEST_TEMPLATES"] = str(templates)
        environment["OPENVIPER_TEST_TASKS"] = json.dumps(tasks or {})
        with Uvicorn("inbox_app:app", Path(__file__).parent, environment) as server:
            yield Site(server.url, smtp)


@pytest.fixture
def site(templates: Path) -> Iterator[Site]:
    with served(templates) as one:
        yield one


@pytest.fixture(scope="module")
def one_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with served(tmp_path_factory.mktemp("templates")) as one:
        yield one


@pytest.fixture
def shared(one_for_all: Site) -> Site:
    """For tests that change nothing but the inbox, which is empty when they begin."""
    httpx.delete(f"{one_for_all.inbox}api/messages", timeout=PATIENCE).raise_for_status()
    return one_for_all


@pytest.mark.parametrize("viewport", VIEWPORTS)
async def test_a_message_appears_live_and_is_read_in_all_forms(
    site: Site, chromium: Browser, viewport: ViewportSize
) -> None:
    gate = site.smtp.hold("body")
    async with opened_context(
        chromium, viewport=viewport, permissions=["clipboard-read", "clipboard-write"]
    ) as context:
        page = await context.new_page()
        await page.goto(site.inbox)
        await expect(page.get_by_text("No mail yet")).to_be_visible()
        await site.send(**WELCOME)
        row = page.get_by_role("link", name="Welcome, Ana")
        await expect(row).to_contain_text("sending")
        await expect(page.locator("#news")).to_have_text("New mail: Welcome, Ana")
        gate.release()
        await expect(row).to_contain_text("delivered")
        await expect(row).to_contain_text("Unread")
        await expect(page).to_have_title("(1) Inbox")
        box = await row.bounding_box()
        assert box is not None
        assert 36 <= box["height"] <= (40 if viewport == DESKTOP else 64)
        await row.click()
        await read_in_every_form(page)
        await expect(page.locator(".timeline li")).to_have_count(3)
        async with page.expect_download() as download:
            await page.get_by_role("link", name="terms.txt", exact=True).click()
        file = await (await download.value).path()
        assert await asyncio.to_thread(Path(file).read_bytes) == b"our terms"
        await see_attachments(page)
        await page.get_by_role("link", name="All messages").click()
        await expect(page.get_by_role("link", name="Welcome, Ana")).not_to_contain_text("Unread")


async def see_attachments(page: Page) -> None:
    image = page.get_by_role("img", name="logo.svg")
    assert await image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 20
    await page.get_by_role("link", name="Show terms.txt").click()
    await expect(page.locator("pre")).to_have_text("our terms")
    await page.get_by_role("link", name="The message").click()


async def read_in_every_form(page: Page) -> None:
    mail = page.frame_locator("iframe")
    await expect(mail.get_by_role("heading", name="Welcome, Ana")).to_be_visible()
    image = mail.get_by_role("img", name="Shop")
    assert await image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 20
    for width, pixels in (("Phone", 375), ("Tablet", 768), ("Desktop", 1100), ("Fit", 0)):
        await page.get_by_role("link", name=width, exact=True).click()
        await expect(page.get_by_role("link", name=width, exact=True)).to_have_attribute("aria-current", "true")
        box = await page.locator("iframe").bounding_box()
        assert box is not None
        assert box["width"] == pixels or (width in ("Phone", "Fit") and 250 < box["width"] < 1000)
        await expect(page.locator("iframe")).to_have_css("height", re.compile(r"1[5-9]\d\d(\.\d+)?px"))
    await page.get_by_role("link", name="Inverted", exact=True).click()
    await expect(mail.locator(":root")).to_have_css("filter", "invert(1) hue-rotate(180deg)")
    for theme, colour in (("Dark", "rgb(1, 2, 3)"), ("Light", "rgb(255, 255, 255)")):
        await page.get_by_role("link", name=theme, exact=True).click()
        await expect(mail.locator("body")).to_have_css("background-color", colour)
    await expect(page.get_by_text("archive@example.test")).to_be_visible()
    async with page.context.expect_page() as opening:
        await page.get_by_role("link", name="Open alone").click()
    alone = await opening.value
    await expect(alone.get_by_role("heading", name="Welcome, Ana")).to_be_visible()
    await alone.close()
    await page.get_by_role("link", name="HTML source", exact=True).click()
    await expect(page.locator(".line").first).to_contain_text("<!doctype html>")
    await page.get_by_role("button", name="Copy").click()
    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == WELCOME["html"]
    for view, words in (("Text", "Please confirm"), ("Headers", "Message-I"), ("Source", "Content-Type: multipart")):
        await page.get_by_role("link", name=view, exact=True).click()
        await expect(page.locator("#view")).to_contain_text(words)
    await page.get_by_role("link", name="Check").click()
    await expect(page.locator("#view > .findings li")).to_have_count(3)
    await expect(page.locator("details .findings li").first).to_be_hidden()
    await page.get_by_text("notes on mail clients").click()
    await expect(page.locator("details .findings li").first).to_contain_text("Tested 20")


async def test_a_refused_message_is_retried_and_sent_again(site: Site, chromium: Browser) -> None:
    site.smtp.fault("RCPT", 550, nth=1)
    async with opened_context(chromium, viewport=DESKTOP) as context:
        page = await context.new_page()
        await site.send(subject="Refused")
        await page.goto(site.inbox)
        await expect(page.get_by_role("link", name="Refused")).to_contain_text("failed")
        await page.get_by_role("link", name="Refused").click()
        await expect(page.locator(".timeline")).to_contain_text("550")
        await page.get_by_role("button", name="Retry now").click()
        await expect(page.locator("#subject .state")).to_have_text("delivered")
        await expect(page.get_by_role("button", name="Retry now")).to_have_count(0)
        await page.get_by_role("button", name="Send again").click()
        await expect(page.locator(".timeline")).to_contain_text("sent again from the inbox page")
        await expect(page.locator("#subject .state")).to_have_text("delivered")
        await page.get_by_role("link", name="Send a copy").click()
        await page.get_by_label("To").fill("a@example.test")
        await page.get_by_role("button", name="Send copy").click()
        await expect(page.get_by_role("alert")).to_contain_text("a@example.test is a recipient of this message")
        await page.get_by_label("To").fill("me@example.test")
        await page.get_by_role("button", name="Send copy").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("[Copy] Refused")
        await expect(page.locator("#subject .state")).to_have_text("delivered")
        await page.goto(site.inbox)
        await expect(page.locator(".messages li")).to_have_count(3)
        await page.get_by_text("Clear all").click()
        await page.get_by_role("button", name="Delete all 3").click()
        await expect(page.get_by_text("No mail yet")).to_be_visible()
    recipients = [message.recipients for message in site.smtp.messages]
    assert recipients == [["a@example.test"], ["a@example.test"], ["me@example.test"]]


@pytest.mark.parametrize(
    ("viewport", "scheme"), [(PHONE, "dark"), (DESKTOP, "light")], ids=["phone, dark", "desktop, light"]
)
async def test_dead_letters_are_read_retried_and_deleted(
    templates: Path, tmp_path: Path, redis_server: RedisServer, chromium: Browser, viewport: ViewportSize, scheme: Any
) -> None:
    with served(templates, redis_server.tasks()) as site:
        email = site.smtp.settings(default_sender="shop@example.test", on_uncertain="hold")
        project = write_project(tmp_path / "project", tasks=redis_server.tasks(), email=email)
        async with opened_context(chromium, viewport=viewport, color_scheme=scheme, bypass_csp=True) as context:
            page = await context.new_page()
            await page.goto(site.inbox)
            await page.get_by_role("link", name="Failed", exact=True).click()
            await expect(page.get_by_text("No failed mail")).to_be_visible()
            site.smtp.refuse("gone@example.test", 550)
            site.smtp.fault("body", "drop", nth=1)
            await site.send(recipients="cut@example.test", subject="Cut off")
            await site.send(recipients="gone@example.test", subject="Refused")
            with Worker(project):
                async with httpx.AsyncClient(timeout=PATIENCE) as client, asyncio.timeout(PATIENCE):
                    while (await client.get(f"{site.inbox}api/failed")).json()["total"] < 2:
                        await asyncio.sleep(0.1)
            await page.reload()
            cut = page.get_by_role("article", name="Cut off")
            refused = page.get_by_role("article", name="Refused")
            await expect(cut).to_contain_text("perhaps delivered")
            await expect(refused).to_contain_text("550")
            await expect(refused).not_to_contain_text("perhaps delivered")
            await cut.get_by_text("Delete…").click()
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert width <= viewport["width"], f"the page is {width} pixels wide"
            assert await serious_violations(page) == []
            await cut.get_by_role("button", name="Delete it").click()
            await expect(page.get_by_text("1 message deleted.")).to_be_visible()
            await expect(page.get_by_role("article")).to_have_count(1)
            await refused.get_by_role("button", name="Retry Refused").click()
            await expect(page.get_by_text("1 message queued again.")).to_be_visible()
            await expect(page.get_by_text("No failed mail")).to_be_visible()
        site.smtp.behave()
        with Worker(project):
            (message,) = await site.smtp.arrive(1)
    assert message.recipients == ["gone@example.test"]


HOSTILE_SUBJECT = "<script>alert(9)</script><h1>Hi"
HOSTILE_FILE_NAME = '"><img src=x onerror=alert(8)>.html'
# ELSEWHERE becomes the address of a server that notes who connects to it.
HOSTILE = {
    "script": "<script>alert(1);parent.document.title='pwned'</script>",
    "handlers": "<img src=x onerror=alert(1)><body onload=alert(2)><svg onload=alert(3)>"
    "<details open ontoggle=alert(4)><input autofocus onfocus=alert(5)>"
    '<div id="go" onclick="alert(6)" onmouseover="alert(7)" style="position:fixed;inset:0">x</div>',
    "links": '<a id="go" href="javascript:alert(1)" target="_self" style="position:fixed;inset:0">x</a>',
    "named target": '<a id="go" href="javascript:alert(1)" target="_top" style="position:fixed;inset:0">x</a>',
    "top": '<a id="go" href="data:text/html,<h1>evil" target="_top" style="position:fixed;inset:0">x</a>',
    "cover": "<style>*,:root{position:fixed!important;inset:0!important;z-index:2147483647;background:red}</style><p>x",
    "breakout": '"></iframe></pre></textarea></title><script>alert(1)</script>',
    "base": '<base href="ELSEWHERE"><img src="pixel.png" alt=""><link rel="stylesheet" href="a.css">',
    "refresh": '<meta http-equiv="refresh" content="0;url=ELSEWHERE">'
    '<meta http-equiv="refresh" content="0;javascript:alert(1)">',
    "form": '<form action="/_mail/clear" method="post" target="_top">'
    '<button id="go" style="position:fixed;inset:0">x</button></form>',
    "frames": '<iframe src="javascript:alert(1)"></iframe><iframe srcdoc="<script>alert(1)</script>"></iframe>'
    '<iframe src="ELSEWHERE"></iframe><object data="ELSEWHERE"></object><embed src="ELSEWHERE">',
    "remote": '<img src="ELSEWHEREa.png"><style>@import "ELSEWHEREa.css";p{background:url(ELSEWHEREb)}'
    '@font-face{font-family:x;src:url(ELSEWHEREf)}p{font-family:x}</style><p>x<link rel="preconnect" href="ELSEWHERE">'
    '<link rel="prefetch" href="ELSEWHEREp"><link rel="stylesheet" href="ELSEWHEREs">'
    '<video src="ELSEWHEREv" autoplay></video><audio src="ELSEWHEREa" autoplay></audio>',
    "endless": '<!doctype html><style>html{height:200vh}</style><div style="height:calc(100vh + 9px)">x</div>',
    "names": '<img name="documentElement" alt=""><img name="documentElement" alt=""><form name="scrollingElement">'
    '<input name="scrollHeight"><input name="clientHeight"></form><p>x',
    "svg": '<svg><script>alert(1)</script><foreignObject><body xmlns="http://www.w3.org/1999/xhtml" onload="alert(2)"/>'
    '</foreignObject></svg><img src="cid:logo">',
}


def watch(page: Page) -> list[str]:
    """What hostile mail may never do, noted as it happens."""
    harm: list[str] = []
    page.on("dialog", lambda dialog: harm.append(f"dialog {dialog.message}"))
    page.on("download", lambda download: harm.append(f"download {download.url}"))
    page.on("pageerror", lambda error: harm.append(f"error {error}"))
    return harm


@pytest.mark.parametrize(
    ("kind", "viewport"),
    [*(pytest.param(kind, DESKTOP, id=kind) for kind in HOSTILE), pytest.param("cover", PHONE, id="cover on a phone")],
)
async def test_a_hostile_message_executes_nothing_and_stays_in_its_frame(
    shared: Site, chromium: Browser, kind: str, viewport: ViewportSize
) -> None:
    async with elsewhere() as (address, asked), opened_context(chromium, viewport=viewport) as context:
        html = HOSTILE[kind].replace("ELSEWHERE", address)
        page = await context.new_page()
        harm = watch(page)
        await shared.send(
            subject=HOSTILE_SUBJECT, html=html, text=html,
            recipients='"<img src=x onerror=alert(8)>" <a@example.test>',
            attachments=[LOGO, {"content": html, "filename": HOSTILE_FILE_NAME, "mimetype": "text/html"}],
        )  # fmt: skip
        await page.goto(shared.inbox)
        await expect(page.locator(".subject")).to_have_text(HOSTILE_SUBJECT)
        await page.locator(".messages a").first.click()
        await expect(page.get_by_role("link", name=HOSTILE_FILE_NAME, exact=True)).to_be_visible()
        message = page.url
        for theme in ("Light", "Inverted", "Dark"):
            await page.get_by_role("link", name=theme, exact=True).click()
            await page.wait_for_timeout(200)
        if 'id="go"' in html:
            await page.frame_locator("iframe").locator("#go").click(force=True)
            await page.wait_for_timeout(300)
        assert [other.url for other in context.pages[1:] if other.url not in ("", "about:blank")] == []
        assert page.url.startswith(shared.inbox)
        await expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE_SUBJECT)
        assert await is_on_top(page), "something covers the page"
        for view in ("HTML source", "Text", "Headers", "Source", "Check"):
            link = page.get_by_role("link", name=re.compile(f"^{view}"))
            await link.click()
            await expect(link).to_have_attribute("aria-current", "page")
        await page.goto(f"{message}/attachments/1/text")
        await expect(page.locator("pre")).to_have_text(html)
        await page.goto(f"{message}/html?theme=inverted")
        await page.wait_for_timeout(200)
        assert page.url == f"{message}/html?theme=inverted"
        assert harm == []
        assert asked == []
    async with httpx.AsyncClient(timeout=PATIENCE) as client:
        assert len((await client.get(f"{shared.inbox}api/messages")).json()["messages"]) == 1


async def is_on_top(page: Page) -> bool:
    """Whether the page's own heading is what one sees and clicks where it stands."""
    heading = page.get_by_role("heading", level=1)
    await heading.scroll_into_view_if_needed()
    box = await heading.bounding_box()
    assert box is not None
    at = [box["x"] + 5, box["y"] + 5]
    return bool(await page.evaluate("([x, y]) => document.elementFromPoint(x, y).closest('h1') !== null", at))


@pytest.mark.parametrize("attributes", ["", 'target="named"', 'target="_blank" rel="opener"'])
async def test_a_link_opens_a_page_that_has_no_hold_on_the_inbox(
    shared: Site, chromium: Browser, attributes: str
) -> None:
    """It works there as anywhere, and cannot lead the inbox's own tab to another shared."""
    body = b"<title>closed</title><script>if (opener) { document.title = 'open'; opener.top.location = '/' }</script>"
    async with elsewhere(body) as (address, asked), opened_context(chromium, viewport=DESKTOP) as context:
        page = await context.new_page()
        await shared.send(html=f'<a href="{address}" {attributes}>Confirm</a>')
        await page.goto(shared.inbox)
        await page.get_by_role("link", name="Hello").click()
        await expect(page.locator("#subject .state")).to_have_text("delivered")
        await page.wait_for_load_state("networkidle")  # the frame has its document, and nothing moves any more
        before = page.url
        async with context.expect_page() as opening:
            await page.frame_locator("iframe").get_by_role("link", name="Confirm").click()
        other = await opening.value
        await expect(other).to_have_title("closed")
        await page.wait_for_timeout(200)
        assert page.url == before
        assert b"referer" not in asked[0].lower()


async def test_remote_content_is_loaded_when_it_is_asked_for(shared: Site, chromium: Browser) -> None:
    async with elsewhere() as (address, asked), opened_context(chromium, viewport=DESKTOP) as context:
        page = await context.new_page()
        await shared.send(html=f'<img src="{address}pixel.png" alt="">')
        await page.goto(shared.inbox)
        await page.get_by_role("link", name="Hello").click()
        await page.get_by_text("Remote content is blocked").wait_for()
        await page.wait_for_timeout(300)
        assert asked == []
        async with page.expect_response(f"{address}pixel.png"):
            await page.get_by_role("link", name="Show it").click()
        (request,) = asked
        assert b"GET /pixel.png" in request
        assert b"referer" not in request.lower()


async def test_a_wide_state_leaves_the_address_its_room_on_a_phone(site: Site, chromium: Browser) -> None:
    site.smtp.refuse("gone@example.test", 550)
    await site.send(recipients=["ana.costa@example.test", "gone@example.test"])
    async with opened_context(chromium, viewport=PHONE) as context:
        page = await context.new_page()
        await page.goto(site.inbox)
        await expect(page.get_by_text("partly delivered")).to_be_visible()
        address = page.locator(".whom")
        assert await address.evaluate("element => element.scrollWidth <= element.clientWidth")
        lines = await page.locator(".messages a").evaluate(
            "row => ['.to', 'time', '.what', '.state'].map(name => row.querySelector(name).getBoundingClientRect())"
            ".map((box, index, [first]) => box.top >= first.bottom)"
        )
        assert lines == [False, False, True, True]


async def test_it_is_used_by_keyboard_alone(shared: Site, chromium: Browser) -> None:
    for subject in ("first", "second", "third"):
        await shared.send(subject=subject)
    async with opened_context(chromium, viewport=DESKTOP) as context:
        page = await context.new_page()
        await page.goto(shared.inbox)
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        await page.keyboard.press("Enter")
        for _ in ("Clear all", "Unread", "With attachment", "Failed", "Select third", "third"):
            await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="third")).to_be_focused()
        await page.keyboard.press("ArrowDown")
        await expect(page.get_by_role("link", name="second")).to_be_focused()
        await shared.send(subject="fourth")
        await expect(page.get_by_role("link", name="fourth")).to_be_visible()
        await expect(page.get_by_role("link", name="second")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="second")).to_be_visible()


async def test_keys_move_open_mark_and_delete(shared: Site, chromium: Browser) -> None:
    for subject in ("first", "second", "third", "fourth"):
        await shared.send(subject=subject)
    async with opened_context(chromium, viewport=DESKTOP) as context:
        page = await context.new_page()
        await page.goto(shared.inbox)
        keys = page.keyboard
        for _ in "123":
            await keys.press("j")
        await keys.press("k")
        await expect(page.get_by_role("link", name="third")).to_be_focused()
        await keys.press("r")
        await expect(page.get_by_role("link", name="third")).not_to_contain_text("Unread")
        await keys.press("u")
        await expect(page.get_by_role("link", name="third")).to_contain_text("Unread")
        await expect(page.get_by_role("link", name="third")).to_be_focused()
        await keys.press("e")
        await expect(page.get_by_role("link", name="third")).to_have_count(0)
        await expect(page.get_by_role("link", name="second")).to_be_focused()
        await keys.press("o")
        await expect(page.get_by_role("heading", name="second")).to_be_visible()
        await page.wait_for_load_state()  # the script is there
        await keys.press("k")
        await expect(page.get_by_role("heading", name="fourth")).to_be_visible()
        await page.wait_for_load_state()  # the script is there
        await keys.press("j")
        await expect(page.get_by_role("heading", name="second")).to_be_visible()
        await page.wait_for_load_state()  # the script is there
        await keys.press("u")
        await expect(page.get_by_role("link", name="second")).to_contain_text("Unread")
        await page.wait_for_load_state()
        await keys.press("/")
        await keys.type("subject:first j")
        await keys.press("Enter")
        await expect(page.get_by_text("Nothing matches “subject:first j”")).to_be_visible()
        assert page.url.endswith("?q=subject%3Afirst+j")
        await page.wait_for_load_state()  # the script is there
        await keys.press("?")
        await expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
        await page.get_by_label("Use these keys").uncheck()
        await keys.press("Escape")
        await page.goto(shared.inbox)
        await keys.press("?")
        await keys.press("j")
        await expect(page.get_by_role("link", name="fourth")).not_to_be_focused()
        await expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("viewport", VIEWPORTS)
async def test_several_messages_are_selected_and_changed(
    shared: Site, chromium: Browser, viewport: ViewportSize
) -> None:
    for subject in ("first", "second", "third"):
        await shared.send(subject=subject)
    # The driver puts the checker into the page, which the page's own policy would forbid.
    async with opened_context(chromium, viewport=viewport, bypass_csp=True) as context:
        page = await context.new_page()
        await page.goto(shared.inbox)
        await expect(page.get_by_role("button", name="Mark as read")).to_be_hidden()
        for subject in ("first", "third"):
            await page.get_by_label(f"Select {subject}").check()
        await expect(page.locator("#selected")).to_have_text("2 selected")
        await shared.send(subject="fourth")
        await expect(page.get_by_role("link", name="fourth")).to_be_visible()
        await expect(page.get_by_label("Select first")).to_be_checked()
        await expect(page.locator("#selected")).to_have_text("2 selected")
        assert await serious_violations(page, iframes=False) == []
        assert await page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        await page.get_by_role("button", name="Mark as read").click()
        await expect(page.locator("li.read")).to_have_count(2)
        await page.get_by_label("Select second").check()
        await page.get_by_role("button", name="Select all").click()
        await expect(page.locator("#selected")).to_have_text("4 selected")
        await page.get_by_role("button", name="Select all").click()
        await page.get_by_label("Select third").check()
        await page.get_by_label("Select first").click(modifiers=["Shift"])
        await expect(page.locator("#selected")).to_have_text("3 selected")
        await expect(page.get_by_label("Select fourth")).not_to_be_checked()
        await page.get_by_role("button", name="Delete", exact=True).click()
        await expect(page.locator(".messages li")).to_have_count(1)
        await expect(page.get_by_role("link", name="fourth")).to_be_visible()


async def test_a_preview_follows_its_files(site: Site, chromium: Browser, templates: Path) -> None:
    html, sample = templates / "emails/hello.html", templates / "emails/hello.sample.json"
    async with opened_context(chromium, viewport=DESKTOP) as context:
        page = await context.new_page()
        await page.goto(f"{site.inbox}templates")
        await page.get_by_role("link", name="emails/hello").click()
        heading = page.frame_locator("iframe").get_by_role("heading")
        await expect(heading).to_have_text("Hello Ana Costa")
        await asyncio.to_thread(html.write_text, "<h1>Welcome {{ name }}</h1>")
        await expect(heading).to_have_text("Welcome Ana Costa")
        await asyncio.to_thread(sample.write_text, '{"name": "Bob"}')
        await expect(heading).to_have_text("Welcome Bob")
        await asyncio.to_thread(html.write_text, "<h1>{% if %}")
        await expect(page.get_by_role("alert")).to_contain_text("line 1")
        await asyncio.to_thread(html.write_text, "<h1>Mended, {{ name }}</h1>")
        await expect(heading).to_have_text("Mended, Bob")
        await page.get_by_label("Address to send this to").fill("me@example.test")
        await page.get_by_role("button", name="Send it").click()
        await expect(page.frame_locator("iframe").get_by_role("heading")).to_have_text("Mended, Bob")
        await expect(page.locator("#subject .state")).to_have_text("delivered")
    (message,) = site.smtp.messages
    assert message.recipients == ["me@example.test"]


async def test_a_page_that_is_refused_updates_connects_again(shared: Site, chromium: Browser) -> None:
    """Browsers give up an event stream that is answered with an error, as by a proxy while the server starts."""
    async with httpx.AsyncClient(timeout=PATIENCE) as client, opened_context(chromium) as context:
        events = client.build_request("GET", f"{shared.inbox}events")
        streams = [await client.send(events, stream=True) for _ in range(32)]
        page = await context.new_page()
        async with page.expect_response(lambda answer: answer.status == 503):
            await page.goto(shared.inbox)
        for stream in streams:
            await stream.aclose()
        await shared.send(subject="Later")
        await expect(page.get_by_role("link", name="Later")).to_be_visible()


async def test_it_works_without_scripts(shared: Site, chromium: Browser) -> None:
    await shared.send(**WELCOME)
    async with opened_context(chromium, java_script_enabled=False) as context:
        page = await context.new_page()
        await page.goto(shared.inbox)
        await page.get_by_role("link", name="Welcome, Ana").click()
        await page.get_by_role("link", name="Dark").click()
        await expect(page.frame_locator("iframe").get_by_role("heading")).to_be_visible()
        await page.get_by_role("link", name="Source", exact=True).click()
        await expect(page.locator("pre")).to_contain_text("Subject: Welcome, Ana")
        await page.get_by_role("button", name="Delete").click()
        await expect(page.get_by_text("No mail yet")).to_be_visible()


# The elements that reach beyond their card or list, where it cuts them off or they cover its border.
_STICKS_OUT = """[...document.querySelectorAll(".card *, .messages *")].filter((element) => {
  const box = element.closest(".card, .messages").getBoundingClientRect();
  const { left, right, width } = element.getBoundingClientRect();
  return width > 1 && !element.closest(".stage, pre") && (right > box.right + 1 || left < box.left - 1);
}).map((element) => element.outerHTML)"""


@pytest.mark.parametrize(
    ("viewport", "scheme"), [(PHONE, "dark"), (DESKTOP, "light")], ids=["phone, dark", "desktop, light"]
)
async def test_axe_finds_nothing_serious(site: Site, chromium: Browser, viewport: ViewportSize, scheme: Any) -> None:
    site.smtp.refuse("gone@example.test", 550)
    await site.send(recipients="gone@example.test", subject="Refused")
    await site.send(recipients=["a@example.test", "gone@example.test"], subject="Partly delivered")
    await site.send(**WELCOME)
    pages: dict[str, Callable[[str, str], str]] = {
        "list": lambda *_: "",
        "search": lambda *_: "?q=nothing-like-it+is:new+-x",
        "api": lambda *_: "api",
        "message": lambda welcome, _: welcome,
        "inverted": lambda welcome, _: f"{welcome}?theme=inverted",
        "HTML source": lambda welcome, _: f"{welcome}?view=markup",
        "text": lambda welcome, _: f"{welcome}?view=text",
        "headers": lambda welcome, _: f"{welcome}?view=headers",
        "source": lambda welcome, _: f"{welcome}?view=source",
        "check": lambda welcome, _: f"{welcome}?view=check",
        "attachment": lambda welcome, _: f"{welcome}/attachments/1/text",
        "release": lambda welcome, _: f"{welcome}/release",
        "failed": lambda _, refused: refused,
        "dead letters": lambda *_: "failed",
        "templates": lambda *_: "templates",
        "preview": lambda *_: "templates/emails/order_shipped",
        "values": lambda *_: "templates/emails/order_shipped?view=values",
        "template check": lambda *_: "templates/emails/order_shipped?view=check",
        "problem": lambda *_: "0123456789abcdef",
    }
    async with httpx.AsyncClient(timeout=PATIENCE) as client:
        await client.get(f"{site.inbox}api/messages/wait?q=partly&state=delivered")
        messages = (await client.get(f"{site.inbox}api/messages/wait?q=welcome&state=delivered")).json()
        refused = (await client.get(f"{site.inbox}api/messages/wait?q=refused&state=failed")).json()
    # The driver puts the checker into the page, which the page's own policy would forbid.
    async with opened_context(chromium, viewport=viewport, color_scheme=scheme, bypass_csp=True) as context:
        page = await context.new_page()
        found = []
        for name, address in pages.items():
            await page.goto(site.inbox + address(messages["key"], refused["key"]))
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert width <= viewport["width"], f"{name} is {width} pixels wide"
            assert await page.evaluate(_STICKS_OUT) == [], name
            found += [f"{name}: {violation}" for violation in await serious_violations(page, iframes=False)]
    assert found == []
