"""The setting ``EMAIL`` as one checked, frozen value."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, SecretStr, ValidationInfo, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

from openviper import conf
from openviper.backoff import exponential
from openviper.conf.checked import CheckedSettings, Conflict, Conflicts, collect, load_settings, report_faults
from openviper.conf.imports import import_string
from openviper.conf.kinds import Flag
from openviper.conf.sources import Given, Source, kinds, variables
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.settings.elsewhere import NAMES_ELSEWHERE, misplaced_values, unshared_values
from openviper.core.email.settings.kinds import (
    Backend,
    Bytes,
    Count,
    Directory,
    DkimKeys,
    Folders,
    Functions,
    Hosts,
    InboxMode,
    Mailboxes,
    MailboxesOrDomains,
    MailClients,
    Mailers,
    MaybeAbsolutePath,
    MaybeEnvironment,
    MaybeFlag,
    MaybeFunction,
    MaybeHeader,
    MaybeHost,
    MaybeKey,
    MaybePath,
    MaybeRate,
    MaybeSecret,
    MaybeSender,
    MaybeSiteURL,
    MaybeText,
    MaybeToken,
    MaybeURL,
    NamedSettings,
    OneOrMoreFunctions,
    OnUncertain,
    Period,
    Port,
    Retries,
    ServerName,
    SigningKeys,
    Span,
    Texts,
)
from openviper.core.email.settings.mail_clients import DEFAULT_CLIENTS
from openviper.core.email.settings.mailers import (
    DEFAULT_MAILER,
    OF_A_MAILER,
    mailer_values,
    read_mailers,
    url_variables,
)
from openviper.core.email.settings.url import read_url
from openviper.exceptions import ImproperlyConfigured, OpenViperError
from openviper.network import is_loopback
from openviper.text import control_character, shown, suggestion

__all__ = ["EmailSettings"]

_PREFIX = "EMAIL_"
_LONGEST_RETRY_DELAY = 3600.0
_SECRETS = ("password", "xoauth2_token", "xoauth2_token_provider")
_CREDENTIALS = frozenset({"username", *_SECRETS})
_PARTS_OF_A_URL = frozenset({"host", "port", "username", "password", "use_tls", "use_ssl"})
_BY_URL = ("host", "port", "username", *_SECRETS, "use_tls", "use_ssl")


_PATH = re.compile(r'\bEMAIL\["(\w+)"\]')
_TWICE = re.compile(r'(EMAIL[\w"\[\]-]+(?: \(environment\))?) and \1(?![\w\[])')


class EmailSettings(CheckedSettings):
    """Mail settings. Durations are in seconds (float), sizes in bytes (int), lists are tuples.

    ``EmailSettings(host=...)`` and ``EmailSettings.model_validate({"host": ...})`` validate only the given values;
    ``load()`` reads every source. Secrets are ``SecretStr``: ``password.get_secret_value()`` returns the text, ``repr``
    hides it.

    Raises:
        ImproperlyConfigured: lists every fault on a separate line, which begins with the place where the value was
            given.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)  # jinja2.Environment

    setting_name: ClassVar[str] = "EMAIL"
    names_elsewhere: ClassVar[Mapping[str, str]] = NAMES_ELSEWHERE

    url: MaybeURL = Field(
        None,
        description="The server in one line: `smtp://` (no TLS), `smtp+tls://` (STARTTLS) or `smtps://`, then "
        "`user:password@host:port`, percent-encoded, and `?timeout=5` for other settings of the server. Settings "
        "given beside the URL replace its parts. Never shown.",
    )
    host: ServerName = Field("localhost", description="SMTP server: host name or IP address.")
    port: Port = Field(
        25,
        description="SMTP port. None or left out: 25, or 587 with `use_tls`, or 465 with `use_ssl`. After "
        "validation, it is always an int.",
    )
    username: MaybeText = Field(
        None,
        validation_alias=AliasChoices("username", "user"),
        description="User name for SMTP AUTH, together with `password` or `xoauth2_token`; alias `user`. None: no "
        "authentication. Without TLS, it is refused unless `host` is a loopback address.",
    )
    password: MaybeSecret = Field(None, description="Password for SMTP AUTH; needs `username`. Never shown.")
    xoauth2_token: MaybeToken = Field(
        None,
        repr=False,  # that of a functools.partial would show its arguments
        description="OAuth 2 access token for SASL XOAUTH2 instead of `password`, or a function (async or not) that "
        "returns the token or `(token, expires_in)`; needs `username`. Never shown.",
    )
    xoauth2_token_provider: MaybeText = Field(
        None,
        description="Dotted path of a function that returns a token, instead of `xoauth2_token`; needs `username`.",
    )
    use_tls: Flag = Field(
        False,
        description="STARTTLS after connecting; nothing is sent if the server does not offer it. Excludes `use_ssl`.",
    )
    use_ssl: Flag = Field(False, description="TLS from the first byte (SMTPS). Excludes `use_tls`.")
    tls_ca_file: MaybePath = Field(
        None,
        description="PEM file with certificates to trust in addition to those of the system. None: only the system's.",
    )
    local_hostname: MaybeHost = Field(
        None, description="Host name given in EHLO. None: this machine's own name, found without a DNS query."
    )
    timeout: Period = Field(
        10.0, description="Seconds for connecting and for each SMTP step except the last (see `data_timeout`)."
    )
    data_timeout: Period = Field(
        300.0,
        description="Seconds to wait for the server's reply to the complete message. RFC 5321 asks for 10 minutes; "
        "giving up early can cause duplicates.",
    )
    one_flight: Flag = Field(
        True,
        description="Send the sender, the recipients and the content together if the server offers PIPELINING and "
        "CHUNKING, for messages up to 256 kB.",
    )

    default_sender: MaybeSender = Field(
        None,
        validation_alias=AliasChoices("default_sender", "from"),
        description="From address for messages without a sender; alias `from`. None: every message must have one.",
    )
    auto_submitted: Flag = Field(
        False, description='Add "Auto-Submitted: auto-generated" (RFC 3834), which prevents out-of-office replies.'
    )
    template_environment: MaybeEnvironment = Field(
        None,
        description="Your own Jinja2 environment, or its dotted path: mail templates also use its filters, tests, "
        "globals and loader. None: only `TEMPLATES_DIR`.",
    )
    inline_css: Flag = Field(
        False,
        description="Move the rules of <style> into style attributes, in the HTML of every message; rules that no "
        "attribute can hold stay there. Needs the extra `css`.",
    )

    backend: Backend = Field(
        "SMTPBackend",
        description="SMTPBackend, ConsoleBackend, FileBackend, MemoryBackend, NullBackend, or the dotted path of your "
        "own class.",
    )
    file_dir: Directory = Field(
        Path("mail"), description="Folder of FileBackend, created if it is missing; relative to the working directory."
    )
    before_send: OneOrMoreFunctions = Field(
        (),
        description="Function or list of functions, async or not, each of which gets a message before it is checked "
        "and returns it, edited or not, or `Cancel(reason)`. Called once for each send, in the caller.",
    )
    mailers: Mailers = Field(
        NamedSettings(),
        description="Further mailers: a dict of names to settings, which replace those of `EMAIL`. A mailer that "
        "sets `host`, `url` or `backend` inherits nothing that belongs to a server.",
    )
    failover: Texts = Field(
        (),
        description="Mailers to use, in this order, while this mailer's server does not answer.",
    )
    retry_period: Period = Field(30.0, description="Seconds after which failover tries a server again.")
    stream: MaybeText = Field(None, description="Stream of messages that do not name one; see `suppress`.")
    tag_header: MaybeHeader = Field(None, description="Header for a message's tags, such as X-Mailgun-Tag.")
    ref_header: MaybeHeader = Field(None, description="Header for a message's reference.")
    metadata_header: MaybeHeader = Field(None, description="Header for a message's metadata, as a JSON object.")
    listeners: Functions = Field(
        (),
        description="Functions (async or not) or their dotted paths, called with each event of a message, in every "
        "process: web processes, workers and commands.",
    )
    mails: Texts = Field(
        (),
        description="Modules with functions marked `@preview`, imported by the inbox page with `DEBUG`, and by "
        "`viperctl email lint`.",
    )
    suppress: MaybeFunction = Field(
        None,
        description="Function `(addresses, stream)`, async or not, or its dotted path. It returns the addresses that "
        "must not be mailed, and is called before each attempt. None: no address is left out.",
    )
    always_streams: Texts = Field(
        (), description="Streams that a suppression without a stream does not stop, such as password resets."
    )
    unsubscribe_keys: SigningKeys = Field(
        (),
        description="Secrets that sign the links of `unsubscribe=True`: the first one signs, and all of them verify. "
        "Keep an old one for 60 days. Never shown.",
    )
    site_url: MaybeSiteURL = Field(
        None,
        description="Base URL of the links of `unsubscribe=True`: `UnsubscribeEndpoint` answers at `/unsubscribe` "
        "below it. `http` only for this machine.",
    )
    redirect_to: Mailboxes = Field(
        (),
        description="Addresses that get one copy of each message instead of its recipients, for staging. Empty or "
        "None: nothing is redirected.",
    )
    redirect_except: MailboxesOrDomains = Field((), description="Addresses and domains whose mail is not redirected.")
    redirect_bcc: Flag = Field(False, description="Also name Bcc recipients in the header of a redirected copy.")
    dkim: DkimKeys = Field(
        NamedSettings(),
        repr=False,  # the values may be keys
        description="DKIM keys: a dict of domains to dicts of selectors to private keys, with at most one RSA and "
        "one Ed25519 key for each domain. A key is a path, PEM text, `env:NAME`, or a function that returns one of "
        "them. False in a mailer: its mail is not signed.",
    )
    dkim_unsigned: Texts = Field(
        (), description="Header fields to leave unsigned, because a server on the way rewrites them."
    )
    fail_silently: Flag = Field(
        False, description="If delivery fails, send_email() returns False instead of raising. Wrong input still raises."
    )
    use_background_worker: MaybeFlag = Field(
        None,
        validation_alias=AliasChoices("use_background_worker", "background"),
        description="Queue mail for a worker through the broker; alias `background`. None: if the broker answers. "
        "False: only with `background=True`. True: same as None, because mail is sent without the broker if it does "
        "not answer.",
    )

    pool_size: Count = Field(
        5,
        description="Maximum number of open connections, for each event loop of each process; temporarily fewer if "
        "the server allows fewer.",
    )
    pool_warm: Flag = Field(False, description="Open one connection at startup instead of at the first message.")
    idle_timeout: Period = Field(60.0, description="Seconds after which an unused connection is closed.")
    max_messages_per_connection: Count = Field(
        100, description="Messages after which a connection is replaced; fewer if the server announces fewer (MAILMAX)."
    )
    max_connection_age: Period = Field(600.0, description="Seconds after which a connection is replaced.")
    rate_limit: MaybeRate = Field(
        None,
        description='Maximum rate of SMTP transactions of this process, such as "14/second" or "500/minute"; with '
        '"shared" after it, of all processes together, through the Redis of `TASKS`. None: no limit.',
    )

    outbox: MaybeText = Field(
        None,
        description="Keep accepted mail in your own database until it is delivered, stored with the commit that "
        'promises it: "database" (the one in `DATABASE_URL`), or the dotted path of an AsyncEngine. None: keep it in '
        "memory.",
    )
    outbox_wait: Flag = Field(
        False,
        description="Store a request's deferred mail before its response ends. False: store it just after the "
        "response, which then does not wait.",
    )
    retries: Retries = Field(
        3, description="Number of retries of a deferred message after temporary failures, after 1, 5, 25, ... seconds."
    )
    retry_max_age: Span = Field(
        86400.0,
        description="How long the queue retries a message (at most an hour between retries): seconds, a timedelta, "
        'or text such as "24 hours". 0: no retry.',
    )
    key_ttl: Period = Field(
        86400.0,
        description="How long the idempotency key of a sent message is kept (`key=`): seconds, a timedelta, or text "
        'such as "24 hours".',
    )
    on_uncertain: OnUncertain = Field(
        "retry",
        description="How the queue treats a message that the server may have accepted, because the connection ended "
        "or the worker was killed after the end of the message. retry: send it again, perhaps for a second time. "
        "hold: keep it as failed until you decide.",
    )
    failed_keep: Span = Field(
        604800.0,
        description='How long failed messages are kept: seconds, a timedelta, or text such as "7 days". 0: not kept.',
    )
    journal: Flag = Field(
        False,
        description="Record the final outcome for each recipient in the table `email_journal`, in the database of "
        "`outbox`, or else of `DATABASE_URL`; needs `journal_key`.",
    )
    journal_keep: Period = Field(
        2592000.0, description='How long the journal keeps an answer: seconds, a timedelta, or text such as "30 days".'
    )
    journal_key: MaybeKey = Field(
        None,
        description="Key for the journal's hashes of addresses, at least 32 characters; use the same in every "
        "process. With a different key, earlier answers are not found. Never shown.",
    )
    shutdown_timeout: Span = Field(
        20.0,
        description="Seconds that shutdown waits for deferred mail; after that, each message left is logged.",
    )
    dispatcher_messages: Count = Field(1000, description="Maximum number of deferred messages in memory.")
    dispatcher_bytes: Bytes = Field(
        64 * 1024**2,
        description='Maximum bytes of deferred messages in memory, or text such as "64 MB" (1 MB = 1,048,576 bytes).',
    )
    state_dir: MaybeAbsolutePath = Field(
        None,
        description="Folder that keeps the pause flag of `viperctl email pause` if there is neither Redis nor "
        "`outbox`. It is created with mode 0700, and refused if another user owns it or has access to it. None: only "
        "Redis and `outbox` keep the flag.",
    )
    protocol_log: Flag = Field(
        False,
        description="Keep the SMTP dialogue of a failed message's last transaction, for `viperctl email failed show` "
        "and the inbox page: at most 8 kB, without content and secrets, with only the domains of addresses. Never in "
        "logs.",
    )
    discard_on_error: Flag = Field(
        False,
        description="Drop the deferred mail of a request that raised an exception or answered with status 500 or more.",
    )
    allow_partial: Flag = Field(
        True,
        description="Deliver to the other recipients if some are refused. False: if one is refused, nobody gets it.",
    )

    max_attachment_bytes: Bytes = Field(
        25 * 1024**2, description='Maximum bytes of one attachment, or text such as "25 MB".'
    )
    max_message_bytes: Bytes = Field(
        36 * 1024**2, description='Maximum bytes of the encoded message, or text such as "36 MB".'
    )
    max_recipients_per_message: Count = Field(
        100,
        description="Maximum number of recipients in one envelope; a message with more recipients is sent in several "
        "envelopes.",
    )
    attachment_dirs: Folders = Field(
        None, description="Folders that must contain the attached files. None: any file; an empty list: no file."
    )
    attachment_hosts: Hosts = Field(
        None,
        description="Hosts from which attachments may be fetched even if their address is not public. None: no host.",
    )

    inbox: InboxMode = Field(
        None,
        description='When the page with sent mail is on. None or True: with DEBUG. False: never. "always": even '
        "without DEBUG.",
    )
    inbox_hosts: Hosts = Field(
        None,
        description="Additional host names under which the inbox page is shown. None: only this machine's own names.",
    )
    inbox_dir: MaybePath = Field(
        None, description="Folder in which the inbox page keeps its messages. None: in memory only."
    )
    target_clients: MailClients = Field(
        DEFAULT_CLIENTS,
        description="Mail clients for which the inbox page and `viperctl email lint` check messages: families "
        "(`gmail`) or single clients (`gmail.ios`). See [their names](client-support.md#mail-clients).",
    )

    _paths: Mapping[str, str] = PrivateAttr(default_factory=dict)

    if TYPE_CHECKING:
        # The types of the fields are those after validation: "25 MB", a timedelta and aliases may be given as well.
        def __init__(self, **values: Any) -> None: ...

    @classmethod
    def add_implied(cls, given: Given, source: Source) -> None:
        """Add the parts of the source's ``url``; another server's settings from sources below it do not count."""
        values = source.values if isinstance(source.values, Mapping) else {}
        url = values.get("url")
        if isinstance(url, SecretStr):
            url = url.get_secret_value()
        if not isinstance(url, str) or not url or control_character(url):  # which the field's validation refuses
            return
        for name in _BY_URL:
            given.discard(name)
        place = source.path("url")
        try:
            parts = read_url(
                url, kinds(cls), OF_A_MAILER - {"host", "port", "username", "password", "use_tls", "use_ssl"}
            )
        except ValueError as error:
            given.faults.append(f"{place}: {error}")
            return
        given.add(Source(parts, place, lambda _: place))
        if values.get("use_tls") is True or values.get("use_ssl") is True:
            given.discard("use_tls")
            given.discard("use_ssl")

    @classmethod
    def read_nested(cls, given: Given) -> None:
        """Read ``mailers``."""
        read_mailers(cls, given)

    def of_mailer(self, name: object) -> Self:
        """Return the settings of the mailer ``name``; None and "default" return these settings.

        Raises:
            InvalidMessage: there is no such mailer.
        """
        if name is None or name == DEFAULT_MAILER:
            return self
        found: Self | None = self.mailers.get(name) if isinstance(name, str) else None
        if found is None:
            hint = suggestion(name, self.mailers, otherwise='name it in EMAIL["mailers"]')
            unread = "" if conf.settings.origin is not None or self.mailers else f"; {conf.describe_origin()}"
            raise InvalidMessage(f"mailer: there is no mailer {shown(name)}{hint}{unread}")
        return found

    def with_paths(self, paths: Mapping[str, str]) -> Self:
        """Return a copy of a mailer's settings, with the path under which errors and remedies name each setting."""
        named = self.model_copy()
        named._paths = paths
        return named

    def path(self, name: str) -> str:
        """Return the place where the setting ``name`` is or would be given; for a mailer, in ``EMAIL["mailers"]``."""
        return self._paths.get(name, f'EMAIL["{name}"]')

    def name_paths(self, text: str) -> str:
        """Return ``text`` with names such as ``EMAIL["host"]`` replaced by the paths of these settings."""
        if not self._paths:
            return text
        named = _PATH.sub(lambda match: self.path(match[1]), text)
        return _TWICE.sub(r"\1", named)  # host and port of one URL

    def name_paths_in(self, error: OpenViperError) -> None:
        """Replace the names of settings in the text of ``error`` as ``name_paths`` does."""
        if self._paths:
            error.args = (self.name_paths(str(error)), *error.args[1:])

    @model_validator(mode="before")
    @classmethod
    def _choose_port(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("port") is not None:
            return values
        port = 465 if values.get("use_ssl") is True else 587 if values.get("use_tls") is True else 25
        return {**values, "port": port}

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if conflicts := [
            *_tls_conflicts(self),
            *_port_conflicts(self),
            *_credential_conflicts(self),
            *_journal_conflicts(self),
            *_dkim_conflicts(self),
        ]:
            raise Conflicts(conflicts)
        return self

    @model_validator(mode="wrap")  # after the others, whose errors it translates
    @classmethod
    def _report_faults(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        return report_faults(cls, values, handler, info)

    @classmethod
    def load(
        cls,
        overrides: Mapping[str, Any] | None = None,
        email: Mapping[str, Any] | None = None,
        *,
        call: str = "Email(",
    ) -> Self:
        """Read every source: ``overrides``, else the environment (``EMAIL_HOST``, ...), else ``email``, else defaults.

        ``overrides`` are the settings given to ``Email`` or ``EmailMiddleware``; errors show that call as ``call``,
        followed by the key. ``email`` replaces the setting ``EMAIL``; None uses that setting. In the environment, an
        empty variable counts as not set, unknown variables are ignored, and flags are written true, yes, on or 1, or
        false, no, off or 0.

        Raises:
            ImproperlyConfigured: lists every fault.
        """
        misplaced = misplaced_values(cls, conf.settings.given if email is None else {}, conf.settings.origin)
        unshared = unshared_values(overrides or {}, call)
        return load_settings(cls, *cls._sources(overrides, email, call), misplaced=(*misplaced, *unshared))

    @classmethod
    def sources(cls, mailer: str | None = None) -> Mapping[str, str]:
        """Return where ``load()`` finds each value, as errors name it: ``EMAIL["host"]``, ``EMAIL_HOST (environment)``.

        Settings missing from the result have their default. ``mailer``: a name in ``mailers``; None for the default
        mailer.
        """
        given = collect(cls, *cls._sources())
        return given.origins if mailer in (None, DEFAULT_MAILER) else mailer_values(cls, given, mailer).origins

    @classmethod
    def from_settings(cls) -> "EmailSettings":
        """Return the result of ``load()``, cached until the settings module or the environment changes."""
        return _from_settings(conf.settings.version, *map(os.environ.get, variables(cls, _PREFIX)), *url_variables())

    @property
    def retry_delays(self) -> tuple[float, ...]:
        """Return the seconds before each retry of a deferred message: 1, 5, 25, ..., an hour at most."""
        return tuple(
            exponential(attempt + 1, first=1.0, longest=_LONGEST_RETRY_DELAY, factor=5.0)
            for attempt in range(self.retries)
        )

    def functions(self, name: str) -> tuple[Callable[..., Any], ...]:
        """Return the functions that the setting ``name`` lists.

        Raises:
            ImproperlyConfigured: one of them cannot be imported, or is not a function.
        """
        return tuple(_function(each, f'EMAIL["{name}"]') for each in getattr(self, name))

    def function(self, name: str) -> Callable[..., Any] | None:
        """Return the function that the setting ``name`` holds or names; None if the setting is None.

        Raises:
            ImproperlyConfigured: it cannot be imported, or is not a function.
        """
        given = getattr(self, name)
        return None if given is None else _function(given, f'EMAIL["{name}"]')

    def inbox_enabled(self, *, debug: bool) -> bool:
        """Return True if the inbox page is on; ``debug`` is the setting ``DEBUG``."""
        return self.inbox == "always" or (debug and self.inbox is not False)

    @classmethod
    def _sources(
        cls, overrides: Mapping[str, Any] | None = None, email: Mapping[str, Any] | None = None, call: str = ""
    ) -> tuple[Source, ...]:
        """Return the sources in order of precedence."""
        return (
            Source.arguments(call, {} if overrides is None else overrides),
            Source.environment(cls, _PREFIX),
            Source.setting("EMAIL", conf.settings.EMAIL if email is None else email),
        )


def _function(given: Callable[..., Any] | str, setting: str) -> Callable[..., Any]:
    found = import_string(given, setting=setting) if isinstance(given, str) else given
    if not callable(found):
        raise ImproperlyConfigured(f"{setting}: {shown(given)} is a {type(found).__name__}; give a function")
    function: Callable[..., Any] = found
    return function


@lru_cache(maxsize=1)
def _from_settings(*_state: object) -> EmailSettings:
    return EmailSettings.load()


def _tls_conflicts(settings: EmailSettings) -> Iterator[Conflict]:
    if settings.use_tls and settings.use_ssl:
        yield Conflict("use_ssl", "both are True; keep use_tls for STARTTLS or use_ssl", excludes="use_tls")


def _port_conflicts(settings: EmailSettings) -> Iterator[Conflict]:
    # By a server on this machine, such as a tunnel, any port may be used for anything.
    if (settings.use_tls and settings.use_ssl) or is_loopback(settings.host):
        return
    text = None
    if settings.port == 465 and not settings.use_ssl:
        text = "465 expects TLS from the first byte (RFC 8314); set use_ssl, and leave use_tls out"
    if settings.port == 587 and settings.use_ssl:
        text = "587 begins without TLS (RFC 6409); set use_tls instead of use_ssl, or port 465"
    if text is not None:
        yield Conflict("port", text, depends_on=frozenset({"host", "use_tls", "use_ssl"}))


def _journal_conflicts(settings: EmailSettings) -> Iterator[Conflict]:
    if settings.journal and settings.journal_key is None:
        text = "is needed by journal: give a random text that stays secret, such as the result of secrets.token_hex()"
        yield Conflict("journal_key", text, depends_on=frozenset({"journal"}))


def _dkim_conflicts(settings: EmailSettings) -> Iterator[Conflict]:
    if any(name.lower() == "from" for name in settings.dkim_unsigned):
        yield Conflict(
            "dkim_unsigned", "has From, which every signature must cover (RFC 6376 section 5.4): take it out"
        )


def _credential_conflicts(settings: EmailSettings) -> Iterator[Conflict]:
    secrets = [name for name in _SECRETS if getattr(settings, name) is not None]
    for name in secrets[1:]:
        yield Conflict(name, "both are given; keep one", excludes=secrets[0], depends_on=_CREDENTIALS)
    if settings.username is not None and not secrets:
        text = "is given without a password; give password (or xoauth2_token), or leave it out"
        yield Conflict("username", text, depends_on=_CREDENTIALS)
    if settings.username is None:
        for name in secrets:
            text = "is given without a user name; give username, or leave it out"
            yield Conflict(name, text, depends_on=_CREDENTIALS)
    elif secrets and not (settings.use_tls or settings.use_ssl or is_loopback(settings.host)):
        secure = "set use_tls (STARTTLS) or use_ssl"
        remedy = secure if settings.url is None else "write smtp+tls:// (STARTTLS) or smtps://"
        text = f"would be sent to {shown(settings.host)} in clear text; {remedy}, or use a server on this machine"
        yield Conflict("username", text, depends_on=_CREDENTIALS | {"host", "use_tls", "use_ssl"})
