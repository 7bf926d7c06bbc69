"""Read ``EMAIL["mailers"]``: further mailers by name, each checked as the settings that it inherits and its own."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from openviper.conf.checked import CheckedSettings
from openviper.conf.sources import Given, Source, aliases, kinds
from openviper.exceptions import ImproperlyConfigured
from openviper.text import cut, shown, suggestion

__all__ = ["DEFAULT_MAILER", "OF_A_MAILER", "mailer_values", "read_mailers", "url_variables"]

DEFAULT_MAILER = "default"
"""The name of the mailer that the settings themselves describe."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")

# A mailer that names its server starts from the defaults for these: else it would get another server's password.
_NAMES_A_SERVER = frozenset({"host", "url", "backend"})
_OF_A_SERVER = frozenset(
    {
        "host",
        "port",
        "username",
        "password",
        "xoauth2_token",
        "xoauth2_token_provider",
        "use_tls",
        "use_ssl",
        "tls_ca_file",
        "local_hostname",
        "rate_limit",
        "pool_size",
        "pool_warm",
    }
)
_NEVER_INHERITED = frozenset({"mailers", "failover", "url"})

OF_A_MAILER = _OF_A_SERVER | {
    "backend",
    "file_dir",
    "timeout",
    "data_timeout",
    "one_flight",
    "idle_timeout",
    "max_messages_per_connection",
    "max_connection_age",
    "max_recipients_per_message",
    "max_message_bytes",
    "default_sender",
    "auto_submitted",
    "stream",
    "tag_header",
    "ref_header",
    "metadata_header",
    "dkim",
}
"""The settings that may differ by mailer, besides ``url``, ``failover`` and ``retry_period``."""
_ALLOWED = OF_A_MAILER | {"url", "failover", "retry_period"}


def url_variables() -> Iterator[tuple[str, str]]:
    """Yield the environment variables that may be a mailer's URL, ``EMAIL_<NAME>_URL``, with their values."""
    for variable, text in sorted(os.environ.items()):
        if variable.startswith("EMAIL_") and variable.endswith("_URL") and text:
            yield variable, text


def read_mailers(model: type[CheckedSettings], given: Given) -> None:
    """Replace ``mailers`` in ``given`` by the settings of each, and check the names in every ``failover``."""
    if given.setting != model.setting_name:
        return  # those of a mailer, which has no others below it
    mailers = given.values.get("mailers")
    if isinstance(mailers, Mapping):
        checked: dict[str, Any] = {}
        for name in mailers:
            if fault := _name_fault(model, name):
                given.faults.append(f"{given.path('mailers')}: {fault}")
                continue
            values = mailer_values(model, given, name)
            try:
                settings: Any = model.model_validate(values.values, context=values)
                checked[name] = settings.with_paths({key: values.path(key) for key in _ALLOWED})
            except ImproperlyConfigured as error:
                given.faults.extend(str(error).splitlines())
        if checked.keys() == mailers.keys():
            given.faults.extend(_failover_faults(given, checked))
        given.values["mailers"] = checked
    elif mailers is None:
        given.discard("mailers")
        given.faults.extend(_failover_faults(given, {}))


def mailer_values(model: type[CheckedSettings], given: Given, name: str) -> Given:
    """Return the values of the mailer ``name``, each with its origin: those that it inherits, and its own."""
    own = given.values["mailers"][name]
    place = f'{given.path("mailers")}["{name}"]'
    sources = [Source(own, place, lambda key: f'{place}["{key}"]')]
    found = Given(model, place)
    if isinstance(own, Mapping):
        # The path of one of them would name no fault of this mailer.
        others = {key: value for key, value in own.items() if _field(model, key) in kinds(model).keys() - _ALLOWED}
        found.faults += [f'{place}["{key}"]: applies to all mailers; set EMAIL["{key}"]' for key in others]
        if own.get("dkim") not in (None, False):
            found.faults.append(f'{place}["dkim"]: keys are for all mailers; set EMAIL["dkim"], or False here')
        own = {key: value for key, value in own.items() if key not in others}
        sources = [sources[0]._replace(values=own)]
    variable = _url_variable(name)
    if text := os.environ.get(variable):
        sources.append(Source({"url": SecretStr(text)}, "environment", lambda _: f"{variable} (environment)"))
    named = {_field(model, key) for source in sources if isinstance(source.values, Mapping) for key in source.values}
    kept_back = _NEVER_INHERITED | (_OF_A_SERVER if named & _NAMES_A_SERVER else frozenset())
    for inherited, value in given.values.items():
        if inherited not in kept_back:
            found.values[inherited] = value
            found.origins[inherited] = given.path(inherited)
    for source in sources:
        model.add_implied(found, source)
        found.add(source)
    return found


def _field(model: type[CheckedSettings], key: Any) -> Any:
    return aliases(model).get(key, key)


def _url_variable(name: str) -> str:
    return f"EMAIL_{name.replace('-', '_').upper()}_URL"


def _name_fault(model: type[CheckedSettings], name: object) -> str | None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return (
            f"{shown(name)} is not the name of a mailer; give lower-case letters, digits and '-', at most 40 characters"
        )
    if name == DEFAULT_MAILER:
        return "'default' is the mailer that EMAIL itself describes; write its settings there"
    if f"{name.replace('-', '_')}_url" in kinds(model):
        return f"{shown(name)} would share {_url_variable(name)} with a setting; choose another name"
    return None


def _failover_faults(given: Given, mailers: Mapping[str, Any]) -> Iterator[str]:
    own = given.values.get("failover")
    named: dict[str, Sequence[str]] = {name: mailer.failover for name, mailer in mailers.items()}
    named[DEFAULT_MAILER] = [each for each in own if isinstance(each, str)] if isinstance(own, list | tuple) else ()
    places = {name: f'{given.path("mailers")}["{name}"]["failover"]' for name in mailers}
    places[DEFAULT_MAILER] = given.path("failover")
    for name, others in named.items():
        for other in others:
            if other not in named:
                hint = suggestion(other, named, otherwise=f"there are {', '.join(named)}")
                yield f"{places[name]}: there is no mailer {shown(cut(other))}{hint}"
    for name in named:
        if name in _reached(name, named):
            yield f"{places[name]}: leads back to {shown(name)}; name each mailer in one direction only"
            return


def _reached(name: str, named: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the mailers that a failover from ``name`` may lead to, step by step."""
    reached: set[str] = set()
    ahead = list(named[name])
    while ahead:
        if (other := ahead.pop()) not in reached:
            reached.add(other)
            ahead += named.get(other, ())
    return reached
