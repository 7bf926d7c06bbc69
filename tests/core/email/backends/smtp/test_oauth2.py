"""OAuth 2 tokens: asked for once, kept until they expire, renewed when refused, and never shown."""

import asyncio
import copy
import functools
import logging
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from support.messages import outgoing
from support.patience import PATIENCE
from support.smtpd import SmtpServer
from support.tokens import TokenEndpoint

from openviper.core.email.backends import SMTPBackend
from openviper.core.email.backends.smtp import OAuth2Client, google_oauth2, microsoft_oauth2
from openviper.core.email.backends.smtp.handshake import connect
from openviper.core.email.backends.smtp.oauth2 import TokenSource
from openviper.core.email.errors import AuthenticationFailed, DeliveryError, DeliveryTimeout
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured

TOKEN = "ya29.a0-first"
USER = "orders@shop.example"


@contextmanager
def serving(*right: str) -> Iterator[SmtpServer]:
    """A server that takes the tokens ``right``."""
    tokens = right or (TOKEN,)
    with SmtpServer(
        users={USER: ""}, auth_methods=["PLAIN", "XOAUTH2"], takes_token=lambda user, given: given in tokens
    ) as server:
        yield server


def settings(server: SmtpServer, provider: object, **more: object) -> EmailSettings:
    return EmailSettings(**server.settings(password=None, xoauth2_token=provider, **more))


async def send(server: SmtpServer, provider: object, *, times: int = 1, **more: object) -> None:
    async with SMTPBackend(settings(server, provider, **more)) as backend:
        for _ in range(times):
            await backend.send(outgoing())


def logins(server: SmtpServer) -> int:
    return server.verbs.count("AUTH")


class Counting:
    """A provider that returns ``results`` one after another, the last one again and again."""

    def __init__(self, *results: object) -> None:
        self.results = list(results)
        self.calls = 0

    async def __call__(self) -> object:
        self.calls += 1
        return self.results.pop(0) if len(self.results) > 1 else self.results[0]


async def a_token() -> str:
    return TOKEN


def a_token_for_an_hour() -> tuple[str, int]:
    return TOKEN, 3600


NOT_CALLABLE = TOKEN

# Where the token comes from


@pytest.mark.parametrize(
    "provider",
    [
        a_token,
        a_token_for_an_hour,
        lambda: TOKEN,
        lambda: (TOKEN, timedelta(hours=1)),
        lambda: (SecretStr(TOKEN), 0.5),
        lambda: a_token(),
        functools.partial(dict.get, {"token": TOKEN}, "token"),
        Counting(TOKEN),
        TOKEN,
    ],
)
async def test_a_token_may_come_from_any_kind_of_callable(provider: object) -> None:
    with serving() as server:
        await send(server, provider)
        assert server.messages[0].user == USER


async def test_a_provider_may_be_named_by_its_dotted_path() -> None:
    with serving() as server:
        path = f"{__name__}.a_token_for_an_hour"
        await send(server, None, xoauth2_token_provider=path)
        assert len(server.messages) == 1


def test_a_text_that_looks_like_a_path_is_a_token() -> None:
    """Google's tokens begin with ya29. and JSON web tokens have three parts with dots between."""
    found = EmailSettings(host="localhost", username=USER, xoauth2_token="ya29.a0").xoauth2_token
    assert isinstance(found, SecretStr)
    assert found.get_secret_value() == "ya29.a0"


async def test_a_plain_provider_runs_off_the_event_loop() -> None:
    seen: list[int] = []

    def provider() -> str:
        seen.append(threading.get_ident())
        return TOKEN

    with serving() as server:
        await send(server, provider)
    assert seen[0] != threading.get_ident()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (f"{__name__}.no_such", "has no 'no_such'"),
        ("no_such_package.token", "there is no module 'no_such_package'"),
        (f"{__name__}.NOT_CALLABLE", "is a str; give a function that returns a token or (token, expires_in)"),
    ],
)
def test_a_wrong_path_is_told_when_the_backend_is_made(path: str, text: str) -> None:
    wrong = EmailSettings(host="localhost", username=USER, xoauth2_token_provider=path)
    with pytest.raises(ImproperlyConfigured) as raised:
        SMTPBackend(wrong)
    assert str(raised.value).startswith('EMAIL["xoauth2_token_provider"]: ')
    assert text in str(raised.value)


