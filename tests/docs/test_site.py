"""The documentation as a site: it builds without a warning, leads nowhere wrong, and needs no other host."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
import yaml
from playwright.async_api import Browser, Page, ViewportSize, expect
from selectolax.lexbor import LexborHTMLParser
from support.browser import VIEWPORTS, chromium, needs_chromium, opened_context, serious_violations
from support.documents import ROOT
from support.patience import PATIENCE

__all__ = ["chromium"]


def build(sources: Path, site: Path) -> "subprocess.CompletedProcess[str]":
    """What ``scripts/docs`` does, for the sources in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=sources,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, just built."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> list[Path]:
    return sorted(site.glob("*.html"))


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def test_every_page_of_the_docs_is_a_page_of_the_site(pages: list[Path]) -> None:
    sources = {path.stem for path in ROOT.glob("docs/*.md")}
    assert {path.stem for path in pages} == sources | {"404"}


def test_the_settings_of_the_site_are_those_that_zensical_reads() -> None:
    """It reads all of mkdocs.yml but these, and replaces some plug-ins, of which the search is one."""
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert settings.keys() & {"hooks", "remote_branch", "remote_name", "validation"} == set()
    assert settings["plugins"] == ["search"]


def test_every_link_of_the_site_leads_to_a_page_and_an_anchor_of_it(site: Path, pages: list[Path]) -> None:
    parsed = {path.name: LexborHTMLParser(path.read_text()) for path in pages if path.stem != "404"}
    anchors = {name: {node.attributes["id"] for node in page.css("[id]")} for name, page in parsed.items()}
    wrong, count = [], 0
    for name, page in parsed.items():
        for node in page.css("main a[href]"):
            target = urlsplit(node.attributes["href"] or "")
            if target.scheme:
                continue
            count += 1
            linked = target.path or name
            if not (site / linked).is_file() or (target.fragment and target.fragment not in anchors[linked]):
                wrong.append(f"{name}: {node.attributes['href']}")
    assert wrong == []
    assert count > 500


def test_nothing_of_the_site_is_loaded_from_elsewhere(site: Path, pages: list[Path]) -> None:
    """Links may lead to other hosts; what a page loads may not come from there."""
    loaded = []
    for path in pages:
        for node in LexborHTMLParser(path.read_text()).css("[src], [srcset], link[href], object[data], form[action]"):
            names = ("src", "srcset", "data", "action", *(["href"] if node.tag == "link" else []))
            loaded += [f"{path.name}: {node.attributes[name]}" for name in names if node.attributes.get(name)]
    for path in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import )[^);]{0,80}", path.read_text())
        loaded += [f"{path.name}: {address}" for address in found]
    assert len(loaded) > 100
    assert [address for address in loaded if re.search(r"//(?!www\.w3\.org/)", address)] == []


