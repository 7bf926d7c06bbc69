"""``viperctl email failed``: list, show, retry, purge."""

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

if TYPE_CHECKING:
    from openviper.core.email.queue.job import FailedJob, JobStore

__all__ = ["failed", "list_failed", "purge", "retry", "show"]

_MOST = 1000
_BAR_FROM = 20  # messages

_ids = click.argument("message_ids", nargs=-1, metavar="[MESSAGE-ID]...")
_all = click.option("--all", "everything", is_flag=True, help="Every failed message.")


@click.group()
def failed() -> None:
    """Mail that was given up. `list` and `show` read the 1,000 oldest."""


@failed.command("list")
@project_option
@click.option("--limit", type=click.IntRange(1), default=_MOST, show_default=True, help="Show at most so many.")
@settings_option
def list_failed(path: Path, limit: int, settings: str | None) -> None:
    """List failed messages, oldest first: when, Message-ID, attempts. Addresses and reasons are in `show`."""
    jobs = queue_of(path, settings).store.failed(limit)
    for job in jobs:
        uncertain = "  perhaps delivered" if job.uncertain else ""
        click.echo(f"{_when(job)}  {job.message_id}  {job.progress.attempts} attempts{uncertain}")
    click.echo(f"{len(jobs)} failed", err=True)


@failed.command()
@click.argument("message_id", metavar="MESSAGE-ID")
@project_option
@settings_option
def show(path: Path, message_id: str, settings: str | None) -> None:
    """Show one failed message: whose it is, why it failed, and who does not have it."""
    found = [job for job in queue_of(path, settings).store.failed(_MOST) if job.message_id == _id(message_id)]
    if not found:
        raise click.ClickException(f"there is no failed message {_id(message_id)}")
    for job in found:
        _print_job(job)


@failed.command()
@_ids
@_all
@project_option
@settings_option
def retry(path: Path, message_ids: tuple[str, ...], everything: bool, settings: str | None) -> None:
    """Queue failed messages again, for the recipients who do not have them."""
    wanted = _wanted(message_ids, everything)
    store = queue_of(path, settings).store
    with _progress(store, "Queueing again") as looked_at:
        count = store.retry_failed(wanted, looked_at)
    _tell(count, wanted, "queued again")


@failed.command()
@_ids
@_all
@project_option
@settings_option
def purge(path: Path, message_ids: tuple[str, ...], everything: bool, settings: str | None) -> None:
    """Drop failed messages for good."""
    wanted = _wanted(message_ids, everything)
    store = queue_of(path, settings).store
    with _progress(store, "Dropping") as looked_at:
        count = store.purge_failed(wanted, looked_at)
    _tell(count, wanted, "dropped")


@contextmanager
def _progress(store: "JobStore", what: str) -> Iterator[Callable[[], object]]:
    """What is to be called for each message; many of them move a bar, on a terminal only."""
    many = store.stats().failed if sys.stderr.isatty() else 0
    if many < _BAR_FROM:
        yield lambda: None
        return
    with click.progressbar(length=many, label=what, file=sys.stderr) as bar:
        yield lambda: bar.update(1)


def _wanted(message_ids: tuple[str, ...], everything: bool) -> frozenset[str] | None:
    if everything == bool(message_ids):
        raise click.UsageError("give Message-IDs, or --all")
    return None if everything else frozenset(map(_id, message_ids))


def _tell(count: int, wanted: frozenset[str] | None, what: str) -> None:
    click.echo(f"{count} {what}")
    if wanted is not None and count < len(wanted):
        raise click.ClickException("not all of them are failed messages")


def _id(given: str) -> str:
    """With the angle brackets, which a shell takes for its own."""
    return f"<{given.strip('<>')}>"


def _when(job: "FailedJob") -> str:
    return datetime.fromtimestamp(job.failed_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _print_job(job: "FailedJob") -> None:
    click.echo(f"Message-ID  {job.message_id}")
    click.echo(f"Failed      {_when(job)} after {job.progress.attempts} attempts")
    click.echo(f"Reason      {escape(job.reason)}")
    if job.uncertain:
        click.echo("Delivered   perhaps: nobody knows whether the server took it")
    for address, reply in job.progress.refused.items():
        click.echo(f"Refused     {escape(address)}  {escape(reply)}")
    for address, reason in job.progress.held.items():
        click.echo(f"Perhaps     {escape(address)}  {escape(reason)}")
    if job.payload is not None:
        head = job.payload.about()
        for field in ("From", "To", "Cc", "Bcc", "Subject"):
            if head[field]:
                click.echo(f"{field:<12}{escape(head[field])}")
