"""Load the project's settings on first use."""

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any

from openviper.exceptions import ImproperlyConfigured
from openviper.text import shown

__all__ = ["SETTINGS_VARIABLE", "Settings", "describe_origin", "in_use", "override", "settings"]

SETTINGS_VARIABLE = "OPENVIPER_SETTINGS_MODULE"


def _defaults() -> dict[str, Any]:
    return {
        "DEBUG": False,
        "EMAIL": {},
        "TASKS": {},
        "TEMPLATES_DIR": "templates",
        "DATABASE_URL": "sqlite+aiosqlite:///db.sqlite3",
        "DATABASE_TIMEOUT": 30.0,
    }


class Settings:
    """Project settings as attributes, loaded on first use.

    They are the upper-case names of the module in the environment variable ``OPENVIPER_SETTINGS_MODULE``, or the values
    given to ``configure()``; without either every setting has its default. Reading a name that is neither set nor has a
    default raises ``AttributeError``.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] | None = None
        self._origin: str | None = None
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
        self._install({**_defaults(), **values}, origin="settings.configure()")

    @property
    def origin(self) -> str | None:
        """Return the settings module's name, or ``settings.configure()``; None while only the defaults are in use."""
        if self._values is None:
            self._read()
        return self._origin

    @property
    def given(self) -> Mapping[str, Any]:
        """Return the settings by name, those with their defaults included."""
        return MappingProxyType(self._read() if self._values is None else self._values)

    @property
    def version(self) -> int:
        """Number that changes whenever the settings do; readers keep with it what they derived from the settings."""
        return self._version

    def is_default(self, name: str) -> bool:
        """Return True if the setting has its default, given or not."""
        return bool(getattr(self, name) == _defaults().get(name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        values = self._values
        if values is None:
            values = self._read()
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

    def _read(self) -> dict[str, Any]:
        # The version stays: nothing can have been derived from settings that were not loaded.
        module = os.environ.get(SETTINGS_VARIABLE, "")
        values = self._values = _load(module) if module else _defaults()
        self._origin = module or None
        return values

    def _install(self, values: dict[str, Any] | None, *, origin: str | None = None) -> None:
        self._values = values
        self._origin = origin
        self._version += 1


settings = Settings()


@contextmanager
def override(**values: Any) -> Iterator[Settings]:
    """Replace the given settings for a block, then restore the earlier ones. For tests; not for concurrent use.

    A value replaces the whole earlier one; ``{**settings.EMAIL, "port": 25}`` changes one key. Enter the block before
    the application starts, which reads its settings then; too late is a warning.
    """
    _check_names(values)
    before = settings._values
    current = settings._read() if before is None else before
    _warn_of_late_changes(current, values)
    origin = settings._origin
    settings._install({**current, **values}, origin=origin or "override()")
    try:
        yield settings
    finally:
        settings._install(before, origin=origin)


_in_use: list[tuple[frozenset[str], str]] = []  # names, and whose they are


@contextmanager
def in_use(*names: str, by: str) -> Iterator[None]:
    """Have ``override()`` warn during a block that ``names`` do not change for ``by``, which has read them already."""
    entry = frozenset(names), by
    _in_use.append(entry)
    try:
        yield
    finally:
        _in_use.remove(entry)


def _warn_of_late_changes(current: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    for names, by in _in_use:
        late = sorted(name for name in names & values.keys() if values[name] != current.get(name))
        if late:
            warnings.warn(
                f"override({', '.join(f'{name}=...' for name in late)}) changes nothing for {by}; "
                "enter override() before it starts",
                RuntimeWarning,
                stacklevel=4,
            )
            return


def describe_origin() -> str:
    """Return, for errors, where the settings come from, and what to do if nothing was read."""
    origin = settings.origin
    if origin is None:
        found = _importable_settings()
        remedy = f"{SETTINGS_VARIABLE}={found}" if found else f"{SETTINGS_VARIABLE}, or call settings.configure()"
        return f"no settings module was read: set {remedy}"
    file = getattr(sys.modules.get(origin), "__file__", None)
    return f"the settings come from {origin}" + (f" ({file})" if file else "")


def _importable_settings() -> str | None:
    """Return the name of the project's settings module if it can be imported: in no package, or in an imported one."""
    packages = [name for name, module in tuple(sys.modules.items()) if "." not in name and hasattr(module, "__path__")]
    for name in ("settings", *(f"{package}.settings" for package in packages)):
        with suppress(ImportError, AttributeError, ValueError):  # whatever the packages of others answer
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.origin is not None and "site-packages" not in spec.origin:
                return name
    return None


def _check_names(values: dict[str, Any]) -> None:
    for name in values:
        if not _is_setting(name):
            raise ImproperlyConfigured(f"settings: {shown(name)} is not an upper-case name")


def _is_setting(name: str) -> bool:
    return name.isupper() and not name.startswith("_")


def _load(module_name: str) -> dict[str, Any]:
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ImproperlyConfigured(
            f"{SETTINGS_VARIABLE}: {shown(module_name)} is not the dotted name of a module such as 'shop.settings'"
        )
    if module_name.endswith(".py"):
        raise ImproperlyConfigured(
            f"{SETTINGS_VARIABLE}: {shown(module_name)} is a file; give the module's dotted name, "
            f"{shown(module_name.removesuffix('.py'))}"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        found = _importable_settings()
        remedy = f"did you mean {shown(found)}?" if found else f"the import path is {', '.join(sys.path[:3])}, ..."
        raise ImproperlyConfigured(
            f"{SETTINGS_VARIABLE}: there is no module {shown(module_name)} on the import path; {remedy}"
        ) from None
    return _defaults() | {name: getattr(module, name) for name in dir(module) if _is_setting(name)}
