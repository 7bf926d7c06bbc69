import asyncio
import os
import pickle
import subprocess
import sys
import traceback
from datetime import timedelta
from email.utils import formataddr
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from openviper.conf import override
from openviper.core.email import Address, AddressLike, parse_address
from openviper.core.email.settings import EmailSettings
from openviper.core.email.settings.units import Rate
from openviper.exceptions import ImproperlyConfigured

# A name for it, since tracebacks quote the lines of this file.
SECRET = "hunter2"

DEFAULTS: dict[str, Any] = {
    "url": None,
    "host": "localhost",
    "port": 25,
    "username": None,
    "password": None,
    "xoauth2_token": None,
    "xoauth2_token_provider": None,
    "use_tls": False,
    "use_ssl": False,
    "tls_ca_file": None,
    "local_hostname": None,
    "timeout": 10.0,
    "data_timeout": 300.0,
    "one_flight": True,
    "default_sender": None,
    "auto_submitted": False,
    "inline_css": False,
    "template_environment": None,
    "backend": "SMTPBackend",
    "file_dir": Path("mail"),
    "before_send": (),
    "mailers": {},
    "failover": (),
    "retry_period": 30.0,
    "stream": None,
    "tag_header": None,
    "ref_header": None,
    "metadata_header": None,
    "listeners": (),
    "mails": (),
    "suppress": None,
    "always_streams": (),
    "unsubscribe_keys": (),
    "site_url": None,
    "redirect_to": (),
    "redirect_except": (),
    "redirect_bcc": False,
    "dkim": {},
    "dkim_unsigned": (),
    "fail_silently": False,
    "use_background_worker": None,
    "pool_size": 5,
    "pool_warm": False,
    "idle_timeout": 60.0,
    "max_messages_per_connection": 100,
    "max_connection_age": 600.0,
    "rate_limit": None,
    "outbox": None,
    "outbox_wait": False,
    "retries": 3,
    "retry_max_age": 24 * 3600.0,
    "key_ttl": 24 * 3600.0,
    "on_uncertain": "retry",
    "failed_keep": 7 * 24 * 3600.0,
    "journal": False,
    "journal_keep": 30 * 24 * 3600.0,
    "journal_key": None,
    "shutdown_timeout": 20.0,
    "dispatcher_messages": 1000,
    "dispatcher_bytes": 64 * 1024 * 1024,
    "state_dir": None,
    "discard_on_error": False,
    "protocol_log": False,
    "allow_partial": True,
    "max_attachment_bytes": 25 * 1024 * 1024,
    "max_message_bytes": 36 * 1024 * 1024,
    "max_recipients_per_message": 100,
    "attachment_dirs": None,
    "attachment_hosts": None,
    "inbox": None,
    "inbox_dir": None,
    "inbox_hosts": None,
    "target_clients": (
        "apple-mail",
        "gmail",
        "outlook",
        "yahoo",
        "aol",
        "samsung-email",
        "thunderbird",
        "protonmail",
    ),
}


def load(email: Any = None, **overrides: Any) -> EmailSettings:
    return EmailSettings.load(overrides or None, email={} if email is None else email)


def faults(email: Any = None, **overrides: Any) -> list[str]:
    """The lines of the error that loading these raises."""
    with pytest.raises(ImproperlyConfigured) as caught:
        load(email, **overrides)
    return str(caught.value).splitlines()


def fault(email: Any = None, **overrides: Any) -> str:
    """The only fault."""
    (line,) = faults(email, **overrides)
    return line


def test_an_empty_email_gives_every_default() -> None:
    assert dict(load()) == DEFAULTS


def test_every_default_is_a_value_that_may_also_be_given() -> None:
    assert load(DEFAULTS) == load()


def test_every_setting_is_described_for_the_reference() -> None:
    assert [name for name, field in EmailSettings.model_fields.items() if len(field.description or "") < 20] == []


def test_the_example_of_the_documentation_is_valid() -> None:
    settings = load(
        {
            "host": "smtp.example.com",
            "port": 587,
            "username": "apikey",
            "password": "SG.xxxx",
            "use_tls": True,
            "use_ssl": False,
            "timeout": 10,
            "default_sender": "noreply@example.com",
            "backend": "SMTPBackend",
            "fail_silently": False,
            "use_background_worker": None,
        }
    )
    assert settings.password is not None
    assert settings.password.get_secret_value() == "SG.xxxx"
    assert (settings.port, settings.timeout, settings.default_sender) == (587, 10.0, "noreply@example.com")


