"""What a project folder says about itself: its application and its settings module."""

import os
import sys
import tomllib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from openviper.conf import SETTINGS_VARIABLE, settings
from openviper.exceptions import OpenViperError
from openviper.text import shown

__all__ = ["Project", "enter_project"]


@dataclass(frozen=True, slots=True)
class Project:
    """A project folder. ``app`` is ``module:name``; None where neither pyproject.toml nor an app.py gives one."""

    folder: Path
    app: str | None
    settings: str | None

    def app_path(self) -> str:
        """``module:name`` of the application.

        Raises:
            click.UsageError: the project has none.
        """
        if self.app is None:
            raise click.UsageError(
                f"{self.folder} has no application: write app.py with an 'app' in it, "
                'or name yours in pyproject.toml: [tool.openviper] app = "module:app"'
            )
        return self.app

    def load_app(self) -> Any:
        """Import the application.

        Raises:
            click.UsageError: there is no such module, or no such name in it.
            click.ClickException: the project's own code failed; the text names the file and line.
        """
        module_name, _, name = self.app_path().partition(":")
        with _naming_the_file(self.folder, f"the application {shown(self.app)} cannot be imported"):
            try:
                module = import_module(module_name)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                    raise
                raise click.UsageError(
                    f"there is no module {shown(error.name)} in {self.folder} (from {shown(self.app)})"
                ) from None
        app = module
        for part in (name or "app").split("."):
            if not hasattr(app, part):
                raise click.UsageError(f"{module.__file__} has no {shown(name or 'app')} (from {shown(self.app)})")
            app = getattr(app, part)
        return app

    def load_settings(self) -> None:
        """Read the settings module now, so that a fault in it is told by its file.

        Raises:
            ImproperlyConfigured: there is no such module.
            click.ClickException: its code failed; the text names the file and line.
        """
        with _naming_the_file(self.folder, f"the settings module {shown(self.settings)} cannot be imported"):
            settings.DEBUG  # noqa: B018 - the first read loads the module


def enter_project(path: Path, *, settings_module: str | None = None) -> Project:
    """Make ``path`` the working directory and the first place to import from, and choose its settings module.

    Raises:
        click.UsageError: pyproject.toml is wrong, or more than one settings.py could be meant.
    """
    folder = path.resolve()
    table = _openviper_table(folder)
    app = table.get("app")
    if app is None and (folder / "app.py").is_file():
        app = "app:app"
    chosen = settings_module or os.environ.get(SETTINGS_VARIABLE) or table.get("settings") or _only_settings(folder)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    if chosen is not None:
        os.environ[SETTINGS_VARIABLE] = chosen
    return Project(folder, app, chosen)


def _openviper_table(folder: Path) -> dict[str, str]:
    file = folder / "pyproject.toml"
    if not file.is_file():
        return {}
    try:
        tool = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file} cannot be read: {error}") from error
    table = tool.get("openviper", {})
    for key in ("app", "settings"):
        if not isinstance(table.get(key, ""), str):
            raise click.UsageError(f"{file}: [tool.openviper] {key} must be a string, not {shown(table[key])}")
    return dict(table)


def _only_settings(folder: Path) -> str | None:
    """The settings.py of the folder itself, else the only one in a package of it."""
    if (folder / "settings.py").is_file():
        return "settings"
    found = sorted(file.parent.name for file in folder.glob("*/settings.py") if file.parent.name.isidentifier())
    if len(found) > 1:
        modules = ", ".join(f"{name}.settings" for name in found)
        raise click.UsageError(f"{folder} has several settings modules: choose with --settings one of {modules}")
    return f"{found[0]}.settings" if found else None


@contextmanager
def _naming_the_file(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (OpenViperError, click.ClickException):
        raise
    except Exception as error:  # whatever the project's own code raises
        own = error.__traceback__
        while own is not None and not _within(own.tb_frame.f_code.co_filename, folder):
            own = own.tb_next
        if own is not None:
            click.echo("".join(traceback.format_exception(type(error), error, own)), err=True)
        raise click.ClickException(f"{what}: {_place(error, folder)}: {type(error).__name__}: {error}") from error


def _place(error: Exception, folder: Path) -> str:
    """The project's file and line that failed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _within(frame.filename, folder)]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else str(folder)


def _within(filename: str, folder: Path) -> bool:
    # A virtual environment often stands inside the project.
    return Path(filename).is_relative_to(folder) and "site-packages" not in Path(filename).parts
