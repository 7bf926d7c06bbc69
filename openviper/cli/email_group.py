"""``viperctl email``: how the mail queue stands, and what to do with mail that could not be delivered."""

import click

from openviper.cli.email_check import check
from openviper.cli.email_failed import failed
from openviper.cli.email_status import status

__all__ = ["email"]


@click.group()
def email() -> None:
    """Queued mail: how it stands, and what could not be delivered."""


email.add_command(check)
email.add_command(failed)
email.add_command(status)
