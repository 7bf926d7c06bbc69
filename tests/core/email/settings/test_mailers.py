"""``EMAIL["mailers"]``: each inherits what does not belong to a server, and errors name its path."""

from typing import Any

import pytest

from openviper.core.email.errors import InvalidMessage
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured

SECRET = "hunter2"
FLAT: dict[str, Any] = {
    "host": "main.example",
    "use_tls": True,
    "username": "ann",
    "password": SECRET,
    "tls_ca_file": "ca.pem",
    "local_hostname": "web.example",
    "rate_limit": "1/second",
    "pool_size": 9,
    "pool_warm": True,
    "timeout": 4,
    "default_sender": "shop@example.com",
}


def load(mailers: Any, **flat: Any) -> EmailSettings:
    return EmailSettings.load(None, email={**FLAT, **flat, "mailers": mailers})


def test_a_mailer_without_a_server_of_its_own_has_that_of_email() -> None:
    slow = load({"slow": {"timeout": 60, "rate_limit": "2/second"}}).of_mailer("slow")
    assert (slow.host, slow.port, slow.username, slow.timeout) == ("main.example", 587, "ann", 60.0)
    assert slow.password is not None
    assert (str(slow.rate_limit), slow.pool_size, slow.default_sender) == ("2/second", 9, "shop@example.com")


@pytest.mark.parametrize(
    "own",
    [{"host": "bulk.example"}, {"url": "smtp://bulk.example"}, {"host": "bulk.example", "use_tls": False}],
)
def test_a_mailer_that_names_its_server_inherits_nothing_of_another(own: dict[str, Any]) -> None:
    bulk = load({"bulk": own}).of_mailer("bulk")
    assert (bulk.host, bulk.port, bulk.username, bulk.password) == ("bulk.example", 25, None, None)
    assert (bulk.use_tls, bulk.tls_ca_file, bulk.local_hostname, bulk.rate_limit) == (False, None, None, None)
    assert (bulk.pool_size, bulk.pool_warm) == (5, False)
    assert (bulk.timeout, bulk.default_sender) == (4.0, "shop@example.com")


def test_a_backend_alone_counts_as_a_server() -> None:
    assert load({"log": {"backend": "ConsoleBackend"}}).of_mailer("log").password is None


def test_the_default_mailer_is_email_itself() -> None:
    settings = load({"bulk": {}})
    assert settings.of_mailer(None) is settings.of_mailer("default") is settings


def test_an_unknown_mailer_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidMessage, match=r"there is no mailer 'bluk'; did you mean 'bulk'\?"):
        load({"bulk": {}}).of_mailer("bluk")
    with pytest.raises(InvalidMessage, match=r"there is no mailer 'bulk'; name it in EMAIL\[\"mailers\"\]"):
        EmailSettings.load(None, email=FLAT).of_mailer("bulk")
    with pytest.raises(InvalidMessage, match='EMAIL\\["mailers"\\]; no settings module was read: set OPENVIPER_'):
        EmailSettings.load(None).of_mailer("bulk")
    with pytest.raises(InvalidMessage, match="there is no mailer 7"):
        load({"bulk": {}}).of_mailer(7)


@pytest.mark.parametrize(
    ("mailers", "fault"),
    [
        (3, 'EMAIL["mailers"]: *** is not a dict; give a dict of names to dicts of settings'),
        ({"Bulk": {}}, "EMAIL[\"mailers\"]: 'Bulk' is not the name of a mailer; give lower-case letters"),
        ({"bulk_mail": {}}, "'bulk_mail' is not the name of a mailer"),
        ({7: {}}, "7 is not the name of a mailer"),
        ({"default": {}}, "'default' is the mailer that EMAIL itself describes"),
        ({"bulk": 3}, 'EMAIL["mailers"]["bulk"]: is a int; give a dict of settings'),
        ({"bulk": {"hots": 1}}, 'EMAIL["mailers"]["bulk"]["hots"]: there is no such setting; did you mean \'host\'?'),
        ({"bulk": {"port": 0}}, 'EMAIL["mailers"]["bulk"]["port"]: 0 is not allowed'),
        ({"bulk": {"inbox": True}}, 'EMAIL["mailers"]["bulk"]["inbox"]: applies to all mailers; set EMAIL["inbox"]'),
        ({"bulk": {"mailers": {}}}, 'EMAIL["mailers"]["bulk"]["mailers"]: applies to all mailers'),
        ({"bulk": {"host": "b.example", "password": SECRET}}, '["bulk"]["password"]: is given without a user name'),
        ({"bulk": {"url": f"smtp://u:{SECRET}@b.example"}}, '["bulk"]["url"]: would be sent to'),
        ({"bulk": {"failover": ["bluk"]}}, "[\"bulk\"][\"failover\"]: there is no mailer 'bluk'; did you mean 'bulk'?"),
        ({"bulk": {"failover": ["bulk"]}}, '["bulk"]["failover"]: leads back to \'bulk\''),
        ({"a": {"failover": ["b"]}, "b": {"failover": ["a"]}}, '["a"]["failover"]: leads back to \'a\''),
    ],
)
def test_a_wrong_mailer_is_named_with_its_path(mailers: Any, fault: str) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        load(mailers)
    (line,) = str(raised.value).splitlines()
    assert fault in line
    assert SECRET not in line


def test_the_flat_mailer_has_a_failover_too() -> None:
    assert load({"backup": {}}, failover=["backup"]).failover == ("backup",)
    with pytest.raises(ImproperlyConfigured, match=r'EMAIL\["failover"\]: there is no mailer \'other\''):
        load({"backup": {}}, failover=["other"])
    with pytest.raises(ImproperlyConfigured, match=r'EMAIL\["failover"\]: there is no mailer \'other\''):
        EmailSettings.load(None, email={"failover": ["other"]})
    with pytest.raises(ImproperlyConfigured, match="leads back to 'backup'"):
        load({"backup": {"failover": ["default"]}}, failover=["backup"])


def test_a_wrong_inherited_value_is_told_once() -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        load({"a": {}, "b": {}}, timeout=-1)
    assert str(raised.value).count("timeout") == 1


def test_a_mailer_has_its_own_url_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_BULK_MAIL_URL", f"smtps://env:{SECRET}@env.example")
    monkeypatch.setenv("EMAIL_OTHER_URL", "ftp://nobody.reads.it")
    bulk = load({"bulk-mail": {"host": "bulk.example", "use_tls": True}}).of_mailer("bulk-mail")
    assert (bulk.host, bulk.port, bulk.use_ssl, bulk.use_tls) == ("env.example", 465, True, False)
    monkeypatch.setenv("EMAIL_BULK_MAIL_URL", "ftp://x")
    with pytest.raises(
        ImproperlyConfigured, match=r"EMAIL_BULK_MAIL_URL \(environment\): is not the URL of a mail server"
    ):
        load({"bulk-mail": {}})


def test_no_password_of_a_mailer_is_shown() -> None:
    settings = load({"bulk": {"host": "localhost", "username": "x", "password": SECRET}})
    assert SECRET not in repr(settings)
    assert SECRET not in settings.model_dump_json()
    assert hash(settings) == hash(load({"bulk": {"host": "localhost", "username": "x", "password": SECRET}}))