@pytest.mark.parametrize(
    ("email", "port"),
    [
        ({}, 25),
        ({"use_tls": True}, 587),
        ({"use_ssl": True}, 465),
        ({"use_ssl": True, "port": None}, 465),
        ({"use_tls": True, "port": 25}, 25),
    ],
)
def test_the_port_follows_the_kind_of_security_unless_given(email: dict[str, Any], port: int) -> None:
    assert load(email).port == port


def test_the_port_follows_security_that_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_USE_SSL", "1")
    assert load().port == 465


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("from", "default_sender", "a@example.com"),
        ("user", "username", "me"),
        ("background", "use_background_worker", True),
    ],
)
def test_an_alias_is_another_name(alias: str, name: str, value: Any) -> None:
    password = {"password": "x"} if name == "username" else {}
    assert getattr(load({alias: value, **password}), name) == value


@pytest.mark.parametrize(
    ("alias", "name"), [("from", "default_sender"), ("user", "username"), ("background", "use_background_worker")]
)
def test_a_setting_and_its_alias_together_are_refused(alias: str, name: str) -> None:
    line = fault({alias: None, name: None})
    assert line == f'EMAIL["{alias}"]: is another name of EMAIL["{name}"], and both are given; keep one'


def test_an_alias_in_one_place_and_the_name_in_another_follow_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_FROM", "environment@example.com")
    assert load({"default_sender": "module@example.com"}).default_sender == "environment@example.com"
    assert load({}, default_sender="argument@example.com").default_sender == "argument@example.com"


def test_arguments_come_before_environment_before_settings_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_HOST", "environment.example.com")
    monkeypatch.setenv("EMAIL_POOL_SIZE", "7")
    settings = load({"host": "module.example.com", "pool_size": 6, "retries": 2}, host="argument.example.com")
    assert (settings.host, settings.pool_size, settings.retries) == ("argument.example.com", 7, 2)
    assert settings.timeout == 10.0


