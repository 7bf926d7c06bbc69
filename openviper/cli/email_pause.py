"""``viperctl email pause`` and ``resume``: stop sending in every process for a while."""

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openviper.cli.email_queue import project_option
from openviper.cli.options import settings_option
from openviper.cli.project import enter_project
from openviper.terminal import escape

if TYPE_CHECKING:
    from openviper.core.email.delivery.pause.state import Pause
    from openviper.core.email.delivery.pause.store import PauseStore

__all__ = ["describe_pauses", "pause", "resume"]

_TAKES_EFFECT = 0.5  # seconds in which processes read the flag, twice as long as they take at most

_mailer = click.option("--mailer", metavar="NAME", help="Only mail of this mailer. Default: all mail.")


def _seconds(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    from openviper.core.email.settings.units import seconds

    if value is None:
        return None
    try:
        found = seconds(value)
    except ValueError as error:
        raise click.UsageError(f"--for: {escape(value)} {error}; write 30m, 1h, 2d") from error
    if found <= 0:
        raise click.UsageError(f"--for: {escape(value)} is not above 0")
    return found


@click.command()
@_mailer
@click.option(
    "--for", "seconds", metavar="TIME", callback=_seconds, help="Until then, such as 30m or 1h. Default: until resumed."
)
@project_option
@settings_option
def pause(mailer: str | None, seconds: float | None, path: Path, settings: str | None) -> None:
    """Stop sending, in every process, until `email resume`.

    Mail is accepted all the same where something keeps it: the queue, and the memory of a web process. A send that
    would deliver at once fails with SendingPaused. Transactions with the mail server that have begun end.
    """
    from openviper.core.email.delivery.pause.flag import change_state
    from openviper.core.email.queue import queue_service
    from openviper.core.email.settings import EmailSettings

    with closing(_open(path, settings, mailer)) as store:
        change_state(store, mailer, seconds=seconds, stop=True)
        time.sleep(_TAKES_EFFECT)
        click.echo("\n".join(describe_pauses(store)[1]))
    if queue_service() is None and EmailSettings.from_settings().outbox is None:
        click.echo(
            "Warning: neither a message broker nor the outbox is configured, so deferred mail is kept in memory: a web "
            "process that is stopped during the pause loses it, and logs each message",
            err=True,
        )


@click.command()
@_mailer
@project_option
@settings_option
def resume(mailer: str | None, path: Path, settings: str | None) -> None:
    """Send again: end every pause, or that of one mailer."""
    from openviper.core.email.delivery.pause.flag import change_state

    with closing(_open(path, settings, mailer)) as store:
        change_state(store, mailer, seconds=None, stop=False)
        pauses, lines = describe_pauses(store)
    if any(each.mailer is None for each in pauses):
        raise click.ClickException("all mail is paused; `viperctl email resume` without --mailer ends that")
    click.echo("\n".join(lines) or "Sending  goes on")


def describe_pauses(store: "PauseStore") -> "tuple[tuple[Pause, ...], list[str]]":
    """Return the pauses of the project's mail, and a line for each; none while everything is sent.

    Raises:
        QueueUnavailable: the place where the flag is kept does not answer.
    """
    from openviper.core.email.delivery.pause.flag import current_pauses

    pauses, problem = current_pauses(store)
    reason = f" (the pause flag cannot be read: {problem})" if problem else ""
    lines = [escape(f"Sending  paused: {each.describe()}, {each.describe_end()}{reason}") for each in pauses]
    return pauses, lines


def _open(path: Path, settings: str | None, mailer: str | None) -> "PauseStore":
    """Return where the project's pause flag is kept, for the caller to close.

    Raises:
        click.ClickException: there is no such place.
        click.UsageError: there is no such mailer.
    """
    from openviper.core.email.delivery.pause.flag import NO_STORE, pause_store
    from openviper.core.email.errors import InvalidMessage
    from openviper.core.email.settings import EmailSettings

    project = enter_project(path, settings_module=settings)
    project.load_settings()
    email = EmailSettings.from_settings()
    try:
        email.of_mailer(mailer)
    except InvalidMessage as error:
        raise click.UsageError(str(error)) from error
    store = pause_store(email)
    if store is None:
        raise click.ClickException(f"sending cannot be paused: {NO_STORE}; {project.settings_origin()}")
    store.open()
    return store
