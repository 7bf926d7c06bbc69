#!/usr/bin/env python3
"""Write the tables of docs/inbox-api.md and docs/inbox.md: ``.venv/bin/python scripts/inbox_api.py``."""

import re
from collections.abc import Iterable
from pathlib import Path

from openviper.core.email.inbox.api_reference import ROUTES, TABLES
from openviper.core.email.inbox.query import OPERATORS

DOCS = Path(__file__).parents[1] / "docs"

_MARK = "<!-- Written by scripts/inbox_api.py: {} -->"


def tables() -> dict[str, dict[str, str]]:
    """Return each page's tables by name, as Markdown."""
    routes = {f"`{route.method} /_mail{route.below}`": route.answer for route in ROUTES}
    return {
        "inbox-api.md": {
            "routes": _table(("route", "answer"), routes.items()),
            **{table.title: _table(table.columns, _named(table.rows.items())) for table in TABLES},
        },
        "inbox.md": {
            "operators": _table(("operator", "matches"), ((f"`{name}:`", what) for name, what in OPERATORS.items()))
        },
    }


def page(name: str) -> str:
    """Return the page with its tables as they should be."""
    text = (DOCS / name).read_text(encoding="utf-8")
    for title, table in tables()[name].items():
        before, mark, after = text.partition(f"{_MARK.format(title)}\n\n")
        if not mark:
            raise SystemExit(f"docs/{name} needs the line {_MARK.format(title)}")
        text = before + mark + table + re.sub(r"\A(?:\|.*\n)*", "", after)
    return text


def _named(rows: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    return ((", ".join(f"`{name}`" for name in names.split(", ")), meaning) for names, meaning in rows)


def _table(columns: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {columns[0]} | {columns[1]} |", "|---|---|", *(f"| {name} | {what} |" for name, what in rows)]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    for name in tables():
        (DOCS / name).write_text(page(name), encoding="utf-8")
