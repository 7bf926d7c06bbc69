"""The documentation as a site: it builds without a warning, leads nowhere wrong, and needs no other host."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, ViewportSize, expect
from selectolax.lexbor import LexborHTMLParser
from support.browser import VIEWPORTS, chromium, needs_chromium, opened_context
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


@pytest.mark.parametrize("fault", ["[x](gone.md)", "[x](queue.md#gone)", "[x](/queue)"])
def test_a_page_that_leads_nowhere_ends_the_build(tmp_path: Path, fault: str) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "index.md").open("a") as page:
        page.write(f"\n{fault}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "gone" in done.stdout or "absolute link" in done.stdout


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


@needs_chromium
@pytest.mark.parametrize("viewport", VIEWPORTS)
async def test_every_page_can_be_read_in_a_browser(
    url: str, pages: list[Path], chromium: Browser, viewport: ViewportSize
) -> None:
    problems: list[str] = []
    async with opened_context(chromium, viewport=viewport) as context:
        page = await context.new_page()
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
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_serious_on_the_site(
    url: str, chromium: Browser, scheme: Literal["light", "dark"]
) -> None:
    found = []
    async with opened_context(chromium, color_scheme=scheme) as context:
        page = await context.new_page()
        for name in ("index", "inbox", "messages", "production"):  # tables, pictures, all languages of code
            await page.goto(f"{url}{name}.html")
            results = await Axe().run(page, options=RULES)
            found += [
                f"{name}: {violation['id']}: {violation['nodes'][0]['html']}"
                for violation in results.response["violations"]
                if violation["impact"] in ("serious", "critical")
            ]
    assert found == []


@needs_chromium
async def test_the_search_finds_a_page_without_another_host(url: str, chromium: Browser) -> None:
    async with opened_context(chromium) as context:
        page = await context.new_page()
        await page.goto(url)
        await page.get_by_role("textbox", name="Search").fill("KillMode")
        await expect(page.get_by_role("link", name="systemd").first).to_be_visible()
        await page.get_by_role("textbox", name="Search").fill("erase")
        await expect(page.get_by_role("link", name="Erase an address").first).to_be_visible()
