"""``viperctl email status``: show the queue's stats."""

import asyncio
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openviper.cli.email_pause import describe_pauses
from openviper.cli.email_queue import project_option, queue_in
from openviper.cli.options import mailer_option, settings_option
from openviper.cli.project import enter_project
from openviper.terminal import escape
from openviper.text import counted

if TYPE_CHECKING:
    from openviper.core.email.queue.job import QueueStats
    from openviper.core.email.settings import EmailSettings

__all__ = ["status"]

_JOURNAL_LIMIT = 10.0  # seconds


@click.command()
@project_option
@mailer_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object: what health() returns.")
@settings_option
def status(path: Path, mailer: str | None, settings: str | None, as_json: bool) -> None:
    """Show what is paused, the journal, the broker or outbox, its workers or relays, and its stats.

    Of all mailers, or of one.

    Exits with 1 if mail waits and no worker or relay delivers it, unless sending is paused; with --json, which is of
    all mailers, also if the status is "failing".
    """
    if as_json:
        if mailer is not None:
            raise click.UsageError("--json covers all mailers: leave out --mailer")
        _print_json(path, settings)
        return
    from openviper.core.email.errors import InvalidMessage
    from openviper.core.email.queue import mailer_of, outbox_jobs, queue_service
    from openviper.core.email.queue import queue_of as mail_queue
    from openviper.core.email.settings import EmailSettings

    project = enter_project(path, settings_module=settings)
    project.load_settings()
    paused = _print_pauses()  # names of mailers, None for all
    asyncio.run(_print_journal(EmailSettings.from_settings()))
    if paused and queue_service() is None and EmailSettings.from_settings().outbox is None:
        return  # mail waits in memory, which only its process can count
    stored = queue_in(project)
    store = stored.store
    try:
        EmailSettings.from_settings().of_mailer(mailer)
    except InvalidMessage as error:
        raise click.UsageError(str(error)) from error
    queues = store.queues() if mailer is None else (mail_queue(mailer),)
    single = {queue: store.stats(queue) for queue in queues}
    kept = outbox_jobs()
    alone = queue_service() is None
    click.echo(f"{'Outbox' if alone else 'Broker'}   {stored.address}")
    _print_stats(single[queues[0]] if mailer is not None else store.stats(), stored.worker, relays=alone)
    if kept is not None and not alone:
        own = kept.stats(None if mailer is None else queues[0])
        click.echo(f"Outbox   {own.waiting} of the waiting messages are not on the broker yet; relays: {own.consumers}")
    if len(queues) > 1:
        click.echo("Mailers")
        names = {queue: mailer_of(queue) for queue in queues}
        width = max(map(len, names.values()))
        for queue, stats in single.items():
            workers = counted(stats.consumers, "worker") if stats.consumers else "no workers"
            click.echo(f"  {escape(names[queue]):<{width}}  {stats.waiting} waiting{'' if alone else f', {workers}'}")
    idle = [queue for queue, stats in single.items() if stats.waiting and not stats.consumers]
    idle = [queue for queue in idle if not paused & {None, mailer_of(queue)}]
    if idle:
        reason = (
            "mail waits in the outbox, and no relay runs: start your application, or `viperctl email relay`"
            if alone
            else f"mail waits, and no worker consumes the queue {', '.join(idle)}: start one with `{stored.worker}`"
        )
        raise click.ClickException(f"{reason} (docs: troubleshooting#stays-queued)")


def _print_json(path: Path, settings: str | None) -> None:
    """Print the object of ``health()``; exit with 1 where the lines would."""
    from openviper.core.email.delivery import health
    from openviper.exceptions import OpenViperError

    try:
        enter_project(path, settings_module=settings).load_settings()
    except OpenViperError as error:
        raise click.ClickException(str(error)) from error
    found = asyncio.run(health())
    click.echo(json.dumps(found.to_dict(), indent=2))
    names = {problem.name for problem in found.problems}
    queue = found.stats.get("queue") or {}
    undelivered = "relay" in names or ("workers" in names and queue.get("waiting"))
    if found.status == "failing" or (undelivered and "paused" not in names):
        raise SystemExit(1)


def _print_stats(stats: "QueueStats", worker: str, *, relays: bool) -> None:
    name = "Relays " if relays else "Workers"
    click.echo(f"{name}  {stats.consumers or f'none: start one with `{worker}`'}")
    oldest = "" if stats.oldest is None else f", the oldest unsent message is {_age(stats.oldest)} old"
    click.echo(f"Waiting  {stats.waiting}{oldest}")
    if stats.later is not None:
        click.echo(f"Later    {stats.later} (scheduled, or waiting for a retry)")
    click.echo(f"Failed   {stats.failed}")


def _print_pauses() -> set[str | None]:
    """Print what is paused, and return the mailers whose mail is (None: all mail)."""
    from openviper.core.email.delivery.pause.flag import pause_store
    from openviper.core.email.settings import EmailSettings

    store = pause_store(EmailSettings.from_settings())
    if store is None:
        return set()
    with closing(store):
        pauses, lines = describe_pauses(store)
    for line in lines:
        click.echo(line)
    return {pause.mailer for pause in pauses}


async def _print_journal(settings: "EmailSettings") -> None:
    """Print how many answers the journal holds, or why it holds none; nothing where it is off."""
    from openviper.core.email.delivery.checks.journal import check_journal

    for result in await check_journal(settings, asyncio.get_running_loop().time() + _JOURNAL_LIMIT):
        remedy = f" -> {escape(result.remedy)}" if result.remedy else ""
        click.echo(f"Journal  {escape(result.found)}{remedy}")


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(0, seconds):.0f} s"
