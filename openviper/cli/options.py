"""Arguments and options that several commands share."""

from pathlib import Path

import click

__all__ = ["project_path", "settings_option"]

project_path = click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
settings_option = click.option(
    "--settings",
    metavar="MODULE",
    help="Settings module. Default: OPENVIPER_SETTINGS_MODULE, else [tool.openviper] settings in the project's "
    "pyproject.toml, else its only settings.py.",
)
