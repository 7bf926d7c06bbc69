"""Load the project's settings on first use."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from openviper.exceptions import ImproperlyConfigured
from openviper.text import shown

__all__ = ["SETTINGS_VARIABLE", "Settings", "override", "settings"]

SETTINGS_VARIABLE = "OPENVIPER_SETTINGS_MODULE"


def _defaults() -> dict[str, Any]:
    return {
        "DEBUG": False,
        "EMAIL": {},
        "TASKS": {},
        "TEMPLATES_DIR": "templates",
        "DATABASE_URL": "sqlite+aiosqlite:///db.sqlite3",
    }


class Settings:
    """Project settings as attributes, loaded on first use.

    They are the upper-case names of the module in the environment variable ``OPENVIPER_SETTINGS_MODULE``, or the values
    given to ``configure()``; without either every setting has its default. Reading a name that is neither set nor has a
    default raises ``AttributeError``.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] | None = None
        self._version = 0

    def configure(self, **values: Any) -> None:
        """Set all settings at once, for a script without a settings module.

        Raises:
            ImproperlyConfigured: a name is not upper case, or settings were already loaded or configured (a value that
                was read must not change).
        """
        if self._values is not None:
            raise ImproperlyConfigured(
                "settings.configure(): settings are already in use; call it before anything else"
            )
        _check_names(values)
        self._install({**_defaults(), **values})

    @property
    def version(self) -> int:
        """Number that changes whenever the settings do; readers keep with it what they derived from the settings."""
        return self._version

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        values = self._values
        if values is None:
            # The version stays: nothing can have been derived from settings that were not loaded.
            values = self._values = _load()
        try:
            return values[name]
        except KeyError:
            raise AttributeError(f"there is no setting {shown(name)}: add it to your settings module") from None

    def __setattr__(self, name: str, value: object) -> None:
        # An instance attribute would hide the setting for good, and the version would not change.
        if not name.startswith("_"):
            raise AttributeError(
                f"settings.{name} cannot be assigned: set it in the settings module, with settings.configure(), "
                "or for a block with openviper.conf.override()"
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        # Values may hold passwords, so only the names are shown.
        return f"<Settings {'not loaded' if self._values is None else ', '.join(sorted(self._values))}>"

    def _install(self, values: dict[str, Any] | None) -> None:
        self._values = values
        self._version += 1


settings = Settings()


@contextmanager
def override(**values: Any) -> Iterator[Settings]:
    """Replace the given settings for a block, then restore the earlier ones. For tests; not for concurrent use."""
    _check_names(values)
    before = settings._values
    current = _load() if before is None else before
    settings._install({**current, **values})
    try:
        yield settings
    finally:
        settings._install(before)


def _check_names(values: dict[str, Any]) -> None:
    for name in values:
        if not _is_setting(name):
            raise ImproperlyConfigured(f"settings: {shown(name)} is not an upper-case name")


def _is_setting(name: str) -> bool:
    return name.isupper() and not name.startswith("_")


def _load() -> dict[str, Any]:
    module_name = os.environ.get(SETTINGS_VARIABLE, "")
    if not module_name:
        return _defaults()
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ImproperlyConfigured(
            f"{SETTINGS_VARIABLE}: {shown(module_name)} is not the dotted name of a module such as 'shop.settings'"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ImproperlyConfigured(
            f"{SETTINGS_VARIABLE}: there is no module {shown(module_name)} on the import path"
        ) from error
    return _defaults() | {name: getattr(module, name) for name in dir(module) if _is_setting(name)}
