"""``viperctl email status``: show the queue's stats."""

from pathlib import Path

import click

from openviper.cli.email_queue import project_option, queue_of
from openviper.cli.options import settings_option

__all__ = ["status"]


@click.command()
@project_option
@settings_option
def status(path: Path, settings: str | None) -> None:
    """Show the broker, the number of workers, and the queue's stats.

    Exits with 1 if mail waits and no worker delivers it.
    """
    service = queue_of(path, settings)
    stats = service.store.stats()
    click.echo(f"Broker   {service.settings.address}")
    click.echo(f"Workers  {stats.consumers or 'none: start one with `viperctl runworker`'}")
    oldest = "" if stats.oldest is None else f", the oldest unsent message is {_age(stats.oldest)} old"
    click.echo(f"Waiting  {stats.waiting}{oldest}")
    if stats.later is not None:
        click.echo(f"Later    {stats.later} (scheduled, or waiting for a retry)")
    click.echo(f"Failed   {stats.failed}")
    if stats.waiting and not stats.consumers:
        raise click.ClickException(
            "mail waits, and no worker consumes the emails queue: start one with `viperctl runworker`"
        )


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(0, seconds):.0f} s"
