"""The setting ``TASKS`` as one checked, frozen value."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

from openviper import conf
from openviper.conf.checked import CheckedSettings, Conflict, Conflicts, load_settings, report_faults
from openviper.conf.kinds import Flag, SettingKind
from openviper.conf.sources import Source
from openviper.tasks.broker_url import url_fault
from openviper.text import shown

__all__ = ["TaskSettings"]

_DEFAULT_URLS = {"redis": "redis://localhost:6379/0", "rabbitmq": "amqp://guest:guest@localhost:5672/%2F"}


def _secret(value: object) -> SecretStr:
    if isinstance(value, SecretStr):
        return value
    raise ValueError("is not a string")


def _modules(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("is not a list")
    for name in value:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"has {shown(name)} in it, which is not a dotted module name")
    return tuple(value)


def _namespace(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.:-]+", value):
        raise ValueError("is not a valid name")
    return value


BrokerKind = Annotated[Literal["redis", "rabbitmq", "stub"], SettingKind('"redis", "rabbitmq" or "stub"')]
BrokerURL = Annotated[
    SecretStr,
    BeforeValidator(_secret),
    SettingKind("a URL such as redis://localhost:6379/0 or amqp://user:password@localhost:5672/%2F", secret=True),
]
Namespace = Annotated[str, BeforeValidator(_namespace), SettingKind("a name of letters, digits, '_', '-', '.' and ':'")]
Modules = Annotated[
    tuple[str, ...], BeforeValidator(_modules), SettingKind('a list of dotted module names such as ["shop.tasks"]')
]
HeartbeatTimeout = Annotated[float, Field(ge=5, le=3600), SettingKind("seconds from 5 to 3600")]


class TaskSettings(CheckedSettings):
    """Task settings; durations in seconds. ``broker_url`` is a ``SecretStr``, since it may hold a password.

    Raises:
        ImproperlyConfigured: lists every fault on a line of its own.
    """

    setting_name: ClassVar[str] = "TASKS"
    names_elsewhere: ClassVar[Mapping[str, str]] = dict.fromkeys(("url", "redis_url", "amqp_url"), "broker_url")

    enabled: Flag = Field(False, description="Use the broker. Left out: True if `broker` is given.")
    broker: BrokerKind = Field("redis", description="redis, rabbitmq, or stub (in memory of one process, for tests).")
    broker_url: BrokerURL = Field(
        SecretStr(""), description="URL of the broker. Left out: its usual port on this machine."
    )
    namespace: Namespace = Field(
        "dramatiq", description="Prefix of every key on Redis, to keep projects apart that share a database."
    )
    modules: Modules = Field(
        (), description="Modules that declare actors, besides each tasks.py of the project and of its packages."
    )
    heartbeat_timeout: HeartbeatTimeout = Field(
        20.0,
        description="Seconds without a heartbeat after which a worker's messages go to other workers (Redis). "
        "Must exceed the difference between the workers' clocks.",
    )

    if TYPE_CHECKING:
        # The types of the fields are those after validation: a str for `broker_url`, a list for `modules`.
        def __init__(self, **values: Any) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _enable_named_broker(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "broker_url" in values and not values.keys() & {"broker", "enabled"}:
            raise Conflicts([Conflict("broker", 'is missing, so the URL is not used; give "redis" or "rabbitmq"')])
        return {"enabled": "broker" in values, **values}

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        if fault := _url_fault(self.broker_url.get_secret_value(), self.broker):
            raise Conflicts([Conflict("broker_url", fault, depends_on=frozenset({"broker"}))])
        return self

    @model_validator(mode="wrap")  # after the others, whose errors it translates
    @classmethod
    def _report_faults(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        return report_faults(cls, values, handler, info)

    @classmethod
    def load(cls, tasks: Mapping[str, Any] | None = None) -> Self:
        """Read ``tasks``, or the setting ``TASKS`` if it is None.

        Raises:
            ImproperlyConfigured: lists every fault.
        """
        return load_settings(cls, Source.setting("TASKS", conf.settings.TASKS if tasks is None else tasks))

    @classmethod
    def from_settings(cls) -> "TaskSettings":
        """Return what ``load()`` returns, kept until the settings module changes."""
        return _from_settings(conf.settings.version)

    @property
    def real(self) -> bool:
        """True if a broker is in use that reaches other processes."""
        return self.enabled and self.broker != "stub"

    @property
    def url(self) -> str:
        """URL of the broker, password included; never log it."""
        return self.broker_url.get_secret_value() or _DEFAULT_URLS.get(self.broker, "")

    @property
    def address(self) -> str:
        """Address of the broker without secrets, for logs: ``redis at localhost:6379``."""
        if self.broker == "stub":
            return "stub"
        parts = urlsplit(self.url)
        return f"{self.broker} at {parts.netloc.rpartition('@')[2] or parts.path}"


@lru_cache(maxsize=1)
def _from_settings(_version: int) -> TaskSettings:
    return TaskSettings.load()


def _url_fault(url: str, broker: str) -> str | None:
    if not url:
        return None
    if broker == "stub":
        return "is given with the stub broker, which has none; leave it out"
    return url_fault(url, broker)