@pytest.mark.parametrize(
    "given", [{"password": "x"}, {"xoauth2_token": "x"}, {"xoauth2_token": a_token}], ids=["password", "token", "call"]
)
def test_only_one_secret_is_taken(given: dict[str, Any]) -> None:
    with pytest.raises(ImproperlyConfigured, match=r'EMAIL\["xoauth2_token_provider"\]: excludes'):
        EmailSettings.load({}, {"host": "localhost", "username": USER, "xoauth2_token_provider": "a.b", **given})


# How often it is asked for


@pytest.mark.parametrize(("life", "calls"), [(3600, 1), (None, 4)], ids=["with an expiry", "without one"])
async def test_a_token_is_kept_until_it_expires(life: int | None, calls: int) -> None:
    provider = Counting(TOKEN if life is None else (TOKEN, life))
    with serving() as server:
        await send(server, provider, times=4, max_messages_per_connection=1)
        assert logins(server) == 4
    assert provider.calls == calls


async def test_a_token_is_renewed_when_it_has_expired() -> None:
    provider = Counting((TOKEN, 0.01), ("second", 3600))
    with serving(TOKEN, "second") as server:
        async with SMTPBackend(settings(server, provider, max_messages_per_connection=1)) as backend:
            await backend.send(outgoing())
            await asyncio.sleep(0.02)
            await backend.send(outgoing())
            await backend.send(outgoing())
        assert logins(server) == 3
    assert provider.calls == 2


