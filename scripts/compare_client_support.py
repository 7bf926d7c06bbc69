#!/usr/bin/env python3
"""Compare what lint finds with the npm package caniemail: ``.venv/bin/python scripts/compare_client_support.py``.

Prints, for each of the fixtures, what only one of the two reports, with the reason where it is known, and exits with 1
if a difference has none. ``--renew`` runs the package with node (in the version of the vendored data, which npm
fetches) and stores its answers, with which a test compares; without it nothing is fetched or run.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from openviper.core.email.lint.support import load_support
from openviper.core.email.lint.uses import find_uses

__all__ = ["ANSWERS", "FIXTURES", "REASONS", "Difference", "differences", "explain", "main"]

_DATA = Path(__file__).parents[1] / "tests" / "data"
ANSWERS = _DATA / "client_support" / "npm.json"
REASONS = _DATA / "client_support" / "differences.json"

_NEWSLETTERS = """
    bootstrap-alert bootstrap-button bootstrap-lyft bootstrap-product-hunt bootstrap-table django-simple-mail
    django-templated-email-md foundation-basic foundation-hero foundation-marketing foundation-newsletter
    foundation-order foundation-password foundation-sidebar-hero mailgen-cerberus-receipt mailgen-default-welcome
    mailgen-neopolitan-receipt mailgen-salted-receipt mails-default-hero mails-default-newsletter
    react-email-notion-magic-link react-email-plaid-verify-identity react-email-stripe-welcome
    react-email-vercel-invite-user
"""
FIXTURES = {
    path.stem: path
    for path in [
        *sorted((_DATA / "client_support").glob("*.html")),
        *(_DATA / "newsletters" / f"{name}.html" for name in _NEWSLETTERS.split()),
    ]
}
# The package raises an error for a client that was not tested for a feature; these were tested for all.
_CLIENTS = """
    apple-mail.ios apple-mail.macos gmail.android gmail.desktop-webmail outlook.android outlook.ios outlook.outlook-com
    outlook.windows yahoo.desktop-webmail
"""
_PROGRAM = """
import { caniemail, rawData } from "caniemail";
import { readFileSync } from "node:fs";
const [clients, files] = JSON.parse(readFileSync(0, "utf8"));
const slugs = new Map(rawData.data.map((feature) => [feature.title, feature.slug]));
const answers = {};
for (const [name, file] of Object.entries(files)) {
  const { issues } = caniemail({ clients, html: readFileSync(file, "utf8") });
  const found = {};
  for (const [letter, kind] of [["n", issues.errors], ["a", issues.warnings]])
    for (const [client, list] of kind.entries())
      for (const { title } of list) (found[slugs.get(title)] ??= {})[client] = letter;
  answers[name] = found;
}
process.stdout.write(JSON.stringify(answers));
"""


class Difference(NamedTuple):
    """A feature for which lint and the package differ in a fixture: clients and support that only one reports."""

    fixture: str
    feature: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


def differences() -> Iterator[Difference]:
    """Yield the differences from the stored answers of the package."""
    stored = json.loads(ANSWERS.read_text(encoding="utf-8"))
    for name, path in FIXTURES.items():
        ours = _ours(path.read_text(encoding="utf-8"))
        theirs = {
            slug: {f"{client} {letter}" for client, letter in clients.items()}
            for slug, clients in stored["answers"][name].items()
        }
        for slug in sorted({*ours, *theirs}):
            here, there = ours.get(slug, set()), theirs.get(slug, set())
            if here != there:
                yield Difference(name, slug, tuple(sorted(here - there)), tuple(sorted(there - here)))


def explain(difference: Difference) -> str | None:
    """Return why the two differ; None if that is not known, or known for the other side only."""
    side, reason = json.loads(REASONS.read_text(encoding="utf-8")).get(difference.feature, ("", ""))
    sides = {"ours": difference.ours, "theirs": difference.theirs}
    reporting = [name for name, clients in sides.items() if clients]
    return reason if side == "both" or reporting == [side] else None


def _ours(html: str) -> dict[str, set[str]]:
    """Return the clients that lack each used feature or support it in part, before lint judges what readers lose."""
    data = load_support()
    found: dict[str, set[str]] = {}
    for slug in {use.feature for use in find_uses(html, {})}:
        support = data.features[slug].support
        clients = {f"{client} {support[client]}" for client in _CLIENTS.split() if support[client] in "an"}
        if clients:
            found[slug] = clients
    return found


def _renew() -> None:
    version = load_support().version
    with TemporaryDirectory() as folder:
        program = Path(folder) / "answers.mjs"
        program.write_text(_PROGRAM)
        commands = (["npm", "install", "--silent", "--no-audit", f"caniemail@{version}"], ["node", program.name])
        question = json.dumps([_CLIENTS.split(), {name: str(path) for name, path in FIXTURES.items()}])
        for command in commands:
            done = subprocess.run(command, cwd=folder, input=question, capture_output=True, text=True, check=True)  # noqa: S603
    answers = json.loads(done.stdout)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(answers[name], sort_keys=True)}" for name in sorted(answers))
    ANSWERS.write_text(f'{{"version": "{version}", "answers": {{\n{lines}\n}}}}\n', encoding="utf-8")


def main() -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--renew", action="store_true", help="run the npm package and store its answers")
    if parser.parse_args().renew:
        _renew()
    found = list(differences())
    for difference in found:
        only = {"ours": difference.ours, "theirs": difference.theirs}
        who = "; ".join(f"{side}: {', '.join(clients)}" for side, clients in only.items() if clients)
        reason = explain(difference) or "NOT EXPLAINED"
        sys.stdout.write(f"{difference.fixture}: {difference.feature}: {who}\n    {reason}\n")
    unexplained = sum(explain(difference) is None for difference in found)
    sys.stdout.write(f"{len(FIXTURES)} fixtures, {len(found)} differences, {unexplained} of them not explained\n")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
