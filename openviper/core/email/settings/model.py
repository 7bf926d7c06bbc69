"""The setting ``EMAIL`` as one checked, frozen value."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openviper import conf
from openviper.backoff import exponential
from openviper.core.email.settings.kinds import (
    Backend,
    Bytes,
    Count,
    Directory,
    Flag,
    Folders,
    Hosts,
    InboxMode,
    MaybeEnvironment,
    MaybeFlag,
    MaybeHost,
    MaybePath,
    MaybeRate,
    MaybeSecret,
    MaybeSender,
    MaybeText,
    OnUncertain,
    Period,
    Port,
    Retries,
    ServerName,
    SettingKind,
    Span,
)
from openviper.core.email.settings.sources import SECRETS, Given, describe, environment_names
from openviper.exceptions import ImproperlyConfigured
from openviper.network import is_loopback
from openviper.text import shown

__all__ = ["EmailSettings"]

_LONGEST_RETRY_DELAY = 3600.0


class EmailSettings(BaseModel):
    """The settings of mail. Durations are in seconds (float), sizes in bytes (int), lists are tuples.

    ``EmailSettings(host=..., ...)`` checks what is given and ignores every other source; ``load()`` reads them all.
    Secrets are ``SecretStr``: ``password.get_secret_value()`` gives the text, ``repr`` does not.

    Raises:
        ImproperlyConfigured: lists every fault on a line of its own, which begins with where the value was given.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, arbitrary_types_allowed=True
    )

    host: ServerName = Field("localhost", description="SMTP server: host name or IP address.")
    port: Port = Field(
        25, description="SMTP port. Left out or None: 25, with `use_tls` 587, with `use_ssl` 465. Always an int here."
    )
    username: MaybeText = Field(
        None,
        description="User name for SMTP AUTH, together with `password` or `xoauth2_token`; alias `user`. None: no "
        "authentication. Without TLS it is refused unless `host` is a loopback address.",
    )
    password: MaybeSecret = Field(None, description="Password for SMTP AUTH; needs `username`. Never shown.")
    xoauth2_token: MaybeSecret = Field(
        None, description="OAuth 2 access token for SASL XOAUTH2 in place of `password`; needs `username`. Never shown."
    )
    use_tls: Flag = Field(
        False,
        description="STARTTLS after connecting; a server that does not offer it gets nothing. Excludes `use_ssl`.",
    )
    use_ssl: Flag = Field(False, description="TLS from the first byte (SMTPS). Excludes `use_tls`.")
    tls_ca_file: MaybePath = Field(
        None, description="PEM file with certificates to trust besides those of the system. None: only the system's."
    )
    local_hostname: MaybeHost = Field(
        None, description="Name given in EHLO. None: this machine's own name, found without a DNS query."
    )
    timeout: Period = Field(10.0, description="Seconds for connecting and for each SMTP step but the last.")
    data_timeout: Period = Field(
        300.0,
        description="Seconds to wait for the server's answer to the complete message. RFC 5321 asks for 10 minutes; "
        "giving up early makes duplicates.",
    )
    one_flight: Flag = Field(
        True,
        description="Send sender, recipients and content together where the server offers PIPELINING and CHUNKING, "
        "for messages up to 256 kB.",
    )

    default_sender: MaybeSender = Field(
        None,
        description="From address of messages that name none; alias `from`. None: every message must name its sender.",
    )
    auto_submitted: Flag = Field(
        False, description='Add "Auto-Submitted: auto-generated" (RFC 3834), which keeps holiday replies away.'
    )
    template_environment: MaybeEnvironment = Field(
        None,
        description="The application's own Jinja2 environment, or its dotted path: its filters, tests, globals and "
        "loader serve mail templates too. None: only `TEMPLATES_DIR`.",
    )
    inline_css: Flag = Field(
        False, description="Move the rules of <style> into style attributes; needs the extra `css`."
    )

    backend: Backend = Field(
        "SMTPBackend",
        description="SMTPBackend, ConsoleBackend, FileBackend, MemoryBackend, or the dotted path of your own class.",
    )
    file_dir: Directory = Field(
        Path("mail"), description="Folder of FileBackend, made when missing; relative to the working directory."
    )
    fail_silently: Flag = Field(
        False, description="send_email() returns False where delivery fails, instead of raising. Wrong input raises."
    )
    use_background_worker: MaybeFlag = Field(
        None,
        description="Give mail to a worker through the broker; alias `background`. None: when the broker answers. "
        "False: never. True: as None, since mail falls back when the broker does not answer.",
    )

    pool_size: Count = Field(5, description="Most connections open at once, for each event loop of each process.")
    pool_warm: Flag = Field(False, description="Open one connection at startup instead of at the first message.")
    idle_timeout: Period = Field(60.0, description="Seconds after which an unused connection is closed.")
    max_messages_per_connection: Count = Field(100, description="Messages after which a connection is replaced.")
    max_connection_age: Period = Field(600.0, description="Seconds after which a connection is replaced.")
    rate_limit: MaybeRate = Field(
        None,
        description='Most SMTP transactions of this process in a time, as "14/second" or "500/minute". None: no limit.',
    )

    retries: Retries = Field(
        3, description="Further tries of a deferred message after temporary failures, after 1, 5, 25, ... seconds."
    )
    retry_max_age: Span = Field(
        86400.0,
        description="Seconds for which the queue tries a message again (steps at most an hour apart); also a "
        'timedelta or "24 hours". 0: one try.',
    )
    on_uncertain: OnUncertain = Field(
        "retry",
        description="What the queue does with a message of which nobody knows whether the server took it, because the "
        "connection ended, or the worker was killed, after the end of the message. retry: send it again, perhaps a "
        "second time. hold: keep it as failed until somebody decides.",
    )
    failed_keep: Span = Field(
        604800.0, description='Seconds for which failed messages are kept; also a timedelta or "7 days". 0: not kept.'
    )
    shutdown_timeout: Span = Field(
        20.0, description="Seconds that shutdown waits for deferred mail; the rest is logged message by message."
    )
    dispatcher_messages: Count = Field(1000, description="Most deferred messages in memory.")
    dispatcher_bytes: Bytes = Field(
        64 * 1024**2, description='Most bytes of deferred messages in memory, or "64 MB" (1 MB = 1,048,576 bytes).'
    )
    discard_on_error: Flag = Field(
        False, description="Drop the deferred mail of a request that raised or answered with status 500 or more."
    )
    allow_partial: Flag = Field(
        True,
        description="Deliver to the others when recipients are refused. False: then nobody of that envelope gets it.",
    )

    max_attachment_bytes: Bytes = Field(25 * 1024**2, description='Most bytes of one attachment, or "25 MB".')
    max_message_bytes: Bytes = Field(36 * 1024**2, description='Most bytes of the encoded message, or "36 MB".')
    max_recipients_per_message: Count = Field(
        100, description="Most recipients of one envelope; the same message goes to the others in further ones."
    )
    attachment_dirs: Folders = Field(
        None, description="Folders that attached files must lie in. None: any file; an empty list: none."
    )
    attachment_hosts: Hosts = Field(
        None, description="Hosts that attachments may be fetched from although their address is not public. None: none."
    )

    inbox: InboxMode = Field(
        None,
        description="The page that shows sent mail. None or True: with DEBUG. False: never. "
        '"always": without DEBUG too.',
    )
    inbox_hosts: Hosts = Field(
        None, description="Host names besides those of this machine under which the inbox page is shown. None: none."
    )
    inbox_dir: MaybePath = Field(
        None, description="Folder in which the inbox page keeps its messages. None: in memory only."
    )

    _cached: ClassVar[tuple[object, "EmailSettings"] | None] = None

    def __init__(self, **values: Any) -> None:
        given = Given(_KINDS)
        given.add_mapping(values, whole="EmailSettings()", path=lambda key: f"EmailSettings({key}=...)")
        self._fill(given)

    @classmethod
    def load(
        cls,
        overrides: Mapping[str, Any] | None = None,
        email: Mapping[str, Any] | None = None,
        *,
        call: str = "Email(",
    ) -> Self:
        """Read every source: ``overrides``, else the environment (``EMAIL_HOST``, ...), else ``email``, else defaults.

        ``overrides`` are the settings given to ``Email`` or ``EmailMiddleware``, and ``call`` is for errors: how that
        call is written up to them. ``email`` stands in for the setting ``EMAIL`` (None: that setting). In the
        environment an empty variable counts as not set, flags are true, yes, on or 1 and false, no, off or 0, and
        variables that are no setting are ignored.

        Raises:
            ImproperlyConfigured: lists every fault.
        """
        return cls._of(_collected(overrides, email, call))

    @staticmethod
    def sources() -> Mapping[str, str]:
        """Where ``load()`` finds each value, as errors name it: ``EMAIL["host"]``, ``EMAIL_HOST (environment)``.

        Settings that are not in it have their default.
        """
        return dict(_collected().paths)

    @classmethod
    def from_settings(cls) -> "EmailSettings":
        """``load()``, kept until the settings module or the environment changes."""
        conf.settings.EMAIL  # noqa: B018 - the first read loads the settings module and so changes the version
        state = (conf.settings.version, *map(os.environ.get, environment_names(_KINDS)))
        if EmailSettings._cached is None or EmailSettings._cached[0] != state:
            EmailSettings._cached = (state, EmailSettings.load())
        return EmailSettings._cached[1]

    @property
    def retry_delays(self) -> tuple[float, ...]:
        """Seconds before each further try of a deferred message: 1, 5, 25, ..., an hour at most."""
        return tuple(
            exponential(attempt + 1, first=1.0, longest=_LONGEST_RETRY_DELAY, factor=5.0)
            for attempt in range(self.retries)
        )

    def inbox_enabled(self, *, debug: bool) -> bool:
        """Whether the inbox page is on; ``debug`` is the setting ``DEBUG``."""
        return self.inbox == "always" or (debug and self.inbox is not False)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        fields = type(self).model_fields
        return ((name, value) for name, value in super().__repr_args__() if value != fields[name or ""].default)

    @classmethod
    def _of(cls, given: Given) -> Self:
        instance = cls.__new__(cls)
        instance._fill(given)
        return instance

    def _fill(self, given: Given) -> None:
        if given.values.get("port") is None:
            given.values["port"] = _default_port(given.values)
        faulty = self._validate(given, leaving_out=frozenset())
        if faulty:
            # The rest is checked all the same, so that one error can list everything.
            self._validate(given, leaving_out=faulty)
        given.faults.extend(_conflicts(self, given, faulty))
        if given.faults:
            raise ImproperlyConfigured("\n".join(given.faults))

    def _validate(self, given: Given, *, leaving_out: frozenset[str]) -> frozenset[str]:
        try:
            super().__init__(**{name: value for name, value in given.values.items() if name not in leaving_out})
        except ValidationError as error:
            reasons = {str(fault["loc"][0]): fault for fault in error.errors(include_input=False, include_url=False)}
        else:
            return frozenset()
        for name, fault in reasons.items():
            value = describe(name, given.values[name])
            given.faults.append(f"{given.path(name)}: {value} {_reason(fault)}; give {given.kinds[name].allowed}")
        return frozenset(reasons)


