"""``viperctl email suppressed``: list, add and remove addresses that must not be mailed."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from openviper.cli.email_queue import project_option
from openviper.cli.options import AddressCommand, settings_option
from openviper.cli.project import enter_project
from openviper.terminal import escape

__all__ = ["add", "list_suppressed", "remove", "suppressed"]

T = TypeVar("T")

_address = click.argument("address")
_stream = click.option("--stream", metavar="NAME", help="Only this stream. Default: every stream.")


@click.group()
def suppressed() -> None:
    """List, add or remove suppressed addresses, in the table on DATABASE_URL."""


@suppressed.command("list")
@project_option
@settings_option
def list_suppressed(path: Path, settings: str | None) -> None:
    """List suppressed addresses, oldest first: address, stream, since when, reason."""
    from openviper.db.suppression import list_suppressions

    rows = _run(path, settings, list_suppressions)
    for row in rows:
        stream = row.stream or "every stream"
        click.echo(f"{escape(row.address)}  {escape(stream)}  {row.since:%Y-%m-%d}  {escape(row.reason)}")
    click.echo(f"{len(rows)} suppressed", err=True)


@suppressed.command(cls=AddressCommand)
@_address
@click.option("--reason", default="by hand", show_default=True, help="Why it is suppressed.")
@_stream
@project_option
@settings_option
def add(address: str, reason: str, stream: str | None, path: Path, settings: str | None) -> None:
    """Suppress an address. Creates the table if it is missing."""
    from openviper.core.email.addresses import parse_address
    from openviper.core.email.errors import InvalidAddress
    from openviper.db.suppression import add_suppression, create_suppression_table

    try:
        addr_spec = parse_address(address, field="ADDRESS").addr_spec
    except InvalidAddress as error:
        raise click.UsageError(str(error)) from error

    async def run() -> None:
        await create_suppression_table()
        await add_suppression(addr_spec, reason, stream)

    _run(path, settings, run)
    click.echo(f"{addr_spec} is suppressed")


@suppressed.command(cls=AddressCommand)
@_address
@_stream
@project_option
@settings_option
def remove(address: str, stream: str | None, path: Path, settings: str | None) -> None:
    """Mail an address again."""
    from openviper.db.suppression import remove_suppression

    if not _run(path, settings, lambda: remove_suppression(address, stream)):
        raise click.ClickException(f"{escape(address)} is not suppressed for {escape(stream or 'every stream')}")
    click.echo(f"{escape(address)} is mailed again")


def _run(path: Path, settings: str | None, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    project = enter_project(path, settings_module=settings)
    project.load_settings()
    from sqlalchemy.exc import DBAPIError

    from openviper.db import SuppressionNotCreated

    try:
        return asyncio.run(call())
    except SuppressionNotCreated as error:
        raise click.ClickException(f"{error}; {project.settings_origin()}") from error
    except (DBAPIError, OSError) as error:
        raise project.database_error("DATABASE_URL", error) from error
