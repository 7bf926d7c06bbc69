"""``viperctl email journal``: create the journal's table."""

import asyncio
from pathlib import Path

import click

from openviper.cli.email_queue import project_option
from openviper.cli.options import settings_option
from openviper.cli.project import enter_project

__all__ = ["create_journal_table", "journal"]


@click.group()
def journal() -> None:
    """Create the table that keeps what became of each message."""


@journal.command("create")
@project_option
@settings_option
def create_journal_table(path: Path, settings: str | None) -> None:
    """Create the table email_journal if the database lacks it.

    The database is that of EMAIL["outbox"], or else of DATABASE_URL. Projects with migrations add
    openviper.db.journal_table(metadata) to their metadata instead.
    """
    from openviper.core.email.settings import EmailSettings

    project = enter_project(path, settings_module=settings)
    project.load_settings()
    email = EmailSettings.from_settings()
    from sqlalchemy.exc import DBAPIError

    try:
        address, created, missing = asyncio.run(_create(email.outbox or "database"))
    except (DBAPIError, OSError) as error:
        raise project.database_error("the database of the journal", error) from error
    if missing:
        raise click.ClickException(
            f"{address} has a table of another version, which lacks {', '.join(missing)}: add these columns by a "
            "migration, or drop the table"
        )
    click.echo(f"{address}: {'created email_journal' if created else 'has the table'}")
    if not email.journal:
        click.echo(
            'EMAIL["journal"] is not set, so nothing is recorded yet: set it to True, with a journal_key', err=True
        )


async def _create(outbox: str) -> tuple[str, bool, list[str]]:
    """Return the database's address, whether the table was created, and what it lacks all the same."""
    from openviper.core.email.queue.outbox_engine import own_outbox_engine
    from openviper.db.journal import create_journal, missing_columns

    async with own_outbox_engine(outbox, setting='EMAIL["journal"]') as engine:
        created = await create_journal(engine)
        return engine.url.render_as_string(), created, await missing_columns(engine)
