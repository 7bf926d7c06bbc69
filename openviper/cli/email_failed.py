"""``viperctl email failed``: list, show, retry and purge dead letters."""

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openviper.cli.email_queue import project_option, queue_of
from openviper.cli.options import settings_option
from openviper.terminal import escape
from openviper.text import counted

if TYPE_CHECKING:
    from openviper.core.email.queue.job import FailedJob, MailReader

__all__ = ["failed", "list_failed", "purge", "retry", "show"]

_MAX_READ = 1000
_MOST_SHOWN = 5
_BAR_FROM = 20  # messages; fewer need no progress bar

_ids = click.argument("message_ids", nargs=-1, metavar="[MESSAGE-ID]...")
_all = click.option("--all", "everything", is_flag=True, help="Every failed message.")


@click.group()
def failed() -> None:
    """List, retry or delete mail that failed for good. `list` and `show` read the 1,000 oldest messages."""


@failed.command("list")
@project_option
@click.option("--limit", type=click.IntRange(1), default=_MAX_READ, show_default=True, help="Show at most this many.")
@settings_option
def list_failed(path: Path, limit: int, settings: str | None) -> None:
    """List failed messages, oldest first: time, Message-ID, attempts. `show` adds addresses and reasons."""
    jobs = queue_of(path, settings).store.failed(limit)
    for job in jobs:
        notes = f"{'  perhaps delivered' if job.uncertain else ''}{'  content not kept' if job.content_dropped else ''}"
        click.echo(f"{_when(job)}  {job.message_id}  {counted(job.progress.attempts, 'attempt')}{notes}")
    click.echo(f"{len(jobs)} failed", err=True)


@failed.command()
@click.argument("message_id", metavar="MESSAGE-ID")
@project_option
@settings_option
def show(path: Path, message_id: str, settings: str | None) -> None:
    """Show one failed message: sender, recipients, and why it failed for whom."""
    found = [job for job in queue_of(path, settings).store.failed(_MAX_READ) if job.message_id == _id(message_id)]
    if not found:
        raise click.ClickException(f"no failed message has the id {_id(message_id)}; see `viperctl email failed list`")
    for job in found:
        _print_job(job)


@failed.command()
@_ids
@_all
@project_option
@settings_option
def retry(path: Path, message_ids: tuple[str, ...], everything: bool, settings: str | None) -> None:
    """Queue failed messages again, for the recipients who have not received them."""
    wanted = _wanted(message_ids, everything)
    store = queue_of(path, settings).store
    dropped = itertools.count()
    with _progress(store, "Queueing again") as advance:
        count = store.retry_failed(wanted, advance, on_dropped=lambda: next(dropped))
    _report(count, wanted, "queued again", next(dropped), store)


@failed.command()
@_ids
@_all
@project_option
@settings_option
def purge(path: Path, message_ids: tuple[str, ...], everything: bool, settings: str | None) -> None:
    """Delete failed messages for good."""
    wanted = _wanted(message_ids, everything)
    store = queue_of(path, settings).store
    with _progress(store, "Deleting") as advance:
        count = store.purge_failed(wanted, advance)
    _report(count, wanted, "deleted")


@contextmanager
def _progress(store: "MailReader", label: str) -> Iterator[Callable[[], object]]:
    """Yield a function to call after each message; on a terminal it advances a bar if there are many."""
    many = store.stats().failed if sys.stderr.isatty() else 0
    if many < _BAR_FROM:
        yield lambda: None
        return
    with click.progressbar(length=many, label=label, file=sys.stderr) as bar:
        yield lambda: bar.update(1)


def _wanted(message_ids: tuple[str, ...], everything: bool) -> frozenset[str] | None:
    if everything == bool(message_ids):
        raise click.UsageError("give either Message-IDs or --all")
    return None if everything else frozenset(map(_id, message_ids))


def _report(
    count: int, wanted: frozenset[str] | None, done: str, dropped: int = 0, store: "MailReader | None" = None
) -> None:
    """``dropped``: how many could not be retried because their content was not kept; ``store`` is for a retry."""
    click.echo(f"{count} {done}")
    if dropped:
        raise click.ClickException(
            f"{dropped} cannot be queued again: sent with sensitive=True, so the content was not kept; send again "
            "from your application (with another key, if it had one), and remove with `viperctl email failed purge`"
        )
    if store is not None and (wanted is None or count < len(wanted)):
        _explain_not_retried(store, wanted)
    if wanted is not None and count < len(wanted):
        raise click.ClickException("some of these ids belong to no failed message; see `viperctl email failed list`")


def _explain_not_retried(store: "MailReader", wanted: frozenset[str] | None) -> None:
    """Raise for entries that are no message, such as a ticket whose job is gone: nothing of them can be sent."""
    chosen = [job for job in store.failed(_MAX_READ) if wanted is None or job.message_id in wanted]
    if empty := [job for job in chosen if job.payload is None and not job.content_dropped]:
        lines = [
            f"{job.message_id} holds no message to send again: {escape(job.reason)}" for job in empty[:_MOST_SHOWN]
        ]
        lines += [f"{len(empty) - _MOST_SHOWN} more like these"] if len(empty) > _MOST_SHOWN else []
        remedy = f"delete it with `viperctl email failed purge {empty[0].message_id.strip('<>')}`"
        raise click.ClickException("\n".join([f"{lines[0]}; {remedy}", *lines[1:]]))


def _id(given: str) -> str:
    """Add the angle brackets, which users leave out because a shell interprets them."""
    return f"<{given.strip('<>')}>"


def _when(job: "FailedJob") -> str:
    return datetime.fromtimestamp(job.failed_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _print_protocol(job: "FailedJob") -> None:
    for number, line in enumerate((job.protocol or "").splitlines()):
        click.echo(f"{'Protocol' if number == 0 else '':<12}{escape(line)}")


def _print_job(job: "FailedJob") -> None:
    from openviper.core.email.settings import DEFAULT_MAILER

    click.echo(f"Message-ID  {job.message_id}")
    click.echo(f"Failed      {_when(job)} after {counted(job.progress.attempts, 'attempt')}")
    if job.mailer != DEFAULT_MAILER:
        click.echo(f"Mailer      {escape(job.mailer)}")
    click.echo(f"Reason      {escape(job.reason)}")
    if job.content_dropped:
        click.echo("Content     not kept, because it was sent with sensitive=True: it cannot be retried")
    if job.uncertain:
        click.echo("Delivered   perhaps: the server's reply to the content is missing")
    for address, reply in job.progress.refused.items():
        click.echo(f"Refused     {escape(address)}  {escape(reply)}")
    for address, reason in job.progress.unconfirmed.items():
        click.echo(f"Perhaps     {escape(address)}  {escape(reason)}")
    _print_protocol(job)
    if job.payload is not None:
        head = job.payload.summary()
        for field in ("From", "To", "Cc", "Bcc", "Subject"):
            if head[field]:
                click.echo(f"{field:<12}{escape(head[field])}")
