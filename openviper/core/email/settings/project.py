"""Read the project's other settings that mail depends on."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

from openviper import conf
from openviper.exceptions import ImproperlyConfigured
from openviper.text import shown

__all__ = [
    "database_url",
    "debug",
    "has_database",
    "settings_in_use",
    "settings_module",
    "settings_origin",
    "settings_version",
    "settings_were_read",
    "template_dirs",
]


def debug() -> bool:
    """Return the project's ``DEBUG``.

    Raises:
        ImproperlyConfigured: it is text, such as "False", which would count as true.
    """
    value = conf.settings.DEBUG
    if isinstance(value, str) and value:
        raise ImproperlyConfigured(
            f"DEBUG: {shown(value)} is text; give True or False, such as os.environ.get('DEBUG') == '1'"
        )
    return bool(value)


def database_url() -> str:
    """Return the project's ``DATABASE_URL``, with its password."""
    return str(conf.settings.DATABASE_URL)


def has_database() -> bool:
    """True if the project sets ``DATABASE_URL``."""
    return not conf.settings.is_default("DATABASE_URL")


def settings_origin() -> str:
    """Return, for errors, where the project's settings come from, and what to do if no module was read."""
    return conf.describe_origin()


def settings_module() -> str | None:
    """Return the name of the settings module, or of the call that gave the settings; None while nothing was read."""
    return conf.settings.origin


def settings_were_read() -> bool:
    """Return False while only defaults and the environment are in use."""
    return conf.settings.origin is not None


def template_dirs() -> tuple[Path, ...]:
    """Return the folders of ``TEMPLATES_DIR``, a path or a list of paths, relative to the working directory.

    Raises:
        ImproperlyConfigured: it is neither a path nor a list of paths.
    """
    value = conf.settings.TEMPLATES_DIR
    folders = [value] if isinstance(value, str | os.PathLike) else value
    if not isinstance(folders, list | tuple) or not all(isinstance(folder, str | os.PathLike) for folder in folders):
        raise ImproperlyConfigured(f"TEMPLATES_DIR: {shown(value)} is not a folder; give a path or a list of paths")
    return tuple(Path(folder) for folder in folders)


def settings_in_use() -> AbstractContextManager[None]:
    """Have ``override()`` warn during a block that what was read of the project's settings no longer changes."""
    return conf.in_use("EMAIL", "DEBUG", "TEMPLATES_DIR", by="an application that is running")


def settings_version() -> int:
    """Return a number that changes whenever the project's settings do."""
    return conf.settings.version
