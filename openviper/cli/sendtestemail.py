"""``viperctl sendtestemail PATH address...``: does mail go out with these settings, and what does the server say?"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openviper.cli.options import project_path, sender_option, settings_option
from openviper.cli.project import enter_project
from openviper.cli.transport import describe_transport

if TYPE_CHECKING:
    from openviper.core.email.errors import Refusal

__all__ = ["send_test_message", "sendtestemail"]


@click.command()
@project_path
@click.argument("addresses", nargs=-1, required=True)
@sender_option
@settings_option
def sendtestemail(path: Path, addresses: tuple[str, ...], sender: str | None, settings: str | None) -> None:
    """Send one test message to ADDRESSES with the settings of the project folder PATH, and show the answers.

    The message is delivered at once, by this process. Ends with 1 when anybody does not get it.
    """
    send_test_message(path, addresses, sender=sender, settings=settings)


def send_test_message(path: Path, addresses: tuple[str, ...], *, sender: str | None, settings: str | None) -> None:
    """Send it and print what came of it.

    Raises:
        click.ClickException: somebody does not get it.
    """
    from openviper.core.email.errors import DeliveryError, RecipientsRefused
    from openviper.core.email.sending.single import submit_email
    from openviper.core.email.settings import EmailSettings

    project = enter_project(path, settings_module=settings)
    project.load_settings()
    click.echo(describe_transport(EmailSettings.from_settings()))
    try:
        receipt = asyncio.run(
            submit_email(
                list(addresses),
                subject=f"Test message from {project.folder.name}",
                text=f"This is a test message.\n\nThe mail settings of {project.folder.name} work.\n",
                sender=sender,
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
        click.echo(f"accepted  {address}  {receipt.response}".rstrip())
    _print_refused(receipt.refused)
    click.echo(f"Message {receipt.message_id}, sent {receipt.mode}")
    if receipt.refused:
        raise click.ClickException("not everybody gets the message")


def _print_refused(refused: Mapping[str, "Refusal"]) -> None:
    for address, refusal in refused.items():
        click.echo(f"{'perhaps ' if refusal.uncertain else 'refused '}  {address}  {refusal}")
