"""``EMAIL["url"]``: a mail server in one line, whose password is shown nowhere."""

import traceback
from typing import Any

import pytest
from support.smtpd import SmtpServer

from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.sending import send_email
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured

SECRET = "hunter2"


def load(email: dict[str, Any], **overrides: Any) -> EmailSettings:
    return EmailSettings.load(overrides or None, email=email)


def parts(settings: EmailSettings) -> tuple[Any, ...]:
    password = settings.password and settings.password.get_secret_value()
    security = "tls" if settings.use_tls else "ssl" if settings.use_ssl else None
    return settings.host, settings.port, settings.username, password, security


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://localhost", ("localhost", 25, None, None, None)),
        ("smtp://relay.example:2525", ("relay.example", 2525, None, None, None)),
        ("smtp://ann:pw@127.0.0.1:1025/", ("127.0.0.1", 1025, "ann", "pw", None)),
        ("smtp://[::1]:26", ("::1", 26, None, None, None)),
        ("smtp+tls://ann:pw@mail.example", ("mail.example", 587, "ann", "pw", "tls")),
        ("smtps://ann:pw@mail.example", ("mail.example", 465, "ann", "pw", "ssl")),
        ("SMTPS://ann:pw@Mail.Example", ("mail.example", 465, "ann", "pw", "ssl")),
        ("smtps://ann%40shop:p%2Fa%25s%3As@mail.example", ("mail.example", 465, "ann@shop", "p/a%s:s", "ssl")),
        ("smtps://ann:p:q@mail.example", ("mail.example", 465, "ann", "p:q", "ssl")),
        ("smtps://j%C3%B6rg:%C3%A4@mail.example", ("mail.example", 465, "jörg", "ä", "ssl")),
        ("smtps://apikey:a+b=@mail.example", ("mail.example", 465, "apikey", "a+b=", "ssl")),
    ],
)
def test_the_parts_of_a_url(url: str, expected: tuple[Any, ...]) -> None:
    assert parts(load({"url": url})) == expected
    assert parts(EmailSettings(url=url)) == expected


def test_its_query_gives_further_settings_of_a_mailer() -> None:
    settings = load({"url": "smtps://mail.example?timeout=3&pool_size=2&rate_limit=14/second&one_flight=no"})
    assert (settings.timeout, settings.pool_size, str(settings.rate_limit)) == (3.0, 2, "14/second")
    assert settings.one_flight is False


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        (
            "http://mail.example",
            "is not the URL of a mail server; give one that begins with smtp://, smtp+tls://, smtps://",
        ),
        ("mail.example", "is not the URL of a mail server"),
        ("smtp:mail.example", "is not the URL of a mail server"),
        ("smtp://", "names no host"),
        (f"smtps://ann:{SECRET}@", "names no host"),
        ("smtp://[::1", "is not the URL of a mail server"),
        ("smtp://mail.example:0", "has a port that is not a number from 1 to 65535"),
        (f"smtp://ann:{SECRET}", "has a port that is not a number"),
        (f"smtps://ann:{SECRET}#x@mail.example", "has a '#', a second '@'"),
        (f"smtps://ann:{SECRET}/x@mail.example", "or a '/' or '?' before its '@'"),
        (f"smtps://ann:{SECRET}?x@mail.example", "or a '/' or '?' before its '@'"),
        (f"smtps://ann:x@{SECRET}@mail.example", "a second '@'"),
        (f"smtps://ann:{SECRET}%zz@mail.example", "has a '%' in its user name or password that encodes nothing"),
        (f"smtps://ann:{SECRET}%ff@mail.example", "not UTF-8"),
        (f"smtps://ann:{SECRET}%0d%0a@mail.example", "has a control character in its user name or password"),
        (f"smtps://ann:{SECRET} x@mail.example", "has a space"),
        (f"smtps://ann:{SECRET}\n@mail.example", "has a control character or a line break"),
        ("smtps://mail.example/inbox", "has a path"),
        ("smtps://mail.example?timout=3", "'timout', which is not a setting of a mailer; did you mean 'timeout'?"),
        ("smtps://mail.example?inbox=always", "'inbox', which is not a setting of a mailer"),
        ("smtps://mail.example?timeout=3&timeout=4", "has the parameter timeout twice"),
        (f"smtps://mail.example?password={SECRET}", "has the parameter password; give it by its place"),
        ("smtps://mail.example?use_tls=yes", "give it by its scheme, smtp+tls:// or smtps://"),
        ("smtps://mail.example?timeout=soon", "'soon' is not a number with a known unit"),
        (f"smtp://ann:{SECRET}@mail.example", "would be sent to 'mail.example' in clear text; write smtp+tls://"),
        ("smtps://mail.example:587", "587 begins without TLS"),
        ("smtps://ann@mail.example", "is given without a password"),
        (f"smtps://:{SECRET}@mail.example", "is given without a user name"),
    ],
)
def test_a_wrong_url_is_an_error_that_shows_no_password(url: str, fault: str) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        load({"url": url})
    lines = str(raised.value).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith('EMAIL["url"]: ')
    assert fault in lines[0]
    shown = "".join(traceback.TracebackException.from_exception(raised.value).format(chain=True))
    assert SECRET not in shown


def test_a_url_of_another_type_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match=r'EMAIL\["url"\]: \*\*\* is not a string'):
        load({"url": 465})


def test_neither_the_url_nor_its_password_is_in_the_repr() -> None:
    text = repr(load({"url": f"smtps://ann:{SECRET}@mail.example"}))
    assert "mail.example" in text
    assert SECRET not in text


def test_settings_beside_the_url_replace_its_parts() -> None:
    settings = load({"url": "smtps://ann:pw@mail.example", "host": "other.example", "port": 4650})
    assert parts(settings) == ("other.example", 4650, "ann", "pw", "ssl")
    assert parts(load({"url": "smtp://ann:pw@mail.example", "use_tls": True})) == (
        "mail.example",
        587,
        "ann",
        "pw",
        "tls",
    )


def test_the_environment_beats_parts_of_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_URL", "smtp+tls://ann:pw@mail.example")
    monkeypatch.setenv("EMAIL_HOST", "other.example")
    monkeypatch.setenv("EMAIL_USE_SSL", "yes")
    assert parts(load({})) == ("other.example", 465, "ann", "pw", "ssl")


def test_a_url_replaces_the_whole_server_of_a_source_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_URL", "smtps://env.example")
    below = {"host": "old.example", "port": 2525, "username": "ann", "password": "pw", "use_tls": True, "timeout": 3}
    settings = load(below)
    assert parts(settings) == ("env.example", 465, None, None, "ssl")
    assert settings.timeout == 3.0
    assert parts(load(below, url="smtp://localhost:26")) == ("localhost", 26, None, None, None)


def test_an_empty_url_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_URL", "")
    assert parts(load({"url": "", "host": "mail.example"}))[0] == "mail.example"


async def test_mail_goes_to_the_server_of_the_url() -> None:
    with SmtpServer(users={"ann@shop": "p/w:1"}) as server:
        settings = EmailSettings(
            url=f"smtp://ann%40shop:p%2Fw:1@{server.host}:{server.port}?timeout=5&default_sender=s%40shop.example"
        )
        mailer = Mailer(settings)
        with using_mailer(mailer):
            assert await send_email("ann@example.com", "Hello", "Hi", background=False)
        await mailer.aclose()
        (message,) = await server.arrive(1)
    assert (message.user, message.sender) == ("ann@shop", "s@shop.example")
