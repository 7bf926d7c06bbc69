"""The commands ``viperctl`` and ``openviper``; ``openviper viperctl ...`` is the same as ``viperctl ...``."""

from typing import Any

import click

from openviper.cli.email_group import email
from openviper.cli.email_send import sendtestemail
from openviper.cli.runserver import runserver
from openviper.cli.runworker import runworker
from openviper.exceptions import OpenViperError

__all__ = ["openviper", "viperctl"]


class _Commands(click.Group):
    """Shows OpenViper's own errors, which name culprit and remedy, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OpenViperError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands)
@click.version_option(package_name="openviper-email")
def viperctl() -> None:
    """Run and inspect a project. PATH is always the project's folder."""


@click.group()
@click.version_option(package_name="openviper-email")
def openviper() -> None:
    """Run OpenViper's commands."""


for _command in (runserver, runworker, sendtestemail, email):
    viperctl.add_command(_command)
openviper.add_command(viperctl)