def _collected(
    overrides: Mapping[str, Any] | None = None, email: Mapping[str, Any] | None = None, call: str = ""
) -> Given:
    given = Given(_KINDS)
    given.add_mapping(
        conf.settings.EMAIL if email is None else email, whole="EMAIL", path=lambda key: f'EMAIL["{key}"]'
    )
    given.add_environment(os.environ)
    if overrides is not None:
        given.add_mapping(overrides, whole=f"{call}...)", path=lambda key: f'{call}{{"{key}": ...}})')
    return given


def _reason(fault: Mapping[str, Any]) -> str:
    own = fault.get("ctx", {}).get("error")
    return str(own) if fault["type"] == "value_error" and own is not None else "is not allowed"


def _default_port(values: Mapping[str, Any]) -> int:
    if values.get("use_ssl") is True:
        return 465
    return 587 if values.get("use_tls") is True else 25


def _conflicts(settings: EmailSettings, given: Given, faulty: frozenset[str]) -> Iterator[str]:
    """Faults of values that are right each by itself; what is already reported as wrong is not judged again."""
    path = given.path
    if not faulty & {"use_tls", "use_ssl"} and settings.use_tls and settings.use_ssl:
        yield f"{path('use_ssl')}: excludes {path('use_tls')}, and both are True; keep use_tls for STARTTLS or use_ssl"
    if faulty & {"username", *SECRETS}:
        return
    secrets = [name for name in ("password", "xoauth2_token") if getattr(settings, name) is not None]
    if len(secrets) == 2:
        yield f"{path('xoauth2_token')}: excludes {path('password')}, and both are given; keep one"
    if settings.username is not None and not secrets:
        yield f"{path('username')}: is given without a password; give password (or xoauth2_token), or leave it out"
    if settings.username is None:
        for name in secrets:
            yield f"{path(name)}: is given without a user name; give username, or leave it out"
    elif secrets and not faulty & {"host", "use_tls", "use_ssl"} and _is_in_the_clear(settings):
        yield (
            f"{path('username')}: would be sent to {shown(settings.host)} in clear text; set use_tls (STARTTLS) "
            "or use_ssl, or use a server on this machine"
        )


def _is_in_the_clear(settings: EmailSettings) -> bool:
    return not (settings.use_tls or settings.use_ssl or is_loopback(settings.host))


_KINDS = {
    name: kind
    for name, field in EmailSettings.model_fields.items()
    for kind in field.metadata
    if isinstance(kind, SettingKind)
}
