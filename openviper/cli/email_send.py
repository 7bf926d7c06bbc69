"""``viperctl email send``: what ``sendtestemail`` does, with the project as an option."""

from pathlib import Path

import click

from openviper.cli.email_queue import project_option
from openviper.cli.options import sender_option, settings_option
from openviper.cli.sendtestemail import send_test_message

__all__ = ["send"]


@click.command()
@click.argument("addresses", nargs=-1, required=True)
@project_option
@sender_option
@settings_option
def send(addresses: tuple[str, ...], path: Path, sender: str | None, settings: str | None) -> None:
    """Send one test message to ADDRESSES, at once, and show the answers. Ends with 1 when anybody does not get it."""
    send_test_message(path, addresses, sender=sender, settings=settings)
