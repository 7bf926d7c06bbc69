"""Collecting what was given for each setting, from which place, before it is checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from openviper.core.email.settings.kinds import SettingKind
from openviper.terminal import escape
from openviper.text import cut, shown, suggestion

__all__ = ["ALIASES", "SECRETS", "Given", "describe", "environment_names"]

ALIASES = {"from": "default_sender", "user": "username", "background": "use_background_worker"}
SECRETS = frozenset({"password", "xoauth2_token"})

_PREFIX = "EMAIL_"


def environment_names(keys: Mapping[str, SettingKind]) -> dict[str, str]:
    """Variable name to key, for every key and alias: ``EMAIL_HOST``, ``EMAIL_FROM``, ..."""
    return {f"{_PREFIX}{key.upper()}": key for key in (*keys, *ALIASES)}


def describe(key: str, value: object) -> str:
    """The value for an error text: bounded, on one line, and nothing of a secret."""
    if key in SECRETS:
        return "***"
    # A URL in place of a host name may have a password in it.
    if isinstance(value, str) and "@" in value and key != "default_sender":
        return "'***'"
    return shown(value)


@dataclass(slots=True)
class Given:
    """The values to check by field name, the place of each as the user knows it, and the faults found so far.

    Later sources replace earlier ones. Secrets are wrapped at once, so that no traceback shows them.
    """

    kinds: Mapping[str, SettingKind]
    values: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def path(self, name: str) -> str:
        """Where the value of ``name`` was given, or where it would be."""
        return self.paths.get(name, f'EMAIL["{name}"]')

    def add_mapping(self, source: object, *, whole: str, path: Callable[[object], str]) -> None:
        """Take the keys of a dict; ``whole`` names it in errors and ``path`` one key of it."""
        if not isinstance(source, Mapping):
            self.faults.append(f"{whole}: is a {type(source).__name__}; give a dict of settings")
            return
        known = self.kinds.keys() | ALIASES.keys()
        for key in source:
            if key not in known:
                self.faults.append(f"{path(escape(cut(str(key))))}: there is no such setting{self._suggestion(key)}")
        self._take({key: source[key] for key in source if key in known}, path)

    def add_environment(self, environment: Mapping[str, str]) -> None:
        """Take ``EMAIL_*`` variables. Unknown ones belong to others and are ignored; an empty one counts as not set."""
        found = {}
        for variable, key in environment_names(self.kinds).items():
            text = environment.get(variable, "")
            if not text:
                continue
            try:
                found[key] = self.kinds[ALIASES.get(key, key)].from_text(text)
            except ValueError:
                found[key] = text  # refused by the check that follows, which says what is allowed
        self._take(found, lambda key: f"{_PREFIX}{str(key).upper()} (environment)")

    def _take(self, source: Mapping[str, Any], path: Callable[[object], str]) -> None:
        for key, value in source.items():
            name = ALIASES.get(key, key)
            if name != key and name in source:
                self.faults.append(f"{path(key)}: is another name of {path(name)}, and both are given; keep one")
                continue
            self.values[name] = SecretStr(value) if name in SECRETS and isinstance(value, str) else value
            self.paths[name] = path(key)

    def _suggestion(self, key: object) -> str:
        wanted = str(key).lower().removeprefix("email_").replace("-", "_")
        return suggestion(wanted, (*self.kinds, *ALIASES), otherwise="the settings reference lists those that exist")
