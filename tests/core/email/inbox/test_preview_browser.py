"""The pages of templates and of previews in code in a real browser: read, edited, live, attacked, and for everyone."""

import asyncio
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

import httpx
import pytest
from playwright.async_api import Browser, expect
from support.browser import DESKTOP, PHONE, chromium, needs_chromium, opened_context, serious_violations
from support.elsewhere import elsewhere
from support.patience import PATIENCE
from support.uvicorn import Uvicorn

__all__ = ["chromium"]

pytestmark = needs_chromium

APP = Path(__file__).parent
MODULE = "sample_previews"
SOURCE = '''
import json
from pathlib import Path

from openviper.core.email import preview

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10"><script>alert(1)</script></svg>'
LOGO = {"filename": "logo.svg", "content": SVG, "mimetype": "image/svg+xml", "inline": True, "content_id": "logo"}

@preview(variants={"empty cart": {"items": 0}, "long name": {"name": "Maximiliana " * 20}})
def order(name: str = "Ana", items: int = 2, total: float = 9.5, gift: bool = False):
    """Confirm an order."""
    return {
        "recipients": f"{name} <ana@example.test>",
        "subject": f"Your order, {name}",
        "template": "emails/order",
        "context": {"name": name, "items": ["Field notebook"] * items, "total": total, "gift": gift},
        "attachments": [("terms.txt", b"Our terms", "text/plain"), LOGO],
    }

@preview
def fails():
    return {}["nothing"]

hostile = json.loads(Path(__file__).with_name("hostile.json").read_text())

@preview(variants={hostile["markup"]: {"name": hostile["markup"]}})
def attacks(name: str = hostile["markup"]):
    return {
        "recipients": [(name, "a@example.test")],
        "sender": (name, "b@example.test"),
        "reply_to": [(name, "r@example.test")],
        "subject": name,
        "text": hostile["html"],
        "html": hostile["html"],
        "attachments": [(name + ".html", hostile["html"].encode(), "text/html"), LOGO],
    }

attacks.__doc__ = hostile["markup"]
'''
TEMPLATES = {
    "emails/layout.html": "<!doctype html><html lang='en'><title>Shop</title>"
    "<meta name='color-scheme' content='light dark'>"
    "<style>body{background:rgb(255,255,255);color:#111}@media (prefers-color-scheme:dark)"
    "{body{background:rgb(1,2,3);color:#eee}}</style><body>{% block body %}{% endblock %}"
    "{% include 'emails/footer.html' %}</body></html>",
    "emails/footer.html": "<p>Viper Supplies</p>",
    "emails/order.html": "{% extends 'emails/layout.html' %}{% block body %}<h1>Thank you, {{ name }}</h1>"
    "<img src='cid:logo' alt='Shop'><p>{{ items | length }} items, {{ total }}{% if gift %}, a gift{% endif %}</p>"
    "{% endblock %}",
    "emails/only.html": "{% block subject %}Hello {{ name }}{% endblock %}<h1>Hello {{ name }}</h1><p>Only HTML</p>",
    "emails/broken.html": "<h1>{% if %}",
    "home.html": "<p>Not mail",
}
MARKUP = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
NAME = '"' + MARKUP.replace('"', '\\"') + '"'
# ELSEWHERE becomes the address of a server that notes who connects to it.
ATTACK = """<!doctype html><base href="ELSEWHERE"><meta http-equiv="refresh" content="0;url=ELSEWHERE">
<meta http-equiv="refresh" content="0;javascript:alert(1)"><script>alert(1);parent.document.title='pwned'</script>
<link rel="stylesheet" href="ELSEWHEREs"><link rel="preconnect" href="ELSEWHERE">
<style>@import "ELSEWHEREa.css";p{background:url(ELSEWHEREb);width:expression(alert(1))}*{behavior:url(ELSEWHEREc)}
@font-face{font-family:x;src:url(ELSEWHEREf)}p{font-family:x}
*,:root{position:fixed!important;inset:0!important;z-index:2147483647}</style>
<svg><script>alert(1)</script><animate onbegin=alert(1) attributeName=x dur=1s></svg><img src="cid:logo">
<img src=x onerror=alert(1)><img src="ELSEWHEREi"><details open ontoggle=alert(4)><input autofocus onfocus=alert(5)>
<form id="f" action="/_mail/clear" method="post" target="_top"><button id="go">x</button></form>
<iframe src="javascript:alert(1)"></iframe><iframe srcdoc="<script>alert(1)</script>"></iframe>
<object data="ELSEWHEREo"></object><embed src="ELSEWHEREe"><video src="ELSEWHEREv" autoplay></video>
<a href="javascript:alert(1)" target="_self">x</a><a href="javascript:alert(1)" target="_top">y</a>
<p>x</p>"></iframe></pre></textarea></title></style></noscript><script>alert(1)</script>"""