# What a user types into the search, and the page that has the answer.
SEARCHES = {
    "gmail": "providers",
    "microsoft 365": "providers",
    "amazon ses": "providers",
    "postmark": "providers",
    "mailgun": "providers",
    "sendgrid": "providers",
    "brevo": "providers",
    "resend": "providers",
    "oauth2": "providers",
    "app password": "troubleshooting",
    "535": "troubleshooting",
    "starttls": "settings",
    "connection refused": "troubleshooting",
    "certificate verify failed": "troubleshooting",
    "port 587": "troubleshooting",
    "timed out": "troubleshooting",
    "spam": "troubleshooting",
    "slow": "troubleshooting",
    "arrives twice": "troubleshooting",
    "troubleshooting": "troubleshooting",
    "dkim": "howto-dkim",
    "outlook": "client-support",
    "dark mode css": "client-features",
    "lint templates": "client-support",
    "caniemail": "client-support",
    "gmail clips": "client-support",
    "alternative text": "client-support",
    "webp outlook": "client-support",
    "css gmail": "client-features",
    "spf": "howto-dkim",
    "dmarc": "howto-dkim",
    "webhook": "howto-bounces",
    "bounce": "howto-bounces",
    "complaint": "howto-bounces",
    "unsubscribe": "howto-unsubscribe",
    "newsletter": "howto-newsletter",
    "password reset": "howto-password-reset",
    "confirmation link": "howto-confirmation",
    "pdf": "howto-invoice",
    "upload": "howto-uploads",
    "calendar": "invitations",
    "attachment": "attachments",
    "inline image": "attachments",
    "kubernetes": "howto-kubernetes",
    "docker": "howto-mailpit",
    "mailhog": "index",
    "celery": "index",
    "systemd": "production",
    "postgresql": "howto-postgres",
    "alembic": "outbox",
    "redis": "queue",
    "rabbitmq": "queue",
    "retry": "queue",
    "schedule": "queue",
    "worker": "production",
    "rate limit": "production",
    "failover": "mailers",
    "staging": "staging",
    "idempotency": "keys",
    "duplicate": "keys",
    "rollback": "transactions",
    "sqlalchemy": "transactions",
    "pytest": "howto-testing",
    "unittest": "testing",
    "playwright": "howto-playwright",
    "end-to-end": "howto-playwright",
    "preview": "inbox",
    "jinja": "messages",
    "markdown": "messages",
    "html": "messages",
    "bcc": "messages",
    "json api": "inbox-api",
    "search mail": "inbox",
    "keyboard": "inbox",
    "unread": "inbox",
    "inbox page": "inbox",
    "inbox_dir": "inbox",
    "search operators": "inbox",
    "has:attachment": "inbox",
    "is:unread": "inbox",
    "send a copy": "inbox",
    "send again": "inbox",
    "timeline": "inbox",
    "dark mode": "inbox",
    "dark mode preview": "inbox",
    "keyboard shortcuts": "inbox",
    "previews in code": "inbox",
    "sample.json": "inbox",
    "template preview": "inbox",
    "mailpit": "howto-mailpit",
    "inbox api": "inbox-api",
    "api/messages/wait": "inbox-api",
    "cursor": "inbox-api",
    "inbox.wait": "howto-playwright",
    "playwright inbox.wait": "howto-playwright",
    "parallel tests": "end-to-end",
    "new_address": "howto-playwright",
    "confirmation code in a test": "howto-playwright",
    "email lint": "client-support",
    "target_clients": "client-support",
    "outlook css": "client-features",
    "alt text": "client-support",
    "django": "from-django",
    "flask-mail": "from-flask-mail",
    "fastapi-mail": "from-fastapi-mail",
    "smtplib": "from-smtplib",
    "nodemailer": "index",
    "header injection": "security",
    "lgpl": "design",
    "opentelemetry": "tracing",
    "prometheus": "metrics",
    "tracing": "tracing",
    "span": "tracing",
    "grafana": "metrics",
    "queue depth": "metrics",
    "erase": "howto-find",
    "gdpr": "howto-find",
    "journal": "howto-find",
    "where is this mail": "howto-find",
    "one-click": "howto-unsubscribe",
    "list-unsubscribe": "howto-unsubscribe",
    "health": "health",
    "readiness": "health",
    "load balancer": "health",
    "dsn": "messages",
    "delivery status notification": "messages",
    "delivery log": "production",
    "structured log": "production",
    "smtp dialogue": "queue",
    "ed25519": "howto-dkim",
    "environment variable": "settings",
    "async": "start-fastapi",
}


# What a reader with a task types, and the page that the theme's own search lists first. It finds any of the words,
# and those of titles first. No two neighbours have the same page, so an earlier result cannot stand for a later one.
FIRST_FOUND = {
    "send email fastapi": "start-fastapi",
    "html email": "messages",
    "first email": "start-fastapi",
    "forgot password": "howto-password-reset",
    "attach pdf": "howto-invoice",
    "send email after commit": "transactions",
    "send a newsletter": "howto-newsletter",
    "one-click unsubscribe": "howto-unsubscribe",
    "migrate from fastapi-mail": "from-fastapi-mail",
    "mail stuck in queue": "troubleshooting",
    "gmail smtp": "providers",
    "email not arriving": "troubleshooting",
    "outlook": "providers",
    "dkim own server": "howto-dkim",
    "smtp settings": "providers",
    "test emails": "howto-testing",
    "postgres queue": "howto-postgres",
    "send email later": "queue",
    "not received": "troubleshooting",
    "send_at": "queue",
    "complaints": "howto-bounces",
    "schedule email": "queue",
    "crash": "outbox",
    "without redis": "howto-postgres",
    # The theme takes "-9" for "without 9": the page must be found by "kill", and have no "9" before its first heading.
    "kill -9": "outbox",
    "health check": "health",
    "kill -9 worker": "outbox",
    "bulk email": "bulk",
    "docker": "howto-mailpit",
    "verify email": "howto-confirmation",
    "fastapi-mail": "from-fastapi-mail",
    "email not sent": "troubleshooting",
    "inbox page": "inbox",
    "playwright": "howto-playwright",
    "search operators": "inbox",
    "inbox json api": "inbox-api",
    "caniemail": "client-features",
}


