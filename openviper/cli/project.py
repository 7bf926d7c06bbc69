"""Find a project folder's application and settings module, and load them."""

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

from openviper.conf import SETTINGS_VARIABLE, describe_origin, settings
from openviper.exceptions import OpenViperError
from openviper.terminal import escape
from openviper.text import shown

__all__ = ["Project", "enter_project"]


@dataclass(frozen=True, slots=True)
class Project:
    """A project folder. ``app`` is ``module:name``; None if neither pyproject.toml nor an app.py defines one."""

    folder: Path
    app: str | None
    settings: str | None

    def app_path(self) -> str:
        """Return the application as ``module:name``.

        Raises:
            click.UsageError: the project has no application.
        """
        if self.app is None:
            raise click.UsageError(
                f"{self.folder} has no application: define 'app' in app.py, "
                'or name it in pyproject.toml: [tool.openviper] app = "module:app"'
            )
        return self.app

    def load_app(self) -> Any:
        """Import the application.

        Raises:
            click.UsageError: the module does not exist, or does not define the name.
            click.ClickException: the project's code failed; the text names the file and line.
        """
        module_name, _, name = self.app_path().partition(":")
        with _naming_the_file(self.folder, f"cannot import the application {shown(self.app)}"):
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

    def settings_origin(self) -> str:
        """Return which settings were read, for a command that was started in another folder than the project's."""
        if self.settings is None:
            return f"there is no settings.py in {self.folder}: give the project's folder, or --settings"
        return describe_origin()

    def database_error(self, name: str, error: Exception) -> click.ClickException:
        """Return the error of a command whose database failed; ``name`` says which, or names its setting."""
        cause = getattr(error, "orig", None) or error
        text = f"{name}: {type(cause).__name__}: {escape(str(cause))[:200]}; {self.settings_origin()}"
        return click.ClickException(text)

    def load_settings(self) -> None:
        """Import the settings module now, so that an error names the file that caused it.

        Raises:
            ImproperlyConfigured: the module does not exist.
            click.ClickException: its code failed; the text names the file and line.
        """
        with _naming_the_file(self.folder, f"cannot import the settings module {shown(self.settings)}"):
            settings.DEBUG  # noqa: B018 - the first read loads the module


def enter_project(path: Path, *, settings_module: str | None = None) -> Project:
    """Change into ``path``, make it the first import path, and choose its settings module.

    Raises:
        click.UsageError: pyproject.toml is invalid, or several settings modules exist and none is chosen.
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
        raise click.UsageError(f"cannot read {file}: {error}") from error
    table = tool.get("openviper", {})
    for key in ("app", "settings"):
        if not isinstance(table.get(key, ""), str):
            raise click.UsageError(f"{file}: [tool.openviper] {key} must be a string, not {shown(table[key])}")
    return dict(table)


def _only_settings(folder: Path) -> str | None:
    """Return the folder's own settings.py, or else the only one in its packages; None if there is none."""
    if (folder / "settings.py").is_file():
        return "settings"
    found = sorted(file.parent.name for file in folder.glob("*/settings.py") if file.parent.name.isidentifier())
    if len(found) > 1:
        modules = ", ".join(f"{name}.settings" for name in found)
        raise click.UsageError(f"{folder} has several settings modules: choose one with --settings: {modules}")
    return f"{found[0]}.settings" if found else None


@contextmanager
def _naming_the_file(folder: Path, problem: str) -> Iterator[None]:
    try:
        yield
    except (OpenViperError, click.ClickException):
        raise
    except Exception as error:  # the project's code may raise anything
        own = error.__traceback__
        while own is not None and not _within(own.tb_frame.f_code.co_filename, folder):
            own = own.tb_next
        if own is not None:
            click.echo("".join(traceback.format_exception(type(error), error, own)), err=True)
        raise click.ClickException(f"{problem}: {_place(error, folder)}: {type(error).__name__}: {error}") from error


def _place(error: Exception, folder: Path) -> str:
    """Return the project's file and line that failed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _within(frame.filename, folder)]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else str(folder)


def _within(filename: str, folder: Path) -> bool:
    # A virtual environment is often inside the project.
    return Path(filename).is_relative_to(folder) and "site-packages" not in Path(filename).parts
