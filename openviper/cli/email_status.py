"""``viperctl email status``: show the queue's stats."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from openviper.cli.email_queue import project_option, queue_of
from openviper.cli.options import mailer_option, settings_option
from openviper.terminal import escape

if TYPE_CHECKING:
    from openviper.core.email.queue.job import QueueStats

__all__ = ["status"]


@click.command()
@project_option
@mailer_option
@settings_option
def status(path: Path, mailer: str | None, settings: str | None) -> None:
    """Show the broker, the number of workers, and the queue's stats: of all mailers, or with --mailer of one.

    Exits with 1 if mail waits and no worker delivers it.
    """
    from openviper.core.email.errors import InvalidMessage
    from openviper.core.email.queue import mailer_of
    from openviper.core.email.queue import queue_of as mail_queue
    from openviper.core.email.settings import EmailSettings

    stored = queue_of(path, settings)
    store = stored.store
    try:
        EmailSettings.from_settings().of_mailer(mailer)
    except InvalidMessage as error:
        raise click.UsageError(str(error)) from error
    queues = store.queues() if mailer is None else (mail_queue(mailer),)
    single = {queue: store.stats(queue) for queue in queues}
    click.echo(f"Broker   {stored.address}")
    _print_stats(single[queues[0]] if mailer is not None else store.stats(), stored.worker)
    if len(queues) > 1:
        click.echo("Mailers")
        names = {queue: mailer_of(queue) for queue in queues}
        width = max(map(len, names.values()))
        for queue, stats in single.items():
            workers = f"{stats.consumers} worker(s)" if stats.consumers else "no workers"
            click.echo(f"  {escape(names[queue]):<{width}}  {stats.waiting} waiting, {workers}")
    idle = [queue for queue, stats in single.items() if stats.waiting and not stats.consumers]
    if idle:
        raise click.ClickException(
            f"mail waits, and no worker consumes the queue {', '.join(idle)}: start one with `{stored.worker}`"
        )


def _print_stats(stats: "QueueStats", worker: str) -> None:
    click.echo(f"Workers  {stats.consumers or f'none: start one with `{worker}`'}")
    oldest = "" if stats.oldest is None else f", the oldest unsent message is {_age(stats.oldest)} old"
    click.echo(f"Waiting  {stats.waiting}{oldest}")
    if stats.later is not None:
        click.echo(f"Later    {stats.later} (scheduled, or waiting for a retry)")
    click.echo(f"Failed   {stats.failed}")


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(0, seconds):.0f} s"
