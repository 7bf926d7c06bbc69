"""``viperctl email outbox``: create and check the tables of the database outbox."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openviper.cli.email_check import print_results
from openviper.cli.email_queue import project_option
from openviper.cli.options import settings_option
from openviper.cli.project import Project, enter_project

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openviper.core.email.delivery.checks.result import CheckResult
    from openviper.core.email.settings import EmailSettings

__all__ = ["check_tables", "create", "outbox"]

_LIMIT = 5.0  # seconds


@click.group()
def outbox() -> None:
    """Create or check the tables of the database outbox."""


@outbox.command()
@project_option
@settings_option
def create(path: Path, settings: str | None) -> None:
    """Create the outbox's tables that the database lacks; those that exist stay as they are.

    The database is that of EMAIL["outbox"], or of DATABASE_URL where it is not set yet. Projects with migrations add
    openviper.db.outbox_tables(metadata) to their metadata instead.
    """
    project, email = _load(path, settings)
    from sqlalchemy.exc import DBAPIError

    try:
        address, created, missing = asyncio.run(_create(email.outbox or "database"))
    except (DBAPIError, OSError) as error:
        raise project.database_error("the database of the outbox", error) from error
    if missing:
        raise click.ClickException(
            f"{address} has tables of another version, which lack {', '.join(missing)}: add these columns by a "
            "migration, or drop the tables once they are empty"
        )
    click.echo(f"{address}: {'created ' if created else 'has every table'}{', '.join(created)}")
    if email.outbox is None:
        click.echo('EMAIL["outbox"] is not set, so mail does not use them yet: set it to "database"', err=True)


@outbox.command("check")
@project_option
@settings_option
def check_tables(path: Path, settings: str | None) -> None:
    """Check the outbox's tables and count its relays; print remedies.

    Exits with 1 if the tables are missing, or if mail waits and no relay runs. The id is the database's own: on every
    machine it must be the same.
    """
    project, email = _load(path, settings)
    if email.outbox is None:
        raise click.ClickException(f'EMAIL["outbox"] is not set: set it to "database"; {project.settings_origin()}')
    sys.exit(1 if asyncio.run(print_results(_results(email))) else 0)


async def _results(email: "EmailSettings") -> "AsyncIterator[CheckResult]":
    from openviper.core.email.delivery.checks.outbox import check_outbox

    for result in await check_outbox(email, asyncio.get_running_loop().time() + _LIMIT):
        yield result


async def _create(outbox: str) -> tuple[str, list[str], list[str]]:
    """Return the database's address, the tables created, and what is missing all the same."""
    from openviper.core.email.queue.outbox_engine import own_outbox_engine
    from openviper.db.outbox.tables import create_outbox_tables, database_id, missing_tables

    async with own_outbox_engine(outbox) as engine:
        lacking = await create_outbox_tables(engine)
        missing = await missing_tables(engine)
        if not missing:
            async with engine.begin() as connection:
                await connection.run_sync(database_id)
        created = [name for name in lacking if name not in missing]
        return engine.url.render_as_string(), created, missing


def _load(path: Path, settings: str | None) -> "tuple[Project, EmailSettings]":
    from openviper.core.email.settings import EmailSettings

    project = enter_project(path, settings_module=settings)
    project.load_settings()
    return project, EmailSettings.from_settings()
