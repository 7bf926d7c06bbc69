"""``viperctl email lint``: check a project's templates for what readers would miss, as in CI."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import click

from openviper.cli.email_queue import project_option
from openviper.cli.options import settings_option
from openviper.cli.project import enter_project
from openviper.terminal import colour, escape
from openviper.text import counted

if TYPE_CHECKING:
    from openviper.core.email.inbox.lint import LintReport
    from openviper.core.email.lint import LintFinding
    from openviper.core.email.settings import EmailSettings

__all__ = ["lint"]

_COLOURS = {"problem": "red", "note": "yellow"}
_INDENT = " " * 10
_WIDTH = 79


@click.command()
@click.argument("templates", metavar="[TEMPLATE]...", nargs=-1)
@project_option
@click.option(
    "--fail-on",
    type=click.Choice(["problem", "note"]),
    default="problem",
    show_default=True,
    help="Lowest level of a finding that makes the exit status 1.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@settings_option
def lint(templates: Sequence[str], path: Path, fail_on: str, as_json: bool, settings: str | None) -> None:
    """Check all mail templates, or those named: errors, bodies, images, links, and what mail clients support.

    Templates are rendered with the values of <template>.sample.json, and sample values; previews in code are checked
    with all their variants, and named as the inbox page names them. A problem is content that is lost or cannot be
    read; a note is about what some readers see less well. Sends nothing and asks no server.

    Exits with 1 if there is a problem, or with --fail-on note any finding.
    """
    from openviper.core.email.settings import EmailSettings

    enter_project(path, settings_module=settings).load_settings()
    email = EmailSettings.from_settings()
    of_templates, of_previews, parts = asyncio.run(_lint(templates, email))
    reports = of_templates | of_previews
    if not reports:
        raise click.ClickException("there are no templates: set TEMPLATES_DIR, or name the project with --project")
    if as_json:
        _print_json(reports, email)
    else:
        _print_lines(reports)
        checked = [counted(len(of_templates), "template")] if of_templates else []
        checked += [counted(len(of_previews), "preview")] if of_previews else []
        problems, notes = _totals(reports)
        click.echo(f"{counted(problems, 'problem')} and {counted(notes, 'note')} in {' and '.join(checked)}")
        if parts:
            click.echo(f"Checked only within other templates: {escape(', '.join(parts))}", err=True)
    levels = {finding.level for report in reports.values() for finding in _findings(report)}
    sys.exit(1 if "problem" in levels or (fail_on == "note" and levels) else 0)


async def _lint(
    templates: Sequence[str], email: "EmailSettings"
) -> tuple[dict[str, "LintReport"], dict[str, "LintReport"], list[str]]:
    """Return the reports on templates and on previews in code, and the templates that are only parts of others."""
    from openviper.core.email.delivery import Mailer
    from openviper.core.email.inbox.lint import lint_previews, lint_template, templates_to_lint
    from openviper.core.email.inbox.previews import preview

    mailer = Mailer(email)
    renderer = mailer.renderer
    previews = await lint_previews(mailer, templates)
    named = [name for name in templates if name not in previews]
    names, parts = (named, []) if templates else templates_to_lint(renderer)
    reports = {name: lint_template(await preview(renderer, name), email.target_clients) for name in names}
    return reports, previews, parts


def _findings(report: "LintReport") -> list["LintFinding"]:
    return [*report.findings, *report.client_notes]


def _totals(reports: dict[str, "LintReport"]) -> tuple[int, int]:
    """Return the numbers of problems and of notes."""
    levels = [finding.level for report in reports.values() for finding in _findings(report)]
    return levels.count("problem"), levels.count("note")


def _print_lines(reports: dict[str, "LintReport"]) -> None:
    first: dict[tuple[tuple[str, str], ...], str] = {}
    for name, report in reports.items():
        findings = _findings(report)
        like = first.setdefault(tuple((finding.title, finding.explanation) for finding in findings), name)
        if findings and like != name:
            click.echo(f"{escape(name)}: same findings as {escape(like)} ({len(findings)})")
            continue
        click.echo(f"{escape(name)}{'' if findings else ': no findings'}")
        for finding in findings:
            level = click.style(f"{finding.level:<7}", fg=_COLOURS[finding.level])
            click.echo(f"  {level} {escape(finding.title)} [{finding.check}]", color=colour())
            at = f" HTML line {', '.join(map(str, finding.lines))}." if finding.lines else ""
            for line in wrap(escape(finding.explanation) + at, _WIDTH - len(_INDENT)):
                click.echo(_INDENT + line)


def _print_json(reports: dict[str, "LintReport"], email: "EmailSettings") -> None:
    from openviper.core.email.lint import support_version

    problems, notes = _totals(reports)
    found = {
        "problems": problems,
        "notes": notes,
        "target_clients": email.target_clients,
        "data": support_version(),
        "templates": [
            {"template": name, "findings": [asdict(finding) for finding in _findings(report)]}
            for name, report in reports.items()
        ],
    }
    click.echo(json.dumps(found, indent=2))
