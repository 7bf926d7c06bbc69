"""``viperctl email erase``: remove an address from everything that keeps mail."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openviper.cli.email_queue import project_option
from openviper.cli.options import AddressCommand, settings_option
from openviper.cli.project import Project, enter_project
from openviper.terminal import escape
from openviper.text import counted

if TYPE_CHECKING:
    from openviper.core.email.settings import EmailSettings

__all__ = ["erase"]


_POSTGRESQL = (
    "deleted rows stay in PostgreSQL's files until those are rewritten (`VACUUM FULL` of the tables email_*, which "
    "locks each table meanwhile), and in its write-ahead log and backups for as long as you keep them"
)


@click.command(cls=AddressCommand)
@click.argument("address")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@project_option
@settings_option
def erase(address: str, yes: bool, path: Path, settings: str | None) -> None:
    """Erase an address from all that keeps mail, as data protection law may ask.

    Covers the outbox, Redis, failed mail, idempotency keys, the journal, suppressions (kept as a keyed hash, so that
    the address stays suppressed), and the inbox page's folder. A message for this address alone is removed, also if it
    still waits; of one for several recipients the address is removed. Exits with 1 if something could not be erased.
    """
    from openviper.core.email.addresses import parse_address
    from openviper.core.email.errors import InvalidAddress
    from openviper.core.email.settings import EmailSettings
    from openviper.network import mail_key

    try:
        wanted = mail_key(parse_address(address, field="ADDRESS").addr_spec)
    except InvalidAddress as error:
        raise click.UsageError(str(error)) from error
    project = enter_project(path, settings_module=settings)
    project.load_settings()
    email = EmailSettings.from_settings()
    if not yes:
        click.confirm(f"Erase {escape(wanted)}, with the mail that waits for it? It cannot be undone", abort=True)
    left = list(_erase_everywhere(project, email, wanted))
    for text in left:
        click.echo(f"Not erased  {text}", err=True)
    for text in _not_covered(email):
        click.echo(f"Not covered  {text}", err=True)
    if left:
        raise SystemExit(1)


def _erase_everywhere(project: Project, email: "EmailSettings", address: str) -> Iterator[str]:
    """Erase, print what was done, and yield what could not be."""
    from openviper.exceptions import OpenViperError

    steps: tuple[Callable[[EmailSettings, str], Iterator[str]], ...]
    steps = (_erase_suppressions, _erase_stored, _erase_journal, _compact, _erase_inbox)
    for step in steps:
        try:
            yield from step(email, address)
        except OpenViperError as error:
            yield f"{error}"
        except Exception as error:  # noqa: BLE001 - of any driver, whose text may hold the address
            cause = getattr(error, "orig", None) or error
            yield f"{type(cause).__name__} while erasing: `viperctl email check` says more; {project.settings_origin()}"


def _erase_suppressions(_email: "EmailSettings", address: str) -> Iterator[str]:
    try:
        from openviper.db.suppression import hash_suppression
    except ImportError:
        return  # without a database there is no table
    from openviper.db import SuppressionNotCreated

    try:
        count = asyncio.run(hash_suppression(address))
    except SuppressionNotCreated:
        return
    except ValueError:
        yield (
            'the address is suppressed: set EMAIL["journal_key"] in every process and repeat the command, so that its '
            "keyed hash can stay; or end the suppression with `viperctl email suppressed remove`"
        )
        return
    click.echo(f"Suppression  {count} kept as a keyed hash")


def _erase_stored(_email: "EmailSettings", address: str) -> Iterator[str]:
    from openviper.core.email.queue import queue_service, stored_mail

    stored = stored_mail()
    if stored is None:
        return
    erased = stored.store.erase(address)
    click.echo(
        f"Stored mail  {erased.removed} removed, {erased.changed} changed (for several recipients), "
        f"{erased.keys} idempotency keys; {escape(stored.address)}"
    )
    if erased.busy:
        yield f"{counted(erased.busy, 'message')} being sent at the moment: repeat the command"
    if erased.named:
        yield (
            f"{counted(erased.named, 'message')} for others kept, with the address elsewhere in the header, until "
            "delivered, or removed by `viperctl email failed purge`"
        )
    service = queue_service()
    if service is None or service.settings.broker != "rabbitmq":
        return
    stats = service.store.stats()
    if stats.waiting or stats.later:
        yield "mail that waits on RabbitMQ cannot be read there: repeat the command when it is delivered or has failed"


def _erase_journal(email: "EmailSettings", address: str) -> Iterator[str]:
    if email.journal_key is None:
        return
    from openviper.network import mail_hash

    count = asyncio.run(_erase_rows(email, mail_hash(address, email.journal_key.get_secret_value()), address))
    if count is not None:
        click.echo(f"Journal      {count} answers removed")
    yield from ()


async def _erase_rows(email: "EmailSettings", recipient: str, address: str) -> int | None:
    """Delete the journal's rows of a keyed hash; None if there is no table."""
    from openviper.core.email.queue.outbox_engine import own_outbox_engine
    from openviper.db.journal import JournalStore, missing_columns

    async with own_outbox_engine(email.outbox or "database", setting='EMAIL["journal"]') as engine:
        if await missing_columns(engine):
            return None
        return await JournalStore(engine).erase(recipient, address)


def _compact(email: "EmailSettings", _address: str) -> Iterator[str]:
    """Overwrite what deleted rows left in the files of both databases, where there are two."""
    try:
        import sqlalchemy  # noqa: F401 - without it there is no database
    except ImportError:
        return
    for database in dict.fromkeys(("database", email.outbox or "database")):
        yield from asyncio.run(_compacted(database))


async def _compacted(database: str) -> list[str]:
    from openviper.core.email.queue.outbox_engine import own_outbox_engine
    from openviper.db.compacting import compact

    async with own_outbox_engine(database, setting="DATABASE_URL") as engine:
        if engine.dialect.name == "sqlite":
            text = await compact(engine) if _exists(engine.url.database) else None
            return [] if text is None else [text]
    click.echo(f"Not covered  {_POSTGRESQL}", err=True)
    return []


def _exists(file: str | None) -> bool:
    return bool(file) and Path(file or "").exists()


def _erase_inbox(email: "EmailSettings", address: str) -> Iterator[str]:
    from openviper.core.email.inbox import erase_from_folder

    if email.inbox_dir is not None:
        click.echo(f"Inbox page   {erase_from_folder(email.inbox_dir, address)} removed")
    yield from ()


def _not_covered(email: "EmailSettings") -> Iterator[str]:
    from openviper.core.email.queue import queue_service

    yield "the text and attachments of mail for others, mail in the memory of running processes, and delivered mail"
    yield "log files, your mail server and its queue, and backups"
    service = queue_service()
    if service is not None and service.settings.broker == "redis":
        yield "an append-only file of Redis keeps commands until it is rewritten: `redis-cli BGREWRITEAOF`"
    if email.suppress is not None and email.suppress != "openviper.db.find_suppressed":
        yield 'EMAIL["suppress"] is your own function: erase the address there yourself'
    if email.backend == "FileBackend":
        yield f'the files in EMAIL["file_dir"] ({escape(str(email.file_dir))})'
