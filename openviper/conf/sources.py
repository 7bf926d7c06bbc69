"""Merge values from several sources, and remember where each was given."""

import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from pydantic import AliasChoices, BaseModel, SecretStr

from openviper.conf.kinds import SettingKind
from openviper.terminal import escape
from openviper.text import cut, suggestion

__all__ = ["Given", "Source", "aliases", "kinds", "variables"]

# Most settings that an error about an unknown key lists; with more it names the settings reference.
_LISTED = 12


@cache
def kinds(model: type[BaseModel]) -> dict[str, SettingKind]:
    """Return the :class:`SettingKind` of each field."""
    return {
        name: kind
        for name, info in model.model_fields.items()
        for kind in info.metadata
        if isinstance(kind, SettingKind)
    }


@cache
def aliases(model: type[BaseModel]) -> dict[str, str]:
    """Return the other names that are accepted, each with its field's name."""
    return {
        alias: name
        for name, info in model.model_fields.items()
        if isinstance(info.validation_alias, AliasChoices)
        for alias in info.validation_alias.choices
        if isinstance(alias, str) and alias != name
    }


@cache
def variables(model: type[BaseModel], prefix: str) -> dict[str, str]:
    """Return the environment variables of a model, each with its key: ``EMAIL_HOST``, ``EMAIL_FROM``, ..."""
    return {f"{prefix}{key.upper()}": key for key in (*kinds(model), *aliases(model))}


class Source(NamedTuple):
    """Values from one place. Errors call the place ``name``, and one key in it ``path(key)``."""

    values: object
    name: str
    path: Callable[[object], str]

    @classmethod
    def setting(cls, name: str, values: object) -> "Source":
        """Return the source for a dict of the settings module: ``EMAIL["host"]``."""
        return cls(values, name, lambda key: f'{name}["{key}"]')

    @classmethod
    def environment(cls, model: type[BaseModel], prefix: str) -> "Source":
        """Return the source for environment variables: ``EMAIL_HOST (environment)``.

        Empty variables count as not set; those that name no setting belong to others and are ignored.
        """
        names = aliases(model)
        found = {
            key: kinds(model)[names.get(key, key)].read(text)
            for variable, key in variables(model, prefix).items()
            if (text := os.environ.get(variable))
        }
        return cls(found, "environment", lambda key: f"{prefix}{str(key).upper()} (environment)")

    @classmethod
    def arguments(cls, call: str, values: object) -> "Source":
        """Return the source for the dict in a call: ``Email({"host": ...})``, where ``call`` is ``Email(``."""
        return cls(values, f"{call}...)", lambda key: f'{call}{{"{key}": ...}})')

    @classmethod
    def keywords(cls, function: str, values: object) -> "Source":
        """Return the source for keyword arguments: ``EmailSettings(host=...)``."""
        return cls(values, f"{function}()", lambda key: f"{function}({key}=...)")


class Given:
    """Merged values by field name, the origin of each as errors name it, and the faults found while merging."""

    def __init__(self, model: type[BaseModel], setting: str) -> None:
        self.model = model
        self.setting = setting
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.faults: list[str] = []

    def path(self, name: str) -> str:
        """Return where the value of ``name`` was given, or where it would be."""
        return self.origins.get(name, f'{self.setting}["{name}"]')

    def add(self, source: Source) -> None:
        """Add the values of ``source``; they replace earlier ones."""
        if not isinstance(source.values, Mapping):
            self.faults.append(f"{source.name}: is a {type(source.values).__name__}; give a dict of settings")
            return
        fields, names = kinds(self.model), aliases(self.model)
        for key, value in source.values.items():
            name = names.get(key, key)
            if name not in fields:
                self.faults.append(self._unknown(source, key))
            elif name != key and name in source.values:
                self.faults.append(
                    f"{source.path(key)}: is another name of {source.path(name)}, and both are given; keep one"
                )
            else:
                # Wrapped at once, so that a traceback with local variables does not show it.
                secret = fields[name].secret and isinstance(value, str)
                self.values[name] = SecretStr(value) if secret else value
                self.origins[name] = source.path(key)

    def discard(self, name: str) -> None:
        """Forget the value of ``name``, if there is one."""
        self.values.pop(name, None)
        self.origins.pop(name, None)

    def _unknown(self, source: Source, key: object) -> str:
        known = [*kinds(self.model), *aliases(self.model)]
        wanted = str(key).lower().removeprefix(f"{self.setting.lower()}_").replace("-", "_")
        if len(known) <= _LISTED:
            otherwise = f"known settings: {', '.join(known)}"
        else:
            otherwise = "the settings reference lists those that exist"
        path = source.path(escape(cut(str(key))))
        near = suggestion(wanted, known, aliases=getattr(self.model, "names_elsewhere", {}), otherwise=otherwise)
        return f"{path}: there is no such setting{near}"
