#!/usr/bin/env python3
"""Write docs/client-features.md from the data on mail clients: ``.venv/bin/python scripts/client_features.py``."""

import sys
from pathlib import Path

from openviper.core.email.lint.support import DETECTED, WITHOUT_DETECTOR, WITHOUT_EFFECT, Feature, load_support
from openviper.core.email.settings.mail_clients import DEFAULT_CLIENTS

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parents[1] / "docs" / "client-features.md"

_SECTIONS = {"html-": "HTML", "css-": "CSS", "image-": "Images"}


def page() -> str:
    """Return the whole page."""
    data = load_support()
    written = (
        "<!-- Written by scripts/client_features.py from the data of the package; renew them with "
        "scripts/client_support.py. -->"
    )
    introduction = (
        "These are the features of HTML, CSS and images that [lint](client-support.md) knows, and the clients among "
        f"the default `target_clients` that lack them. The data comes from caniemail.com and is dated {data.date} "
        f"(npm package `caniemail` {data.version}, MIT licence). It has {len(data.features)} features; lint detects "
        f"{len(DETECTED)} of them."
    )
    lines = [
        "# Features and mail clients",
        "",
        written,
        "",
        introduction,
        "",
        "## Not found or not reported",
        "",
        "| feature | check | reason |",
        "|---|---|---|",
        *(
            f"| {_title(data.features[slug])} | `{slug}` | not found: {reason} |"
            for slug, reason in WITHOUT_DETECTOR.items()
        ),
        *(
            f"| {_title(data.features[slug])} | `{slug}` | not reported: {reason} |"
            for slug, reason in WITHOUT_EFFECT.items()
        ),
    ]
    for prefix, heading in _SECTIONS.items():
        lines += ["", f"## {heading}", "", "| feature | check | not supported by | tested |", "|---|---|---|---|"]
        lines += [
            f"| {_title(feature)} | `{slug}` | {_lacking(feature)} | {feature.tested} |"
            for slug, feature in sorted(data.features.items())
            if slug.startswith(prefix) and slug in DETECTED and slug not in WITHOUT_EFFECT
        ]
    return "\n".join([*lines, ""])


def _title(feature: Feature) -> str:
    return f"`{feature.title}`" if "<" in feature.title else feature.title.replace("*", "\\*")


def _lacking(feature: Feature) -> str:
    data = load_support()
    targeted = data.matching(DEFAULT_CLIENTS)
    words = [
        f"{said}{data.describe(found, feature.untested())}"
        for said, letter in (("", "n"), ("in part: ", "a"))
        if (found := [client for client in targeted if feature.support[client] == letter])
    ]
    return "; ".join(words) or "none of them"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}: {len(page().splitlines())} lines\n")
