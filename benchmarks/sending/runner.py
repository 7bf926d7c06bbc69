"""Measure this component and its peers in turn, and print the tables of docs/performance.md (``benchmarks/run``)."""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from content import write_content, write_newsletter
from environments import BUILD, Environments, python_named
from own import import_cost, parts, responses
from tables import page, put_below
from wire import BULK, NODEMAILER, OLD, RECIPIENTS, SCENARIOS, SENDERS, UVLOOP, Scenario, run_once

ATTACHMENT_BYTES = 25 * 1024 * 1024
_HEAVY_ROUNDS = 3  # of the scenario with the attachment, whose runs are long

Runs = dict[str, dict[str, list[dict[str, Any]]]]


def main() -> None:
    """Run the command line."""
    options = _options()
    BUILD.mkdir(parents=True, exist_ok=True)
    plain, heavy, newsletter = _contents()
    python = python_named(options.python)
    environments = Environments.make(python, python_named(options.old_python) if options.old_python else python)
    measured: dict[str, Any] = {
        "began": time.strftime("%Y-%m-%d %H:%M"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": environments.versions,
        "rounds": options.rounds,
    }
    began = time.monotonic()
    measured["runs"] = {
        scenario.name: _interleaved(
            environments,
            scenario,
            newsletter if scenario.newsletter else heavy if scenario.attachment else plain,
            options,
        )
        for scenario in (*SCENARIOS, *RECIPIENTS)
        if scenario.name in options.scenarios
    }
    if "own" in options.scenarios:
        _say("parts")
        measured["parts"] = parts(environments.own, plain)
        _say("import")
        measured["import"] = import_cost(environments.own, options.rounds * 3)
        _say("responses")
        measured["responses"] = responses(environments, plain, rate=100, count=options.requests)
    measured["minutes"] = (time.monotonic() - began) / 60
    results = BUILD / f"results-{environments.versions['Python']}.json"
    results.write_text(json.dumps(measured, indent=1))
    tables = page(measured)
    print(tables)
    if options.into is not None:
        put_below(f"## Python {environments.versions['Python'].rpartition('.')[0]}", tables, options.into)
    _say(f"all results: {results}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/run", description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter to measure with; default: this one")
    parser.add_argument("--old-python", help="interpreter for openviper 0.1.1; default: the same")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each sender in each scenario")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a run")
    parser.add_argument("--requests", type=int, default=3000, help="requests to each of the two applications")
    parser.add_argument("--into", type=Path, help="Markdown file whose section of this Python gets the tables")
    everyone = (*SENDERS, UVLOOP, *BULK)
    names = [*(scenario.name for scenario in (*SCENARIOS, *RECIPIENTS)), "own"]
    parser.add_argument("--scenarios", nargs="+", choices=names, default=names)
    parser.add_argument("--senders", nargs="+", choices=everyone, default=everyone)
    return parser.parse_args()


def _contents() -> tuple[Path, Path, Path]:
    attachment = BUILD / "attachment.bin"
    if not attachment.exists():
        attachment.write_bytes(os.urandom(ATTACHMENT_BYTES))
    newsletter = write_newsletter(BUILD / "newsletter.json")
    return write_content(BUILD / "message.json"), write_content(BUILD / "message-25mb.json", attachment), newsletter


def _interleaved(
    environments: Environments, scenario: Scenario, content: Path, options: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """Run the senders alternately (A B C, A B C, ...), so that the machine's load affects all equally."""
    missing = {OLD} if environments.old is None else set()
    missing |= {NODEMAILER} if environments.node is None else set()
    senders = [name for name in scenario.senders if name in options.senders and name not in missing]
    runs: dict[str, list[dict[str, Any]]] = {sender: [] for sender in senders}
    scenario = scenario._replace(seconds=options.seconds)
    rounds = min(options.rounds, _HEAVY_ROUNDS) if scenario.attachment else options.rounds
    for number in range(rounds):
        for sender in senders:
            result = run_once(environments, scenario, sender, content)
            runs[sender].append({**result, "load": os.getloadavg()[0]})
            _say(f"{scenario.name} {number + 1}/{rounds} {sender}: {result['rate']:.1f}/s")
    return runs


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
