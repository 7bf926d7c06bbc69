"""The setting ``TASKS`` as one checked, frozen value."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from openviper import conf
from openviper.exceptions import ImproperlyConfigured
from openviper.terminal import escape
from openviper.text import cut, shown, suggestion

__all__ = ["TaskSettings"]

BrokerKind = Literal["redis", "rabbitmq", "stub"]

_SCHEMES = {"redis": ("redis", "rediss", "unix"), "rabbitmq": ("amqp", "amqps")}
_DEFAULT_URLS = {"redis": "redis://localhost:6379/0", "rabbitmq": "amqp://guest:guest@localhost:5672/%2F"}
_ALLOWED = {
    "enabled": "True or False",
    "broker": '"redis", "rabbitmq" or "stub"',
    "broker_url": "a URL such as redis://localhost:6379/0 or amqp://user:password@localhost:5672/%2F",
    "namespace": "a name of letters, digits, '_', '-', '.' and ':'",
    "modules": 'a list of dotted module names such as ["shop.tasks"]',
    "heartbeat_timeout": "seconds from 5 to 3600",
}


def _secret(value: object) -> object:
    if isinstance(value, str):
        return SecretStr(value)
    raise ValueError("is not a string")


def _modules(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise ValueError("is not a list")
    for name in value:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"has {shown(name)} in it, which is not a dotted module name")
    return tuple(value)


def _namespace(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.:-]+", value):
        raise ValueError("is not such a name")
    return value


def _seconds(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


class TaskSettings(BaseModel):
    """The settings of tasks; durations in seconds. ``broker_url`` is a ``SecretStr``, since it may hold a password.

    Raises:
        ImproperlyConfigured: lists every fault on a line of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    enabled: bool = Field(False, description="Use the broker. Left out: when `broker` is given.")
    broker: BrokerKind = Field("redis", description="redis, rabbitmq, or stub (in memory of one process, for tests).")
    broker_url: Annotated[SecretStr, BeforeValidator(_secret)] = Field(
        SecretStr(""), description="Where the broker is. Left out: its usual port on this machine."
    )
    namespace: Annotated[str, BeforeValidator(_namespace)] = Field(
        "dramatiq", description="Prefix of every key on Redis, to keep projects apart that share a database."
    )
    modules: Annotated[tuple[str, ...], BeforeValidator(_modules)] = Field(
        (), description="Modules that declare actors. tasks.py of the project and of its packages are found without."
    )
    heartbeat_timeout: Annotated[float, BeforeValidator(_seconds)] = Field(
        20.0,
        ge=5,
        le=3600,
        description="Seconds without a sign of life after which a worker's messages go to others (Redis). "
        "Must exceed the difference between the workers' clocks.",
    )

    def __init__(self, **values: Any) -> None:
        faults = [
            f'TASKS["{escape(cut(key))}"]: there is no such setting{_suggestion(key)}'
            for key in values
            if key not in _ALLOWED
        ]
        given = {key: value for key, value in values.items() if key in _ALLOWED}
        given.setdefault("enabled", "broker" in given)
        wrong: set[str] = set()
        try:
            super().__init__(**given)
        except ValidationError as error:
            for fault in error.errors(include_input=False, include_url=False):
                key = str(fault["loc"][0])
                wrong.add(key)
                own = fault.get("ctx", {}).get("error")
                reason = str(own) if fault["type"] == "value_error" and own is not None else "is not allowed"
                faults.append(f'TASKS["{key}"]: {_describe(key, given[key])} {reason}; give {_ALLOWED[key]}')
        if not wrong & {"broker", "broker_url"}:
            faults.extend(_url_faults(given))
        if faults:
            raise ImproperlyConfigured("\n".join(faults))

    @classmethod
    def from_settings(cls) -> "TaskSettings":
        """The project's, kept until the settings change."""
        global _of_project
        if _of_project is None or _of_project[0] != conf.settings.version:
            given = conf.settings.TASKS  # before the version: reading them may load them
            if not isinstance(given, Mapping):
                raise ImproperlyConfigured(f"TASKS: is a {type(given).__name__}; give a dict of settings")
            _of_project = (conf.settings.version, cls(**{str(key): given[key] for key in given}))
        return _of_project[1]

    @property
    def real(self) -> bool:
        """True when a broker is in use that reaches other processes."""
        return self.enabled and self.broker != "stub"

    @property
    def url(self) -> str:
        """The broker's URL, password included; never log it."""
        return self.broker_url.get_secret_value() or _DEFAULT_URLS.get(self.broker, "")

    @property
    def address(self) -> str:
        """Where the broker is, without secrets, for logs: ``redis at localhost:6379``."""
        if self.broker == "stub":
            return "stub"
        parts = urlsplit(self.url)
        return f"{self.broker} at {parts.netloc.rpartition('@')[2] or parts.path}"


# With the version of the settings that it was made of. (An attribute of a pydantic class takes longer to find.)
_of_project: tuple[int, TaskSettings] | None = None


def _url_faults(given: Mapping[str, Any]) -> list[str]:
    url, kind = given.get("broker_url", ""), given.get("broker", "redis")
    if not url:
        return []
    if kind == "stub":
        return ['TASKS["broker_url"]: is given with the stub broker, which has none; leave it out']
    try:
        parts = urlsplit(url)
        scheme, _ = parts.scheme, parts.port
    except ValueError:
        scheme = ""
    if scheme in _SCHEMES[kind]:
        return []
    return [f'TASKS["broker_url"]: is not a URL for {kind}; it begins with {" or ".join(_SCHEMES[kind])}://']


def _describe(key: str, value: object) -> str:
    if key == "broker_url":
        return "***"
    return shown(value)


def _suggestion(key: str) -> str:
    return suggestion(key, _ALLOWED, otherwise=f"known settings: {', '.join(_ALLOWED)}")
