"""Shared by the commands of ``viperctl email``: the option ``--project``, and the project's queue."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from openviper.cli.project import Project, enter_project

if TYPE_CHECKING:
    from openviper.core.email.queue import StoredMail

__all__ = ["project_option", "queue_in", "queue_of"]

project_option = click.option(
    "--project",
    "path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    show_default=True,
    help="The project's folder.",
)


def queue_of(path: Path, settings: str | None) -> "StoredMail":
    """Return the queue of the project in ``path``: on its broker, in its outbox, or both.

    Raises:
        click.ClickException: the project has none.
    """
    project = enter_project(path, settings_module=settings)
    project.load_settings()
    return queue_in(project)


def queue_in(project: Project) -> "StoredMail":
    """Do as :func:`queue_of`, for a project that was entered before."""
    from openviper.core.email.queue import stored_mail

    stored = stored_mail()
    if stored is None:
        raise click.ClickException(
            f'mail is not queued: set TASKS["broker"] to "redis" or "rabbitmq", or EMAIL["outbox"]; '
            f"{project.settings_origin()}"
        )
    return stored
