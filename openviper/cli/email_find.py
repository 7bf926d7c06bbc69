"""``viperctl email find``: say what became of a message, from the journal and from what stores hold."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openviper.cli.email_queue import project_option
from openviper.cli.options import settings_option
from openviper.cli.project import enter_project
from openviper.terminal import escape
from openviper.text import counted

if TYPE_CHECKING:
    from openviper.core.email.queue.found import FoundMail, Wanted
    from openviper.core.email.settings import EmailSettings
    from openviper.db.journal import JournalRow

__all__ = ["find"]

_NO_JOURNAL = (
    'EMAIL["journal"] is off: mail that was delivered, refused or dropped, and is in no store any more, is not known; '
    "your mail server's log has what it accepted"
)
_MOST = 200  # answers of the journal


@click.command()
@click.option("--ref", metavar="REF", help="Your own reference, as given to ref=.")
@click.option("--to", "address", metavar="ADDRESS", help="A recipient.")
@click.option("--id", "message_id", metavar="MESSAGE-ID", help="The Message-ID, with or without angle brackets.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@project_option
@settings_option
def find(
    ref: str | None, address: str | None, message_id: str | None, as_json: bool, path: Path, settings: str | None
) -> None:
    """Say what became of mail: give one of --ref, --to and --id.

    Asks the journal, and what waits or has failed on the broker and in the outbox. Says what it cannot know. Exits
    with 1 if it finds nothing.
    """
    from openviper.core.email.addresses import parse_address
    from openviper.core.email.errors import InvalidAddress
    from openviper.core.email.queue.found import Wanted
    from openviper.core.email.settings import EmailSettings
    from openviper.network import mail_key

    if sum(each is not None for each in (ref, address, message_id)) != 1:
        raise click.UsageError("give one of --ref, --to and --id")
    try:
        key = None if address is None else mail_key(parse_address(address, field="--to").addr_spec)
    except InvalidAddress as error:
        raise click.UsageError(str(error)) from error
    project = enter_project(path, settings_module=settings)
    project.load_settings()
    email = EmailSettings.from_settings()
    wanted = Wanted(None if message_id is None else f"<{message_id.strip('<>')}>", ref, key)
    answers, unknown = _ask_journal(email, wanted)
    stored, more = _ask_stores(wanted)
    unknown += more
    if as_json:
        found: dict[str, Any] = {"journal": [_as_dict(row) for row in answers]}
        found |= {"stored": [mail._asdict() for mail in stored], "unknown": unknown}
        click.echo(json.dumps(found, indent=2))
    else:
        _print(answers, stored, unknown)
    if not answers and not stored:
        raise SystemExit(1)


def _ask_journal(email: "EmailSettings", wanted: "Wanted") -> "tuple[list[JournalRow], list[str]]":
    """Return the journal's answers, and what it cannot tell."""
    if not email.journal:
        return [], [_NO_JOURNAL]
    from sqlalchemy.exc import DBAPIError

    try:
        rows = asyncio.run(_read_journal(email, wanted))
    except (DBAPIError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        return [], [f"the journal does not answer ({type(cause).__name__}): `viperctl email check` says why"]
    days = email.journal_keep / 86400
    unknown = [f"answers from before the last {days:g} days are not kept, nor any from before the journal was on"]
    if len(rows) == _MOST:
        unknown.append(f"only the newest {_MOST} answers are shown")
    return rows, unknown


async def _read_journal(email: "EmailSettings", wanted: "Wanted") -> "list[JournalRow]":
    from openviper.core.email.queue.outbox_engine import own_outbox_engine
    from openviper.db.journal import JournalStore
    from openviper.network import mail_hash

    assert email.journal_key is not None, "the settings require it"
    recipient = None if wanted.address is None else mail_hash(wanted.address, email.journal_key.get_secret_value())
    async with own_outbox_engine(email.outbox or "database", setting='EMAIL["journal"]') as engine:
        return await JournalStore(engine).find(
            message_id=wanted.message_id, ref=wanted.ref, recipient=recipient, limit=_MOST
        )


def _ask_stores(wanted: "Wanted") -> "tuple[list[FoundMail], list[str]]":
    """Return stored messages, and what the stores cannot tell."""
    from openviper.core.email.errors import QueueUnavailable
    from openviper.core.email.queue import queue_service, stored_mail

    stored = stored_mail()
    unknown = ["mail that a process holds in memory, deferred or held, is known only to that process"]
    if stored is None:
        return [], unknown
    service = queue_service()
    if service is not None and service.settings.broker == "rabbitmq":
        unknown.append("mail that waits on RabbitMQ cannot be searched; only failed mail can")
    try:
        return stored.store.find(wanted), unknown
    except QueueUnavailable as error:
        return [], [*unknown, f"not all stores could be searched: {error}"]


def _print(answers: "list[JournalRow]", stored: "list[FoundMail]", unknown: list[str]) -> None:
    for row in answers:
        code = "" if row.code is None else f" ({row.code})"
        ref = "" if row.ref is None else f"  ref {escape(row.ref)}"
        click.echo(f"{_when(row.time)}  {row.outcome}{code}  {escape(row.id)}{ref}  recipient {row.recipient[:12]}")
    for mail in stored:
        due = "" if mail.due is None else f", next attempt {_when(mail.due)}"
        attempts = f" after {counted(mail.attempts, 'attempt')}" if mail.attempts else ""
        click.echo(f"{_when(mail.since)}  {mail.state}{attempts}{due}  {escape(mail.message_id)}")
        if mail.recipients:
            click.echo(f"    for {', '.join(map(escape, mail.recipients))}")
        if mail.reason:
            click.echo(f"    {escape(mail.reason)}")
    if not answers and not stored:
        click.echo("nothing found")
    for text in unknown:
        click.echo(f"Not known: {text}", err=True)


def _as_dict(row: "JournalRow") -> dict[str, Any]:
    return {name: value for name, value in row._asdict().items() if name != "entry"}


def _when(moment: float | None) -> str:
    if not moment:
        return "at some time      "
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
