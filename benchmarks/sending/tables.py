"""Format results as Markdown tables."""

import statistics
from pathlib import Path
from typing import Any

from wire import BULK, OWN, RECIPIENTS, SCENARIOS, UVLOOP, Scenario

__all__ = ["markdown", "page", "put_below"]

Run = dict[str, Any]

_COLUMNS = ["sender", "messages/s", "spread", "times", "round trips", "CPU s per 1,000", "peak memory, MB"]


def page(measured: dict[str, Any]) -> str:
    """Return all tables of one Python version."""
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    loads = [run["load"] for senders in measured["runs"].values() for runs in senders.values() for run in runs]
    load = f"load average {min(loads):.1f} to {max(loads):.1f}" if loads else "load average not taken"
    when = f"{measured['began']}, {measured['minutes']:.0f} minutes"
    texts = [f"{when}; {measured['machine']}; {load}; {measured['rounds']} rounds.", f"{versions}."]
    for scenario in SCENARIOS:
        runs = measured["runs"].get(scenario.name)
        if runs:
            texts.append(f"### {scenario.title}\n\n{_table(scenario, runs)}")
    if any(scenario.name in measured["runs"] for scenario in RECIPIENTS):
        texts.append(f"### 20 ms delay, one connection; neither, several recipients\n\n{_recipients(measured['runs'])}")
    if "parts" in measured:
        texts.append(f"### By itself\n\n{_own(measured)}")
    return "\n\n".join(texts)


def _table(scenario: Scenario, runs: dict[str, list[Run]]) -> str:
    if scenario.attachment:
        head = ["sender", "seconds each", "spread", "times", "peak memory, MB", "in attachments", "longest hold, ms"]
        rows = [_heavy_row(sender, of_sender, runs) for sender, of_sender in runs.items()]
    else:
        head = _COLUMNS
        rows = [_row(sender, of_sender, runs) for sender, of_sender in runs.items()]
    return markdown(head, rows)


def _recipients(everything: dict[str, dict[str, list[Run]]]) -> str:
    rows = [
        [str(scenario.recipients), *_row(sender, of_sender, everything[scenario.name])[:6]]
        for scenario in RECIPIENTS
        for sender, of_sender in everything.get(scenario.name, {}).items()
    ]
    return markdown(["recipients", *_COLUMNS[:6]], rows)


def _row(sender: str, runs: list[Run], everyone: dict[str, list[Run]]) -> list[str]:
    rates = [run["rate"] for run in runs]
    return [
        sender,
        _number(statistics.median(rates)),
        f"{_number(min(rates))} to {_number(max(rates))}",
        _times(sender, rates, everyone),
        f"{_median(runs, 'flights_per_message'):.2f}",
        f"{_median(runs, 'cpu_per_1000'):.3f}",
        f"{_median(runs, 'peak_mb'):.0f}",
    ]


def _heavy_row(sender: str, runs: list[Run], everyone: dict[str, list[Run]]) -> list[str]:
    seconds = [1 / run["rate"] for run in runs]
    holds = [run["longest_hold_ms"] for run in runs if "longest_hold_ms" in run]
    growth = _median(runs, "peak_growth_mb")
    return [
        sender,
        f"{statistics.median(seconds):.2f}",
        f"{min(seconds):.2f} to {max(seconds):.2f}",
        _times(sender, [run["rate"] for run in runs], everyone),
        f"{_median(runs, 'peak_mb'):.0f}",
        f"{growth / 25:.2f}",
        f"{statistics.median(holds):.0f}" if holds else "",
    ]


def _times(sender: str, rates: list[float], everyone: dict[str, list[Run]]) -> str:
    """Return by how many times this component is faster than ``sender``."""
    if sender in (OWN, UVLOOP, *BULK) or OWN not in everyone:
        return ""
    return f"{_median(everyone[OWN], 'rate') / statistics.median(rates):.1f}"


def _own(measured: dict[str, Any]) -> str:
    parts, imported, responses = measured["parts"], measured["import"], measured["responses"]
    rows = [
        ["`serialise`, the message of the tables", f"{parts['serialise']:.0f} µs"],
        ["`send_email` to a backend that does nothing", f"{parts['send_email']:.0f} µs"],
        ["the same without `serialise`", f"{parts['send_email'] - parts['serialise']:.0f} µs"],
        ["`prepare` (part of that)", f"{parts['prepare']:.0f} µs"],
        ["text from an HTML newsletter of 30 kB", f"{parts['html_to_text'] / 1000:.2f} ms"],
        ["`import openviper.core.email`", f"{imported['whole']:.0f} ms"],
        ["of this, without importing the packages that it depends on", f"{imported['above']:.0f} ms"],
        ["of this, in its own modules alone", f"{imported['above_modules']:.0f} ms"],
    ]
    if imported["too_early"]:
        rows.append(["loads, but should not", ", ".join(imported["too_early"])])
    for name in ("without", "with"):
        times = responses[name]
        rows.append([f"response {name} mail, 100 requests/s", f"p50 {times['p50']:.2f} ms, p99 {times['p99']:.2f} ms"])
    return markdown(["what", "measured"], rows)


def _median(runs: list[Run], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def put_below(heading: str, text: str, document: Path) -> None:
    """Replace the section below ``heading`` in ``document``."""
    before, found, rest = document.read_text(encoding="utf-8").partition(f"{heading}\n")
    if not found:
        raise SystemExit(f"{document}: has no heading {heading!r}; add it")
    _, next_heading, after = rest.partition("\n## ")
    document.write_text(f"{before}{heading}\n\n{text}\n{next_heading}{after}", encoding="utf-8")
