"""The lazy ``settings`` object."""

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
    """Settings read as attributes, loaded on first use.

    They come from the module that the environment variable ``OPENVIPER_SETTINGS_MODULE`` names (its plain upper-case
    names), or from ``configure()``; without either every setting has its default. A name that is neither set nor has a
    default is an ``AttributeError``.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] | None = None
        self._version = 0

    def configure(self, **values: Any) -> None:
        """Set all settings at once, for a script without a settings module.

        Raises:
            ImproperlyConfigured: a name is not upper case, or settings were already loaded or configured (a value
                that was read may not change under its reader).
        """
        if self._values is not None:
            raise ImproperlyConfigured(
                "settings.configure(): settings are already in use; call it before anything else"
            )
        _check_names(values)
        self._install({**_defaults(), **values})

    @property
    def version(self) -> int:
        """A number that changes whenever the settings do, so that readers can keep what they derived from them."""
        return self._version

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._values is None:
            self._install(_load())
        assert self._values is not None
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"there is no setting {shown(name)}: add it to your settings module") from None

    def __setattr__(self, name: str, value: object) -> None:
        # An attribute of its own would hide the setting for good, and nobody would see that the settings changed.
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
    """Replace the given settings for a block, then put back what was there. Meant for tests; not for concurrent use."""
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