class Site:
    """The application, its folder of templates and modules, and the addresses of its pages."""

    def __init__(self, url: str, folder: Path) -> None:
        self.inbox = f"{url}/_mail/"
        self.folder = folder

    def template(self, name: str, **query: str) -> str:
        return f"{self.inbox}templates/{quote(name)}?{urlencode(query)}"

    def preview(self, name: str, **query: str) -> str:
        return f"{self.inbox}previews/{MODULE}.{name}?{urlencode(query)}"


def write(folder: Path, html: str = "") -> None:
    """Write the templates and the module; ``html`` is what one of its previews sends."""
    for name, text in TEMPLATES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "hostile.json").write_text(json.dumps({"markup": MARKUP, "html": html}))
    (folder / f"{MODULE}.py").write_text(SOURCE)


def served(folder: Path, *arguments: str) -> Uvicorn:
    environment = {
        "EMAIL_BACKEND": "MemoryBackend",
        "EMAIL_DEFAULT_SENDER": "Shop <shop@example.test>",
        "EMAIL_MAILS": MODULE,
        "OPENVIPER_TEST_TEMPLATES": str(folder),
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return Uvicorn("inbox_app:app", APP, environment, *arguments)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("previews")
    write(folder)
    with served(folder) as server:
        yield Site(server.url, folder)


async def test_templates_and_previews_are_found_marked_and_opened(site: Site, chromium: Browser) -> None:
    async with opened_context(chromium, viewport=DESKTOP) as context:
        page = await context.new_page()
        await page.goto(f"{site.inbox}templates")
        previews, templates = page.locator("main > ul.messages").nth(0), page.locator("main > ul.messages").nth(1)
        await expect(previews.locator("li")).to_have_text(
            [re.compile(r"order Confirm an order\.\s+empty cart long name"), re.compile("fails"), re.compile("attacks")]
        )
        await expect(templates.locator("li")).to_have_text(
            [re.compile(rf"{name}\s+{words}") for name, words in (
                ("emails/broken", "html"), ("emails/footer", "partial html"), ("emails/layout", "layout html"),
                ("emails/only", "html"), ("emails/order", "html"),
            )]
        )  # fmt: skip
        await expect(page.get_by_role("link", name="home")).to_be_hidden()
        await page.get_by_text("1 other template").click()
        await expect(page.get_by_role("link", name="home")).to_be_visible()
        await page.set_viewport_size(PHONE)
        await expect(page.get_by_role("link", name="emails/only")).to_be_visible()
        await page.get_by_role("link", name="emails/only").click()
        mail = page.frame_locator("iframe")
        await expect(mail.get_by_role("heading")).to_have_text("Hello Ana Costa")
        await page.get_by_role("link", name="Text", exact=True).click()
        await expect(page.locator("pre")).to_contain_text("Only HTML")
        await expect(page.get_by_text("Made from the HTML, as a send does without a text template.")).to_be_visible()
        await page.get_by_role("link", name=re.compile("^Values")).click()
        await page.get_by_label("Values as JSON").fill('{"name": "Bo <b>"}')
        await page.get_by_role("button", name="Show with these values").click()
        await expect(mail.get_by_role("heading")).to_have_text("Hello Bo <b>")
        await expect(page.get_by_text("Hello Bo <b>", exact=True)).to_be_visible()
        await page.get_by_role("link", name=re.compile("^Values")).click()
        await expect(page.get_by_label("Values as JSON")).to_have_value(re.compile("Bo <b>"))
        await page.get_by_role("link", name="back to the sample values").click()
        await page.get_by_role("link", name="All templates").click()
        await page.get_by_role("link", name="emails/broken").click()
        await expect(page.get_by_role("alert")).to_contain_text("line 1")
        await expect(page.locator("iframe")).to_have_count(0)


async def test_a_preview_in_code_is_read_edited_and_sent(site: Site, chromium: Browser) -> None:
    async with opened_context(chromium, viewport=PHONE) as context:
        page = await context.new_page()
        await page.goto(site.preview("order"))
        mail = page.frame_locator("iframe")
        title, heading = page.get_by_role("heading", level=1).first, mail.get_by_role("heading")
        await expect(title).to_have_text("Your order, Ana")
        await expect(heading).to_have_text("Thank you, Ana")
        await expect(page.locator("dl.fields")).to_contain_text("Shop <shop@example.test>")
        logo = mail.get_by_role("img", name="Shop")
        assert await logo.evaluate("image => image.decode().then(() => image.naturalWidth)") == 20
        for theme, colour in (("Dark", "rgb(1, 2, 3)"), ("Light", "rgb(255, 255, 255)")):
            await page.get_by_role("link", name=theme, exact=True).click()
            await expect(mail.locator("body")).to_have_css("background-color", colour)
        async with page.expect_download() as download:
            await page.get_by_role("link", name="terms.txt").click()
        assert await asyncio.to_thread(Path(await (await download.value).path()).read_bytes) == b"Our terms"
        await page.get_by_role("link", name="empty cart").click()
        await expect(mail.locator("p").first).to_have_text("0 items, 9.5")
        await page.get_by_label("name").fill("Bo")
        await page.get_by_label("gift").select_option("true")
        await page.get_by_label("total").fill("1.25")
        await page.get_by_role("button", name="Show", exact=True).click()
        await expect(title).to_have_text("Your order, Bo")
        await expect(mail.locator("p").first).to_have_text("0 items, 1.25, a gift")
        await expect(page.get_by_role("link", name="empty cart")).to_have_attribute("aria-current", "page")
        await page.get_by_label("items").fill("many")
        await page.get_by_role("button", name="Show", exact=True).click()
        await expect(page.get_by_role("alert")).to_have_text("items: must be a number, not 'many'")
        await expect(page.get_by_label("name")).to_have_value("Bo")
        await page.get_by_role("link", name="long name").click()
        await expect(heading).to_contain_text("Maximiliana Maximiliana")
        for view, words in (("Text", "Viper Supplies"), ("Check", "mail clients")):
            await page.get_by_role("link", name=re.compile(f"^{view}")).click()
            await expect(page.locator("#view")).to_contain_text(words)
        await page.get_by_label("Address to send this to").fill("me@example.test")
        await page.get_by_role("button", name="Send it").click()
        await expect(page.locator("#subject .state")).to_have_text("delivered")
        await page.goto(site.preview("fails"))
        await expect(page.get_by_role("alert")).to_contain_text(f"'nothing' (KeyError at {site.folder}/{MODULE}.py:")


async def test_a_preview_in_code_follows_its_templates_and_the_reloaded_module(
    tmp_path: Path, chromium: Browser
) -> None:
    """What has been typed and not sent stays, and so does the focus, although the page has changed."""
    write(tmp_path)
    module, template = tmp_path / f"{MODULE}.py", tmp_path / "emails/order.html"
    async with opened_context(chromium, viewport=DESKTOP) as context:
        page = await context.new_page()
        heading = page.frame_locator("iframe").get_by_role("heading")
        with served(tmp_path) as server:
            port = str(server.port)
            await page.goto(Site(server.url, tmp_path).preview("order", **{"value-name": "Bo"}))
            await page.evaluate("window.neverReloaded = true")
            await expect(heading).to_have_text("Thank you, Bo")
            await page.get_by_label("Address to send this to").fill("me@example.test")
            await page.get_by_label("gift").select_option("true")
            await page.get_by_label("items").fill("7")
            template.write_text("<h1>Thanks, {{ name }}</h1>")
            await expect(heading).to_have_text("Thanks, Bo")
            await expect(page.get_by_label("items")).to_have_value("7")
            await expect(page.get_by_label("items")).to_be_focused()
            template.write_text("<h1>{% if %}")
            await expect(page.get_by_role("alert")).to_contain_text("line 1")
            (tmp_path / "emails/layout.html").write_text("<h1>Mended, {{ name }}</h1>")
            template.write_text("{% extends 'emails/layout.html' %}")
            await expect(heading).to_have_text("Mended, Bo")
            (tmp_path / "emails/layout.html").write_text("<h1>Layout, {{ name }}</h1>")
            await expect(heading).to_have_text("Layout, Bo")
            module.write_text(SOURCE + "\n1/0\n")
        with served(tmp_path, "--port", port):
            await expect(page.get_by_role("alert")).to_contain_text("division by zero")
            module.write_text(SOURCE.replace("Your order", "Your new order").replace("emails/order", "emails/only"))
        with served(tmp_path, "--port", port):
            await expect(heading).to_have_text("Hello Bo")
            await expect(page.get_by_role("heading", level=1).first).to_have_text("Your new order, Bo")
            (tmp_path / "emails/only.html").write_text("<h1>Followed, {{ name }}</h1>")
            await expect(heading).to_have_text("Followed, Bo")
            assert await page.evaluate("window.neverReloaded")
            await expect(page.get_by_label("Address to send this to")).to_have_value("me@example.test")


SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


async def test_axe_finds_nothing_serious_on_the_pages_of_previews(site: Site, chromium: Browser) -> None:
    pages = {
        "templates": f"{site.inbox}templates",
        "edited values": site.template("emails/only", view="values", values='{"name": 1, "nam": 2}'),
        "a preview": site.preview("order"),
        "a wrong value": site.preview("order", **{"value-items": "many"}),
    }
    found = []
    # The driver puts the checker into the page, which the page's own policy would forbid.
    async with opened_context(chromium, bypass_csp=True) as context:
        page = await context.new_page()
        for name, address in pages.items():
            await page.goto(address)
            for number, (viewport, scheme) in enumerate(itertools.product((PHONE, DESKTOP), SCHEMES)):
                await page.set_viewport_size(viewport)
                await page.emulate_media(color_scheme=scheme)
                width = await page.evaluate("document.documentElement.scrollWidth")
                assert width <= viewport["width"], f"{name} is {width} pixels wide"
                if number in (1, 2):  # each width and each scheme once
                    found += [
                        f"{name}, {scheme}: {problem}" for problem in await serious_violations(page, iframes=False)
                    ]
    assert found == []


async def test_hostile_values_execute_nothing_and_load_nothing_in_any_view(tmp_path: Path, chromium: Browser) -> None:
    harm: list[str] = []
    async with elsewhere() as (address, asked), opened_context(chromium, viewport=DESKTOP) as context:
        html = ATTACK.replace("ELSEWHERE", address)
        write(tmp_path, html)
        hostile_template = f"emails/{MARKUP.replace('/', '')}.html"
        (tmp_path / hostile_template).write_text("{% raw %}" + html + "{% endraw %}{{ name }}")
        (tmp_path / f"{hostile_template}.sample.json").write_text(json.dumps({"name": MARKUP, MARKUP: MARKUP}))
        shutil.copy(tmp_path / hostile_template, tmp_path / "emails/attack.html")
        page = await context.new_page()
        page.on("dialog", lambda dialog: harm.append(f"dialog {dialog.message}"))
        page.on("pageerror", lambda error: harm.append(f"error {error}"))
        page.on("download", lambda download: harm.append(f"download {download.url}"))
        context.on("page", lambda other: harm.append(f"page {other.url}"))
        with served(tmp_path) as server:
            site = Site(server.url, tmp_path)
            message = await send(
                server.url,
                subject=MARKUP,
                template=hostile_template,
                context={"name": MARKUP, MARKUP: 1},
                recipients=[f"{NAME} <a@example.test>", f"{NAME} <c@example.test>"],
                sender=f"{NAME} <b@example.test>",
                reply_to=f"{NAME} <r@example.test>",
                headers={"X-Campaign": MARKUP},
                attachments=[
                    {"content": "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
                     "filename": f"{MARKUP}.svg", "mimetype": "image/svg+xml"},
                    {"content": html, "filename": f"{MARKUP}.html", "mimetype": "text/html"},
                    {"content": html, "filename": f"{MARKUP}.xml", "mimetype": "application/xhtml+xml"},
                ],
            )  # fmt: skip
            one = f"{site.inbox}{message}"
            edited = json.dumps({"name": MARKUP, MARKUP: [MARKUP]})
            for name, view in {
                "list": site.inbox,
                "chips": f"{site.inbox}?{urlencode({'q': f'from:{MARKUP} -to:{MARKUP} is:{MARKUP} {MARKUP}'})}",
                "mailer": f"{site.inbox}?{urlencode({'mailer': MARKUP})}",
                "message and origin": one,
                "dark": f"{one}?theme=dark",
                "inverted": f"{one}?theme=inverted&width=phone",
                "HTML source": f"{one}?view=markup",
                "text": f"{one}?view=text",
                "headers": f"{one}?view=headers",
                "source": f"{one}?view=source",
                "check": f"{one}?view=check",
                "inside a search": f"{one}?{urlencode({'q': MARKUP})}",
                "alone": f"{one}/html?theme=dark",
                "plain source": f"{one}/source",
                "text of an attachment": f"{one}/attachments/1/text",
                "markup of an attachment": f"{one}/attachments/2/text",
                "copy": f"{one}/release",
                "API page": f"{site.inbox}api?{MARKUP}",
                "API": f"{site.inbox}api/messages/{message}",
                "error of the API": f"{site.inbox}api/messages?{quote(MARKUP)}={quote(MARKUP)}",
                "no page": f"{site.inbox}{quote(MARKUP)}",
                "failed": f"{site.inbox}failed?{urlencode({'retried': MARKUP})}",
                "templates": f"{site.inbox}templates",
                "template of a hostile name": site.template(hostile_template),
                "template": site.template("emails/attack", theme="dark"),
                "values": site.template("emails/attack", view="values", values=edited),
                "wrong values": site.template("emails/attack", values=MARKUP),
                "template check": site.template("emails/attack", view="check"),
                "template alone": site.template("emails/attack").replace("/templates/", "/template-html/"),
                "preview": site.preview("attacks", theme="dark"),
                "preview text": site.preview("attacks", view="text"),
                "preview check": site.preview("attacks", view="check"),
                "preview alone": site.preview("attacks").replace("/previews/", "/preview-html/"),
                "variant": site.preview("attacks", variant=MARKUP, theme="inverted"),
                "edited preview": site.preview("attacks", **{"value-name": f"{MARKUP}'", f"value-{MARKUP}": MARKUP}),
                "wrong value": site.preview("order", **{"value-items": MARKUP}),
                "no preview": site.preview(quote(MARKUP)),
            }.items():
                await page.goto(view, wait_until="load")
                if name == "message and origin":
                    await expect(page.locator(".origin a")).to_have_text(hostile_template)
                title = await page.evaluate("[document.title, document.querySelectorAll('img[src=x]').length]")
                alone = "alone" in name
                harm += [] if alone or (title == [title[0], 0] and "pwned" not in title[0]) else [f"{name}: {title}"]
                harm += [] if page.url.split("#")[0].startswith(view.split("?")[0][:40]) else [f"{name}: {page.url}"]
            await page.goto(f"{one}/release")
            await page.get_by_label("To").evaluate("field => field.type = 'text'")
            await page.get_by_label("To").fill(f"{MARKUP}@x")
            await page.get_by_role("button", name="Send copy").click()
            await expect(page.get_by_role("alert")).to_be_visible()
            await page.goto(site.preview("attacks"))
            await page.frame_locator("iframe").locator("#go").click(force=True)
            await page.frame_locator("iframe").get_by_role("link", name="y").click(force=True)
            await expect(page.get_by_role("heading", level=1).first).to_have_text(MARKUP)
            assert httpx.get(f"{site.inbox}api/messages").json()["messages"] != []
        assert harm == []
        assert asked == []


async def send(url: str, **message: Any) -> str:
    """Send a message; return its key."""
    async with httpx.AsyncClient(timeout=PATIENCE) as client:
        (await client.post(f"{url}/send", json=message)).raise_for_status()
        wanted = {"state": "delivered", "subject": message["subject"]}
        key: str = (await client.get(f"{url}/_mail/api/messages/wait", params=wanted)).raise_for_status().json()["key"]
        return key
