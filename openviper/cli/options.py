"""Arguments and options shared by several commands."""

from pathlib import Path

import click

__all__ = ["mailer_option", "project_path", "sender_option", "settings_option"]

project_path = click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
settings_option = click.option(
    "--settings",
    metavar="MODULE",
    help="Settings module. Default: OPENVIPER_SETTINGS_MODULE, else [tool.openviper] settings in the project's "
    "pyproject.toml, else its only settings.py.",
)


def _address(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    from openviper.core.email.addresses import parse_address
    from openviper.core.email.errors import InvalidAddress

    if value is not None:
        try:
            parse_address(value, field="--from")
        except InvalidAddress as error:
            raise click.UsageError(str(error)) from error
    return value


mailer_option = click.option(
    "--mailer", metavar="NAME", help='A mailer of EMAIL["mailers"]. Default: the one that EMAIL itself describes.'
)
sender_option = click.option(
    "--from",
    "sender",
    metavar="ADDRESS",
    callback=_address,
    help='Sender of the message. Default: EMAIL["default_sender"].',
)
