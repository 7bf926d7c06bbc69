"""``viperctl email send`` and its alias ``viperctl sendtestemail``: send one test message and show the replies."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openviper.cli.email_queue import project_option
from openviper.cli.options import AddressCommand, mailer_option, sender_option, settings_option
from openviper.cli.project import enter_project
from openviper.cli.transport import describe_transport
from openviper.terminal import escape
from openviper.text import shown

if TYPE_CHECKING:
    from openviper.core.email import Refusal

__all__ = ["send", "sendtestemail"]


class _ProjectFolder(click.Path):
    """The project's folder before the addresses: an address in its place is answered with the order of both."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            if ctx is None or "@" not in str(value):
                raise
            self.fail(
                f"{shown(value)} is an address, or a folder that does not exist. "
                f"The project's folder comes first: {ctx.command_path} . ADDRESS",
                param,
                ctx,
            )


@click.command(cls=AddressCommand)
@click.argument("addresses", nargs=-1, required=True)
@project_option
@sender_option
@mailer_option
@settings_option
def send(addresses: tuple[str, ...], path: Path, sender: str | None, mailer: str | None, settings: str | None) -> None:
    """Send one test message to ADDRESSES and show the server's replies.

    The message is delivered at once, by this process. Exits with 1 if any recipient was refused.
    """
    _send_test_message(path, addresses, sender=sender, settings=settings, mailer=mailer)


@click.command(cls=AddressCommand)
@click.argument("path", type=_ProjectFolder(exists=True, file_okay=False, path_type=Path))
@click.argument("addresses", nargs=-1, required=True)
@sender_option
@settings_option
def sendtestemail(path: Path, addresses: tuple[str, ...], sender: str | None, settings: str | None) -> None:
    """Send one test message: short for `email send ADDRESSES --project PATH`."""
    _send_test_message(path, addresses, sender=sender, settings=settings)


def _send_test_message(
    path: Path, addresses: tuple[str, ...], *, sender: str | None, settings: str | None, mailer: str | None = None
) -> None:
    from openviper.core.email import DeliveryError, EmailSettings, InvalidMessage, RecipientsRefused, submit_email

    project = enter_project(path, settings_module=settings)
    project.load_settings()
    try:
        own = EmailSettings.from_settings().of_mailer(mailer)
    except InvalidMessage as error:
        raise click.UsageError(str(error)) from error
    click.echo(describe_transport(own))
    try:
        receipt = asyncio.run(
            submit_email(
                list(addresses),
                subject=f"Test message from {project.folder.name}",
                text=f"This is a test message.\n\nThe mail settings of {project.folder.name} work.\n",
                sender=sender,
                mailer=mailer,
                background=False,
                fail_silently=False,
            )
        )
    except RecipientsRefused as error:
        _print_refused(error.refused)
        raise click.ClickException(str(error)) from error
    except DeliveryError as error:
        _print_refused(error.refused)
        raise click.ClickException(f"{type(error).__name__}: {error}") from error
    for address in receipt.accepted:
        click.echo(escape(f"accepted  {address}  {receipt.response}".rstrip()))
    _print_refused(receipt.refused)
    click.echo(f"Message {receipt.message_id}, sent {receipt.mode}")
    if receipt.refused:
        raise click.ClickException("not every recipient was accepted")


def _print_refused(refused: Mapping[str, "Refusal"]) -> None:
    for address, refusal in refused.items():
        click.echo(escape(f"{'perhaps ' if refusal.uncertain else 'refused '}  {address}  {refusal}"))