async def test_those_who_need_a_token_at_the_same_moment_share_a_call() -> None:
    asked, answer = 0, asyncio.Event()

    async def provider() -> str:
        nonlocal asked
        asked += 1
        await answer.wait()
        return TOKEN

    source = TokenSource(provider, peer="mail.example:25", timeout=PATIENCE)
    waiting = [asyncio.create_task(source.get()) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # the first one to ask, who must not take the others with him
    answer.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert {each.value.get_secret_value() for each in results[1:]} == {TOKEN}  # type: ignore[union-attr]
    assert asked == 1


async def test_a_failure_is_told_to_all_who_wait_and_not_kept() -> None:
    answers = [OSError("down"), (TOKEN, 60)]

    async def provider() -> object:
        await asyncio.sleep(0)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    source = TokenSource(provider, peer="mail.example:25", timeout=PATIENCE)
    results = await asyncio.gather(source.get(), source.get(), return_exceptions=True)
    assert [type(each) for each in results] == [AuthenticationFailed, AuthenticationFailed]
    assert results[0] is not results[1]
    assert (await source.get()).value.get_secret_value() == TOKEN


# A token that the server refuses


async def test_a_refused_token_is_renewed_once_and_tried_again() -> None:
    provider = Counting(("revoked", 3600), (TOKEN, 3600))
    with serving() as server:
        await send(server, provider, times=3, max_messages_per_connection=1)
        assert logins(server) == 4
        assert len(server.messages) == 3
    assert provider.calls == 2


@pytest.mark.parametrize(
    ("results", "attempts"),
    [((("revoked", 60), ("revoked-too", 60)), 2), ((("revoked", 60),), 1), (("revoked",), 1)],
    ids=["another one", "the same one", "the same one without an expiry"],
)
async def test_a_second_refusal_is_final(results: tuple[Any, ...], attempts: int) -> None:
    provider = Counting(*results)
    with serving() as server:
        with pytest.raises(AuthenticationFailed, match="AUTH: 535") as raised:
            await connect(settings(server, provider))
        assert logins(server) == attempts
    assert not raised.value.temporary
    assert provider.calls == 2


@pytest.mark.parametrize("reply", ["454 4.7.0 try later", "421 4.7.0 closing"])
async def test_a_temporary_refusal_does_not_cost_a_token(reply: str) -> None:
    provider = Counting((TOKEN, 3600))
    with serving() as server:
        server.fault("AUTH", reply)
        with pytest.raises(DeliveryError) as raised:
            await connect(settings(server, provider))
    assert raised.value.temporary
    assert provider.calls == 1


async def test_a_server_without_xoauth2_does_not_cost_a_second_call() -> None:
    provider = Counting((TOKEN, 3600))
    with (
        SmtpServer(users={USER: ""}, auth_methods=["PLAIN"]) as server,
        pytest.raises(AuthenticationFailed, match="offers only PLAIN, not XOAUTH2"),
    ):
        await connect(settings(server, provider))
    assert provider.calls == 1


# A provider that fails


def raise_with(secret: str) -> Callable[[], object]:
    def provider() -> object:
        raise RuntimeError(f"the endpoint said {secret}")

    return provider


@pytest.mark.parametrize(
    ("provider", "text", "temporary"),
    [
        (raise_with("hush-hush"), "raised RuntimeError at ", True),
        (lambda: None, "returned a NoneType; return a token or (token, expires_in)", False),
        (lambda: ("hush-hush", "3600"), "returned '3600' as expires_in", False),
        (lambda: ("hush-hush", -1), "returned -1 as expires_in", False),
        (lambda: ("hush-hush", True), "returned True as expires_in", False),
        (lambda: ("hush-hush", 1, 2), "returned a tuple", False),
        (lambda: "", "returned a token that is empty", False),
        (lambda: "hush-hush\1auth=Bearer x", "has invalid characters", False),
        (lambda: "hush hush", "has invalid characters", False),
        (lambda: b"hush-hush", "returned a bytes", False),
    ],
)
async def test_the_error_names_the_provider_and_shows_no_token(
    provider: Callable[[], object], text: str, temporary: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving() as server, pytest.raises(AuthenticationFailed) as raised:
        await connect(settings(server, provider))
    error = raised.value
    assert "AUTH: the token provider " in str(error)
    assert __name__ in str(error)
    assert text in str(error)
    assert error.temporary is temporary
    told = "".join(traceback.format_exception(error)) + repr(error) + caplog.text
    assert "hush" not in told.replace('"hush', "").replace("('hush", "")  # but for the source lines of this file
    assert str(pickle.loads(pickle.dumps(error))) == str(copy.copy(error)) == str(error)


async def test_a_time_limit_of_the_providers_own_is_told_as_its_error() -> None:
    def provider() -> str:
        raise TimeoutError("hush-hush")

    with pytest.raises(DeliveryTimeout, match="raised TimeoutError at ") as raised:
        await TokenSource(provider, peer="mail.example:25", timeout=PATIENCE).get()
    assert raised.value.temporary


async def test_a_provider_that_does_not_return_is_given_up() -> None:
    async def provider() -> str:
        await asyncio.Event().wait()
        return TOKEN

    source = TokenSource(provider, peer="mail.example:25", timeout=0.01)
    with pytest.raises(DeliveryTimeout, match=r"did not return within 0\.01 s") as raised:
        await source.get()
    assert raised.value.temporary


def test_no_repr_shows_a_secret() -> None:
    provider = google_oauth2(client_id="id", client_secret="hush-hush", refresh_token="1//hush-hush")
    partly = functools.partial(print, "hush-hush")
    for each in (provider, partly):
        found = EmailSettings(host="localhost", username=USER, xoauth2_token=each)
        assert "hush" not in repr(found) + str(found)
    assert "hush" not in repr(provider) + str(vars(provider))


# The flows of Google and Microsoft


async def test_google_gets_the_form_of_its_refresh_flow() -> None:
    async with TokenEndpoint() as endpoint:
        endpoint.answer(access_token=TOKEN, expires_in=3599, scope="https://mail.google.com/", token_type="Bearer")
        provider = google_oauth2(
            client_id="id", client_secret="secret", refresh_token="1//refresh", token_url=endpoint.url
        )
        with serving() as server:
            await send(server, provider, times=2, max_messages_per_connection=1)
    assert endpoint.forms == [
        {"grant_type": "refresh_token", "client_id": "id", "client_secret": "secret", "refresh_token": "1//refresh"}
    ]


async def test_microsoft_gets_the_form_of_client_credentials() -> None:
    async with TokenEndpoint() as endpoint:
        endpoint.answer(access_token=TOKEN, expires_in="3599", token_type="Bearer")
        provider = microsoft_oauth2(tenant="t", client_id="id", client_secret="secret", token_url=endpoint.url)
        with serving() as server:
            await send(server, provider, times=2, max_messages_per_connection=1)
    assert endpoint.forms == [
        {
            "grant_type": "client_credentials",
            "client_id": "id",
            "client_secret": "secret",
            "scope": "https://outlook.office365.com/.default",
        }
    ]


async def test_a_refresh_token_that_the_endpoint_replaces_is_used_and_told() -> None:
    kept: list[str] = []
    async with TokenEndpoint() as endpoint:
        endpoint.answer(access_token="one", expires_in=1, refresh_token="r2")
        endpoint.answer(access_token="two", expires_in=1, refresh_token="r2")
        provider = microsoft_oauth2(
            tenant="t",
            client_id="id",
            client_secret="secret",
            refresh_token="r1",
            on_refresh_token=kept.append,
            token_url=endpoint.url,
        )
        for _ in range(2):
            await asyncio.to_thread(provider)
    assert [form["refresh_token"] for form in endpoint.forms] == ["r1", "r2"]
    assert [form["scope"] for form in endpoint.forms] == ["https://outlook.office.com/SMTP.Send offline_access"] * 2
    assert kept == ["r2"]


@pytest.mark.parametrize(
    ("status", "body", "text", "temporary"),
    [
        (400, {"error": "invalid_grant"}, "got 400 'invalid_grant' from ", False),
        (401, {"error": "invalid_client", "error_description": "AADSTS7000215: not s3cret!"}, "AADSTS7000215", False),
        (200, {"token_type": "Bearer"}, "got 200 'no access token'", False),
        (200, ["no object"], "no access token", False),
        (429, {}, "got 429", True),
        (503, {"error": "down"}, "got 503 'down'", True),
    ],
)
async def test_an_answer_without_a_token_is_an_error(status: int, body: object, text: str, temporary: bool) -> None:
    async with TokenEndpoint() as endpoint:
        endpoint.answer_with(status, body)
        provider = google_oauth2(
            client_id="id", client_secret="s3cret!", refresh_token="r3fresh", token_url=endpoint.url
        )
        with serving() as server, pytest.raises(AuthenticationFailed) as raised:
            await connect(settings(server, provider))
    assert text in str(raised.value)
    assert raised.value.temporary is temporary
    assert "s3cret!" not in "".join(traceback.format_exception(raised.value)).replace('"s3cret!"', "")


async def test_an_endpoint_that_cannot_be_reached_is_a_temporary_failure() -> None:
    async with TokenEndpoint() as endpoint:
        url = endpoint.url
    provider = google_oauth2(client_id="id", client_secret="secret", refresh_token="r", token_url=url)
    with serving() as server, pytest.raises(AuthenticationFailed, match="cannot reach http://") as raised:
        await connect(settings(server, provider))
    assert raised.value.temporary


@pytest.mark.parametrize("url", ["http://login.example/token", "ftp://login.example/token", "login.example/token"])
def test_secrets_do_not_travel_in_clear_text(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="use https"):
        OAuth2Client(url, {"client_id": "id"})


@pytest.mark.parametrize("url", ["https://user:hush-hush@login.example/token", "https://[::1/token"])
def test_a_wrong_token_url_is_told_without_its_secret(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"^token_url: ") as raised:
        OAuth2Client(url, {"client_id": "id"})
    assert "hush" not in str(raised.value)


async def test_a_refresh_token_that_cannot_be_stored_costs_no_mail(caplog: pytest.LogCaptureFixture) -> None:
    def store(token: str) -> None:
        raise OSError(f"no disk for {token}")

    async with TokenEndpoint() as endpoint:
        endpoint.answer(access_token=TOKEN, expires_in=60, refresh_token="hush-hush")
        provider = microsoft_oauth2(
            tenant="t",
            client_id="i",
            client_secret="s",
            refresh_token="r",
            on_refresh_token=store,
            token_url=endpoint.url,
        )
        with serving() as server:
            await send(server, provider)
            assert len(server.messages) == 1
    assert "on_refresh_token raised OSError" in caplog.text
    assert "hush" not in caplog.text


async def test_a_provider_that_raises_stop_iteration_is_not_waited_for() -> None:
    source = TokenSource(lambda: next(iter([])), peer="mail.example:25", timeout=PATIENCE)
    with pytest.raises(AuthenticationFailed, match="raised RuntimeError"):
        await source.get()


def test_an_empty_secret_is_told_by_its_name() -> None:
    """As an environment variable that is not set gives it."""
    with pytest.raises(ImproperlyConfigured, match=r"^client_secret: is empty"):
        google_oauth2(client_id="id", client_secret="", refresh_token="r")
