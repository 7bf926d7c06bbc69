"""``viperctl email check``: find out whether mail can be sent, and which step fails if not."""

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from openviper.cli.email_queue import project_option
from openviper.cli.options import mailer_option, sender_option, settings_option
from openviper.cli.project import enter_project
from openviper.exceptions import OpenViperError
from openviper.terminal import colour, escape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openviper.core.email.delivery.checks.result import CheckResult

__all__ = ["check", "print_results"]

_WIDTH = 11  # characters of the longest check's name
_LIMIT = 2.5  # seconds; with the start of the process less than five even on a busy machine
_INDENT = 8 + 1 + _WIDTH + 1  # behind status and name
_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}


@click.command()
@project_option
@sender_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=_LIMIT,
    show_default=True,
    help="Seconds for all checks together.",
)
@mailer_option
@settings_option
def check(
    path: Path, sender: str | None, as_json: bool, timeout: float, mailer: str | None, settings: str | None
) -> None:
    """Check settings, mail server, queue, outbox and DNS records, and print remedies. Sends nothing.

    Exits with 0 if no check failed, with 1 if one did, and with 2 if the settings are wrong.
    """
    from openviper.core.email.delivery.checks.result import CheckResult
    from openviper.core.email.delivery.checks.run import check_results
    from openviper.core.email.settings import DEFAULT_MAILER, EmailSettings
    from openviper.tasks import TaskSettings

    project = enter_project(path, settings_module=settings)
    printer = _JsonPrinter() if as_json else _LinePrinter()
    try:
        project.load_settings()
        email = EmailSettings.from_settings().of_mailer(mailer)
        TaskSettings.from_settings()
        results = check_results(email, sender, timeout, module=project.settings, mailer=mailer or DEFAULT_MAILER)
        failed = asyncio.run(_print_all(results, printer))
    except (OpenViperError, click.ClickException) as error:
        text = error.message if isinstance(error, click.ClickException) else str(error)
        printer.add(CheckResult.failed("settings", text, "correct the settings"))
        printer.end(ok=False)
        sys.exit(2)
    printer.end(ok=not failed)
    sys.exit(1 if failed else 0)


class _Printer(Protocol):
    def add(self, result: "CheckResult") -> None: ...

    def end(self, *, ok: bool) -> None: ...


class _LinePrinter:
    """Prints each result at once, in colour only on terminals and never with NO_COLOR."""

    def add(self, result: "CheckResult") -> None:
        status = click.style(f"{result.status:<8}", fg=_COLOURS[result.status])
        first, *more = result.found.splitlines() or [""]
        click.echo(f"{status} {result.check:<{_WIDTH}} {escape(first)}", color=colour())
        for line in more:
            click.echo(f"{'':<{_INDENT}}{escape(line)}")
        if result.remedy:
            click.echo(f"{'':<{_INDENT}}-> {escape(result.remedy)}")

    def end(self, *, ok: bool) -> None:
        pass


class _JsonPrinter:
    def __init__(self) -> None:
        self._checks: list[dict[str, str]] = []

    def add(self, result: "CheckResult") -> None:
        self._checks.append(result.as_dict())

    def end(self, *, ok: bool) -> None:
        click.echo(json.dumps({"ok": ok, "checks": self._checks}, indent=2))


async def print_results(found: "AsyncIterator[CheckResult]") -> bool:
    """Print a line for each result as it comes; return True if a check failed."""
    return await _print_all(found, _LinePrinter())


async def _print_all(found: "AsyncIterator[CheckResult]", printer: _Printer) -> bool:
    """Print the results; return True if a check failed."""
    failed = False
    async for result in found:
        printer.add(result)
        failed = failed or result.status == "failed"
    return failed