def test_a_wrong_value_that_another_source_replaces_does_no_harm() -> None:
    assert load({"port": "many"}, port=2525).port == 2525


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("EMAIL_USE_TLS", "true", "use_tls", True),
        ("EMAIL_USE_TLS", "1", "use_tls", True),
        ("EMAIL_USE_TLS", "YES", "use_tls", True),
        ("EMAIL_USE_TLS", " on ", "use_tls", True),
        ("EMAIL_ONE_FLIGHT", "false", "one_flight", False),
        ("EMAIL_ONE_FLIGHT", "0", "one_flight", False),
        ("EMAIL_ONE_FLIGHT", "no", "one_flight", False),
        ("EMAIL_ONE_FLIGHT", "Off", "one_flight", False),
        ("EMAIL_PORT", "2525", "port", 2525),
        ("EMAIL_TIMEOUT", "2.5", "timeout", 2.5),
        ("EMAIL_RETRY_MAX_AGE", "2 days", "retry_max_age", 172800.0),
        ("EMAIL_MAX_MESSAGE_BYTES", "1000", "max_message_bytes", 1000),
        ("EMAIL_MAX_MESSAGE_BYTES", "10 MB", "max_message_bytes", 10 * 1024 * 1024),
        ("EMAIL_RATE_LIMIT", "14/second", "rate_limit", Rate(14, 1.0)),
        ("EMAIL_BACKGROUND", "no", "use_background_worker", False),
        ("EMAIL_INBOX", "always", "inbox", "always"),
        ("EMAIL_INBOX", "off", "inbox", False),
        ("EMAIL_ATTACHMENT_DIRS", f"/srv/a{os.pathsep}/srv/b", "attachment_dirs", (Path("/srv/a"), Path("/srv/b"))),
        ("EMAIL_TARGET_CLIENTS", "gmail, outlook.windows", "target_clients", ("gmail", "outlook.windows")),
        ("EMAIL_ATTACHMENT_HOSTS", "files.internal, 10.0.0.7", "attachment_hosts", ("files.internal", "10.0.0.7")),
        ("EMAIL_FROM", "shop@example.com", "default_sender", "shop@example.com"),
        ("EMAIL_FILE_DIR", "/srv/mail", "file_dir", Path("/srv/mail")),
    ],
)
def test_text_of_the_environment_is_read_as_the_setting_needs_it(
    variable: str, text: str, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    assert getattr(load(), name) == value


@pytest.mark.parametrize(
    ("variable", "email", "name"),
    [
        ("EMAIL_USE_BACKGROUND_WORKER", {"use_background_worker": False}, "use_background_worker"),
        ("EMAIL_RATE_LIMIT", {"rate_limit": "1/second"}, "rate_limit"),
        ("EMAIL_INBOX", {"inbox": True}, "inbox"),
    ],
)
def test_the_environment_can_put_a_setting_back_to_none(
    variable: str, email: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "none")
    assert getattr(load(email), name) is None


def test_empty_and_unknown_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("EMAIL_HOST", "EMAIL_PORT", "EMAIL_PASSWORD"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("EMAIL_OF_THE_ADMIN", "a@example.com")
    assert load({"host": "mail.example.com"}).host == "mail.example.com"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("EMAIL_PORT", "0x19"),
        ("EMAIL_PORT", "-25"),
        ("EMAIL_USE_TLS", "maybe"),
        ("EMAIL_TIMEOUT", "soon"),
        ("EMAIL_MAX_MESSAGE_BYTES", "²"),
        ("EMAIL_MAX_MESSAGE_BYTES", "many"),
        ("EMAIL_INBOX", "sometimes"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    line = fault()
    assert line.startswith(f"{variable} (environment): {text!r} is not ")
    assert "; give " in line


def test_one_error_lists_every_fault_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown keys, wrong values of three sources, and values that exclude each other, each on its own line."""
    monkeypatch.setenv("EMAIL_POOL_SIZE", "0")
    lines = faults(
        {
            "hots": "x",
            "port": 70000,
            "use_tls": True,
            "use_ssl": True,
            "password": SECRET,
            "from": "a",
            "timeout": 0,
        },
        retires=5,
    )
    places = [
        'EMAIL["hots"]',
        'EMAIL["port"]',
        'EMAIL["use_ssl"]',
        'EMAIL["password"]',
        'EMAIL["from"]',
        'EMAIL["timeout"]',
        "EMAIL_POOL_SIZE (environment)",
        'Email({"retires": ...})',
    ]
    for place, line in zip(sorted(places), sorted(lines), strict=True):
        assert line.startswith(f"{place}: ")


@pytest.mark.parametrize("call", ["Email(", "EmailMiddleware(app, "])
def test_a_hook_that_scripts_and_workers_would_not_have_is_refused(call: str) -> None:
    with pytest.raises(ImproperlyConfigured) as refused:
        EmailSettings.load({"before_send": lambda data: data}, call=call)
    assert str(refused.value).endswith(
        f'{call}{{"before_send": ...}}): scripts, commands and workers would send without it; write '
        'EMAIL = {"before_send": ...} in the settings module'
    )
    assert EmailSettings.load({"before_send": None}, call=call).before_send == ()


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("hots", "host"),
        ("HOST", "host"),
        ("EMAIL_HOST", "host"),
        ("pool-size", "pool_size"),
        ("default_from", "default_sender"),
        ("usr", "user"),
        ("tls", "use_tls"),
    ],
)
def test_an_unknown_key_suggests_the_near_one(key: str, meant: str) -> None:
    assert fault({key: "x"}) == f"EMAIL[\"{key}\"]: there is no such setting; did you mean '{meant}'?"


@pytest.mark.parametrize("key", ["zzz", 7, None])
def test_an_unknown_key_without_a_near_one_is_refused_as_well(key: object) -> None:
    assert "there is no such setting; the settings reference lists" in fault({key: "x"})


def test_the_value_of_an_unknown_key_is_not_shown() -> None:
    """It may be a mistyped password."""
    assert SECRET not in fault({"pasword": SECRET})


def test_no_signature_may_leave_out_from() -> None:
    assert fault({"dkim_unsigned": ["To", "from"]}).startswith(
        'EMAIL["dkim_unsigned"]: has From, which every signature'
    )


def test_a_journal_needs_its_key_which_is_never_shown() -> None:
    assert fault({"journal": True}).startswith('EMAIL["journal_key"]: is needed by journal: give a random text')
    settings = load({"journal": True, "journal_key": "a key that is long enough for this"})
    assert settings.journal
    assert "long enough" not in repr(settings)


@pytest.mark.parametrize("email", [[], "host=localhost", 7, ("host", "localhost")])
def test_an_email_that_is_no_dict_is_refused(email: object) -> None:
    assert fault(email) == f"EMAIL: is a {type(email).__name__}; give a dict of settings"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("host", ""),
        ("host", None),
        ("host", 7),
        ("host", "mail.example.com:587"),
        ("host", "smtp://mail.example.com"),
        ("host", "mail example.com"),
        ("host", "mail.example.com\r\nQUIT"),
        ("host", "mail.example.com\x00"),
        ("local_hostname", "me\r\nMAIL FROM:<x>"),
        ("local_hostname", "me you"),
        ("username", "me\n"),
        ("username", "me\x85"),
        ("default_sender", "a@example.com\r\nBcc: b@example.com"),
        ("default_sender", 7),
        ("port", 0),
        ("port", 65536),
        ("port", "25"),
        ("port", True),
        ("port", 25.0),
        ("use_tls", "yes"),
        ("use_tls", 1),
        ("use_tls", None),
        ("use_background_worker", "auto"),
        ("fail_silently", "no"),
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", "10"),
        ("timeout", None),
        ("timeout", True),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("idle_timeout", timedelta(0)),
        ("shutdown_timeout", -1),
        ("retry_max_age", "a day"),
        ("failed_keep", timedelta(days=-1)),
        ("key_ttl", 0),
        ("retries", -1),
        ("retries", 21),
        ("retries", (1, 5, 25)),
        ("pool_size", 0),
        ("max_messages_per_connection", 0),
        ("dispatcher_messages", 0),
        ("dispatcher_bytes", 0),
        ("max_message_bytes", "36"),
        ("max_message_bytes", -1),
        ("max_recipients_per_message", 0),
        ("rate_limit", 14),
        ("rate_limit", "fast"),
        ("attachment_dirs", "/srv/files"),
        ("attachment_dirs", ["/srv/files", 7]),
        ("attachment_dirs", [""]),
        ("attachment_hosts", "files.internal"),
        ("attachment_hosts", ["https://files.internal"]),
        ("tls_ca_file", 7),
        ("tls_ca_file", "ca\x00.pem"),
        ("file_dir", ""),
        ("file_dir", None),
        ("backend", ""),
        ("backend", None),
        ("inbox", "sometimes"),
        ("inbox", 1),
        ("journal_key", "too short"),
        ("target_clients", "gmail"),
        ("target_clients", ["gmial"]),
        ("target_clients", ["gmail.windows", 3]),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(key: str, value: object) -> None:
    line = fault({key: value})
    assert line.startswith(f'EMAIL["{key}"]: ')
    assert "; give " in line


def test_a_key_with_a_line_break_makes_no_second_line() -> None:
    assert "\n" not in fault({"ho\nst": "x"})


def test_a_fault_is_one_line_even_when_its_value_has_several() -> None:
    assert "\n" not in fault({"host": "a\nEMAIL['port']: wrong"})


def test_a_long_value_is_cut_in_the_error() -> None:
    assert len(fault({"host": "x " * 50_000})) < 300


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("timeout", timedelta(seconds=3), 3.0),
        ("retry_max_age", "24h", 86400.0),
        ("failed_keep", "7 days", 604800.0),
        ("failed_keep", timedelta(days=1), 86400.0),
        ("failed_keep", 0, 0.0),
        ("shutdown_timeout", 0, 0.0),
        ("retries", 0, 0),
        ("dispatcher_bytes", "64 MB", 67_108_864),
        ("rate_limit", "500/minute", Rate(500, 60.0)),
        ("rate_limit", Rate(3, 2.0), Rate(3, 2.0)),
        ("attachment_dirs", ["/srv", Path("/var")], (Path("/srv"), Path("/var"))),
        ("attachment_dirs", [], ()),
        ("attachment_hosts", ("Files.Internal", "::1"), ("files.internal", "::1")),
        ("target_clients", ["Gmail", "outlook.windows"], ("gmail", "outlook.windows")),
        ("host", "::1", "::1"),
        ("tls_ca_file", "ca.pem", Path("ca.pem")),
        ("tls_ca_file", "", None),
        ("username", "", None),
        ("password", "", None),
        ("default_sender", "", None),
        ("inbox", "always", "always"),
        ("backend", "shop.mail.Backend", "shop.mail.Backend"),
    ],
)
def test_a_value_is_kept_in_one_form(key: str, value: object, kept: object) -> None:
    result = getattr(load({key: value}), key)
    assert result == kept
    assert type(result) is type(kept)


def test_starttls_and_tls_exclude_each_other() -> None:
    line = fault({"use_tls": True}, use_ssl=True)
    assert line.startswith('Email({"use_ssl": ...}): excludes EMAIL["use_tls"], and both are True; ')


@pytest.mark.parametrize(
    ("email", "place"),
    [
        ({"username": "me"}, 'EMAIL["username"]: is given without a password'),
        ({"password": "x"}, 'EMAIL["password"]: is given without a user name'),
        ({"xoauth2_token": "x"}, 'EMAIL["xoauth2_token"]: is given without a user name'),
        (
            {"username": "me", "password": "x", "xoauth2_token": "y"},
            'EMAIL["xoauth2_token"]: excludes EMAIL["password"]',
        ),
    ],
)
def test_credentials_are_given_whole_or_not_at_all(email: dict[str, Any], place: str) -> None:
    assert fault(email).startswith(place)


@pytest.mark.parametrize("secret", ["password", "xoauth2_token"])
@pytest.mark.parametrize(
    "host", ["mail.example.com", "10.0.0.1", "128.0.0.1", "127.0.0.1.example.com", "localhost.com"]
)
def test_credentials_are_not_sent_in_clear_text(host: str, secret: str) -> None:
    line = fault({"host": host, "username": "me", secret: SECRET})
    assert line.startswith(f'EMAIL["username"]: would be sent to {host!r} in clear text; set use_tls')


@pytest.mark.parametrize("wrong", ["use_tls", "use_ssl"])
def test_what_is_wrong_itself_is_not_blamed_for_more(wrong: str) -> None:
    """Who wrote "yes" for TLS has one mistake to mend, not clear text as a second one."""
    line = fault({"host": "mail.example.com", "username": "me", "password": "x", wrong: "yes"})
    assert line.startswith(f'EMAIL["{wrong}"]: ')


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1"])
def test_credentials_may_go_to_this_machine_without_tls(host: str) -> None:
    assert load({"host": host, "username": "me", "password": "x"}).username == "me"


@pytest.mark.parametrize("security", ["use_tls", "use_ssl"])
def test_credentials_may_go_anywhere_with_tls(security: str) -> None:
    assert load({"host": "mail.example.com", "username": "me", "password": "x", security: True}).username == "me"


@pytest.mark.parametrize("secret", ["password", "xoauth2_token"])
@pytest.mark.parametrize(
    "email",
    [
        {"host": "mail.example.com"},
        {"host": "mail.example.com", "port": "x"},
        {"use_tls": "yes"},
        {"use_tls": True, "use_ssl": True},
    ],
)
def test_no_error_shows_a_secret(email: dict[str, Any], secret: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        load({**email, "username": "me", secret: SECRET})
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("wrong", [f"{SECRET}\n", f"{SECRET}\x00", SECRET.encode(), [SECRET], 4242])
def test_a_wrong_password_is_masked(wrong: object) -> None:
    line = fault({"username": "me", "password": wrong})
    assert line.startswith('EMAIL["password"]: ***')
    assert SECRET not in line
    assert "4242" not in line


def test_a_password_inside_a_url_given_as_host_is_not_shown() -> None:
    assert SECRET not in fault({"host": "smtp://me:hunter2@mail.example.com"})


@pytest.mark.parametrize("secret", ["password", "xoauth2_token"])
def test_the_settings_do_not_show_a_secret(secret: str) -> None:
    settings = load({"username": "me", secret: SECRET})
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()} {vars(settings)}"
    assert SECRET not in shown
    assert settings.model_copy(update={"host": "localhost"}) == settings


def test_repr_names_what_differs_from_the_defaults() -> None:
    assert repr(load({"host": "mail.example.com", "use_tls": True})) == (
        "EmailSettings(host='mail.example.com', port=587, use_tls=True)"
    )


def test_the_settings_cannot_be_changed() -> None:
    settings = load()
    with pytest.raises(ValidationError, match="frozen"):
        settings.host = "mail.example.com"
    assert settings.host == "localhost"


def test_equal_settings_are_equal_and_hash_alike() -> None:
    one, other = load({"attachment_dirs": ["/a"], "timeout": 5}), load({"attachment_dirs": ("/a",), "timeout": 5.0})
    assert one == other
    assert hash(one) == hash(other)


def test_settings_survive_pickling() -> None:
    settings = load({"username": "me", "password": "x", "rate_limit": "1/second"})
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_the_constructor_checks_and_reads_no_other_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_HOST", "environment.example.com")
    with override(EMAIL={"host": "module.example.com"}):
        assert EmailSettings(port=2525, **{"from": "a@example.com"}).host == "localhost"
    with pytest.raises(ImproperlyConfigured) as caught:
        EmailSettings(prot=2525, timeout="soon")
    assert str(caught.value).splitlines()[0] == (
        "EmailSettings(prot=...): there is no such setting; did you mean 'port'?"
    )


def test_load_reads_the_setting_email() -> None:
    with override(EMAIL={"host": "mail.example.com"}):
        assert EmailSettings.load().host == "mail.example.com"
        assert EmailSettings.load({"host": "other.example.com"}).host == "other.example.com"


def test_from_settings_is_kept_until_the_settings_or_the_environment_change(monkeypatch: pytest.MonkeyPatch) -> None:
    with override(EMAIL={"host": "one.example.com"}):
        first = EmailSettings.from_settings()
        assert EmailSettings.from_settings() is first
        monkeypatch.setenv("EMAIL_TIMEOUT", "3")
        assert (EmailSettings.from_settings().host, EmailSettings.from_settings().timeout) == ("one.example.com", 3.0)
    with override(EMAIL={"host": "two.example.com"}):
        assert EmailSettings.from_settings().host == "two.example.com"


def test_from_settings_loads_the_settings_module_once() -> None:
    """The first call loads it, which changes the version; the second call must not take that for a change."""
    assert EmailSettings.from_settings() is EmailSettings.from_settings()


def test_from_settings_reports_faults_each_time() -> None:
    with override(EMAIL={"port": 0}):
        for _ in range(2):
            with pytest.raises(ImproperlyConfigured, match=r'^EMAIL\["port"\]'):
                EmailSettings.from_settings()


@pytest.mark.parametrize(
    ("retries", "delays"),
    [(0, ()), (1, (1.0,)), (3, (1.0, 5.0, 25.0)), (7, (1.0, 5.0, 25.0, 125.0, 625.0, 3125.0, 3600.0))],
)
def test_retries_wait_five_times_longer_each_time_up_to_an_hour(retries: int, delays: tuple[float, ...]) -> None:
    assert load({"retries": retries}).retry_delays == delays


@pytest.mark.parametrize(
    ("inbox", "with_debug", "without"),
    [(None, True, False), (True, True, False), (False, False, False), ("always", True, True)],
)
def test_the_inbox_needs_debug_unless_it_is_forced(inbox: object, with_debug: bool, without: bool) -> None:
    settings = load({"inbox": inbox})
    assert (settings.inbox_enabled(debug=True), settings.inbox_enabled(debug=False)) == (with_debug, without)


async def test_settings_may_be_read_by_many_tasks_and_threads_at_once() -> None:
    with override(EMAIL={"host": "mail.example.com"}):
        read = [asyncio.to_thread(EmailSettings.from_settings) for _ in range(20)]
        assert {settings.host for settings in await asyncio.gather(*read)} == {"mail.example.com"}


def test_an_uncaught_error_prints_the_faults_and_no_secret(tmp_path: Path) -> None:
    """What a person sees who starts a project with wrong settings: no chained pydantic error, no password."""
    (tmp_path / "project_settings.py").write_text(
        "EMAIL = {'host': 'mail.example.com', 'username': 'me', 'password': 'hunter2', 'port': 'x'}\n"
    )
    environment = {
        **os.environ,
        "OPENVIPER_SETTINGS_MODULE": "project_settings",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path.cwd())]),
    }
    code = "from openviper.core.email.settings import EmailSettings; EmailSettings.from_settings()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "EMAIL[\"port\"]: 'x' is not allowed; give a whole number from 1 to 65535" in done.stderr
    assert "in clear text" in done.stderr
    assert SECRET not in done.stderr
    assert "pydantic" not in done.stderr


def test_a_secret_may_be_given_wrapped() -> None:
    settings = load({"username": "me", "password": SecretStr("x")})
    assert settings.password == SecretStr("x")


@pytest.mark.parametrize("key", ["default_sender", "from"])
def test_a_default_sender_that_is_no_address_is_told_at_once(key: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        EmailSettings.load(email={key: "Viper Supplies"})
    assert str(caught.value).startswith(f"EMAIL[\"{key}\"]: 'Viper Supplies' has no '@'; give ")

    with pytest.raises(ImproperlyConfigured, match=r"encoded word .* give the name as plain text"):
        EmailSettings.load(email={key: "=?utf-8?q?=0A?= <a@shop.example>"})


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (("Costa, Ana (Shop)", "orders@shop.example"), "Costa, Ana (Shop)"),
        (Address.of('Ana "A" 🐍', "orders@shop.example"), 'Ana "A" 🐍'),
        (formataddr(("Müller", "orders@shop.example")), "Müller"),
    ],
)
def test_the_default_sender_may_be_a_pair_or_an_address(given: AddressLike, name: str) -> None:
    settings = EmailSettings.load(email={"default_sender": given})
    assert settings.default_sender is not None
    assert parse_address(settings.default_sender) == Address(name, "orders", "shop.example")
    assert EmailSettings.model_validate(settings.model_dump()).default_sender == settings.default_sender


def test_the_default_sender_is_text_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_DEFAULT_SENDER", formataddr(("Müller", "orders@shop.example")))
    settings = EmailSettings.load(email={})
    assert parse_address(str(settings.default_sender)).display_name == "Müller"


def test_the_keys_of_unsubscribe_links_are_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = "a" * 32, "b" * 40
    settings = load({"unsubscribe_keys": [first, SecretStr(second)]})
    assert [key.get_secret_value() for key in settings.unsubscribe_keys] == [first, second]
    assert first not in repr(settings)
    assert [key.get_secret_value() for key in load({"unsubscribe_keys": first}).unsubscribe_keys] == [first]
    assert load({"unsubscribe_keys": ""}).unsubscribe_keys == load({"unsubscribe_keys": None}).unsubscribe_keys == ()
    monkeypatch.setenv("EMAIL_UNSUBSCRIBE_KEYS", f"{second}, {first}")
    assert [key.get_secret_value() for key in load().unsubscribe_keys] == [second, first]
    mailer = load({"mailers": {"bulk": {}}}).of_mailer("bulk")
    assert [key.get_secret_value() for key in mailer.unsubscribe_keys] == [second, first]


@pytest.mark.parametrize("keys", [["short"], "short", ["a" * 32, ""], [7], 7, {"a": "b"}, {"a" * 32}])
def test_a_short_key_of_unsubscribe_links_is_refused_and_not_shown(keys: Any) -> None:
    line = fault({"unsubscribe_keys": keys})
    assert line.startswith('EMAIL["unsubscribe_keys"]: ***')
    assert "at least 32 characters" in line
    assert "short" not in line.replace("shorter", "")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://shop.example", "https://shop.example"),
        ("https://shop.example:8443/app/", "https://shop.example:8443/app"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
        ("", None),
    ],
)
def test_the_base_of_links_has_no_slash_at_its_end(
    monkeypatch: pytest.MonkeyPatch, given: str, kept: str | None
) -> None:
    assert load({"site_url": given}).site_url == kept
    monkeypatch.setenv("EMAIL_SITE_URL", given)
    assert load().site_url == kept


@pytest.mark.parametrize(
    "url",
    [
        "shop.example",
        "http://shop.example",
        "//shop.example",
        "ftp://shop.example",
        "https://",
        "https://shop.example?a=b",
        "https://shop.example/#a",
        "https://user:password@shop.example",
        "https://münchen.example",
        "https://shop.example/a b",
        "https://shop.example/<a>",
        "https://shop.example\n",
        7,
    ],
)
def test_what_is_no_base_of_links_is_refused(url: Any) -> None:
    line = fault({"site_url": url})
    assert line.startswith('EMAIL["site_url"]: ')
    assert line.endswith("give None or a URL such as https://shop.example, with http only on this machine")
    assert "password" not in line
