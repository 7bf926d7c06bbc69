#!/usr/bin/env python3
"""Write docs/llms.txt, the list of all pages for language models: ``.venv/bin/python scripts/llms_txt.py``.

The format is that of llmstxt.org. The sections are those of ``mkdocs.yml``; a page's title and first sentence are read
from the page. The links are relative to the site, as it has no address of its own.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LIST = DOCS / "llms.txt"


def text() -> str:
    """Return the whole list."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    lines = [f"# {site['site_name']}", "", f"> {site['site_description']}", ""]
    for entry in site["nav"]:
        ((section, pages),) = entry.items()
        if isinstance(pages, str):
            section, pages = "Overview", [pages]
        lines += [f"## {section}", "", *map(_line, _files(pages)), ""]
    return "\n".join(lines)


def _files(pages: list[str | dict[str, str]]) -> Iterator[Path]:
    for page in pages:
        yield DOCS / (page if isinstance(page, str) else next(iter(page.values())))


def _line(page: Path) -> str:
    source = page.read_text(encoding="utf-8")
    title = re.search(r"^# (.+)$", source, re.MULTILINE)
    if title is None:
        raise ValueError(f"{page.name}: begin it with a title")
    return f"- [{_plain(title[1])}]({page.stem}.html): {_first_sentence(page.name, source[title.end() :])}"


def _first_sentence(page: str, source: str) -> str:
    """Return the first sentence below a page's title, which says what the page is for."""
    blocks = re.sub(r"<!-- Written by .*?-->", "", source, flags=re.DOTALL).split("\n\n")
    first = next(block for block in map(str.strip, blocks) if block)
    if first[0] in "#<|>!-" or first.startswith("```"):
        raise ValueError(f"{page}: begin it with a sentence that says what it is for")
    return re.split(r"(?<=\.)\s", _plain(" ".join(first.split())))[0].rstrip(":")


def _plain(markdown: str) -> str:
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", markdown).replace("**", "")


if __name__ == "__main__":
    LIST.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"{LIST.relative_to(ROOT)}\n")