@pytest.fixture(scope="module")
def index(site: Path) -> list[dict[str, Any]]:
    """The index that the build has written for the search: sections of pages, each with location, title and text."""
    sections = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    return [{**section, "text": re.sub(r"<[^>]+>", " ", section["text"])} for section in sections]


def found_pages(index: list[dict[str, Any]], words: str) -> list[str]:
    """Return the pages that have all the words, at the beginning of theirs, those with them in a title first.

    Like the theme's search: titles count for more than text, and within a text it is the share of the words.
    """
    scores: dict[str, float] = {}
    for section in index:
        page = section["location"].partition(".html")[0] or "index"
        title, text = section["title"].casefold(), section["text"].casefold()
        found = [
            (len(re.findall(rf"\b{re.escape(word)}", title)), len(re.findall(rf"\b{re.escape(word)}", text)))
            for word in re.split(r"[\s-]+", words)
        ]
        if all(in_title or in_text for in_title, in_text in found):
            share = sum(1000 * in_title + in_text for in_title, in_text in found) / (1 + len(text.split()) ** 0.5)
            scores[page] = max(scores.get(page, 0), share)
    return sorted(scores, key=lambda page: -scores[page])


@pytest.mark.parametrize("words", SEARCHES)
def test_the_search_finds_the_page_that_has_the_answer(index: list[dict[str, Any]], words: str) -> None:
    assert SEARCHES[words] in found_pages(index, words)[:4]


async def shorten_index(page: Page, site: Path) -> None:
    """Give the page one section to search: each page reads the index when it is opened, at more cost than all else."""
    index = json.loads(await asyncio.to_thread((site / "search" / "search_index.json").read_text))
    index["docs"] = index["docs"][:1]
    await page.route("**/search/search_index.json", lambda route: route.fulfill(json=index))


@needs_chromium
@pytest.mark.parametrize("viewport", VIEWPORTS)
async def test_every_page_can_be_read_in_a_browser(
    url: str, site: Path, pages: list[Path], chromium: Browser, viewport: ViewportSize
) -> None:
    problems: list[str] = []
    async with opened_context(chromium, viewport=viewport) as context:
        page = await context.new_page()
        await shorten_index(page, site)
        page.on("request", lambda request: problems.append(request.url) if not request.url.startswith(url) else None)
        page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        for path in pages:
            await page.goto(url + path.name, wait_until="load")
            problems += [f"{path.name}: {problem}" for problem in await look_at(page)]
    assert problems == []


async def look_at(page: Page) -> list[str]:
    """What is wrong with the page that is open: pictures that are missing or say nothing, and its width."""
    return list(
        await page.evaluate("""() => [
            ...[...document.images].filter(image => !image.naturalWidth).map(image => `missing: ${image.src}`),
            ...[...document.images].filter(image => !image.hasAttribute("alt")).map(image => `mute: ${image.src}`),
            ...(document.documentElement.scrollWidth > innerWidth ? ["it scrolls sideways"] : []),
        ]""")
    )


# The search is a dialog without a name in the theme itself.
RULES = {"rules": {"aria-dialog-name": {"enabled": False}}}


@needs_chromium
async def test_axe_finds_nothing_serious_on_the_site(url: str, site: Path, chromium: Browser) -> None:
    found = []
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    async with opened_context(chromium) as context:
        page = await context.new_page()
        await shorten_index(page, site)
        for name in ("index", "troubleshooting", "howto-newsletter", "production"):  # tables, pictures, kinds of code
            for scheme in schemes:
                await page.emulate_media(color_scheme=scheme)
                await page.goto(f"{url}{name}.html")
                found += [f"{name}, {scheme}: {violation}" for violation in await serious_violations(page, **RULES)]
    assert found == []


@needs_chromium
async def test_the_search_of_the_site_lists_the_right_page_first(url: str, chromium: Browser) -> None:
    async with opened_context(chromium) as context:
        page = await context.new_page()
        await page.goto(url)
        box = page.get_by_role("textbox", name="Search")
        found = page.locator(".md-search-result__item a").first
        for words, name in FIRST_FOUND.items():
            await box.fill(words)
            await box.press("End")  # the theme listens to keys
            await expect(found).to_have_attribute("href", re.compile(rf"/{name}\.html"))


@needs_chromium
async def test_the_search_finds_a_page_without_another_host(url: str, chromium: Browser) -> None:
    async with opened_context(chromium) as context:
        page = await context.new_page()
        await page.goto(url)
        await page.get_by_role("textbox", name="Search").fill("KillMode")
        await expect(page.get_by_role("link", name="systemd").first).to_be_visible()
