"""``Email(settings).attach(app)``: what it wraps, what it refuses, and that the usual server command finds it."""

import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from litestar import Litestar
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from support.lifespan import Lifespan
from support.patience import PATIENCE
from support.smtpd import SmtpServer
from support.testclient import TestClient
from support.uvicorn import Hypercorn, Uvicorn

from openviper import OpenViper
from openviper.conf import settings
from openviper.core.email import DeliveryMode, Email, EmailMiddleware, MessageEvent, send_email, submit_email, subscribe
from openviper.exceptions import ImproperlyConfigured

MEMORY = {"backend": "MemoryBackend", "default_sender": "shop@example.test"}
OTHER = "this is not a Starlette or FastAPI application; wrap it: app = EmailMiddleware(app)"
APPS = Path(__file__).parents[3] / "apps"


def env(smtp: SmtpServer) -> dict[str, str]:
    email = {"HOST": smtp.host, "PORT": smtp.port, "DEFAULT_SENDER": "shop@example.test", "TIMEOUT": 2 * PATIENCE}
    return {f"EMAIL_{name}": str(value) for name, value in email.items()}


def subjects(smtp: SmtpServer) -> list[str]:
    return [str(message.parse()["Subject"]) for message in smtp.messages]


async def order(request: Request) -> Response:
    receipt = await submit_email("a@example.test", "order", text="Thank you")
    return JSONResponse({"mode": receipt.mode})


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with Lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


def make_fastapi() -> FastAPI:
    app = FastAPI()
    app.add_route("/order", order)
    return app


def make_openviper() -> OpenViper:
    app = OpenViper()
    app.get("/order")(order)
    return app


MAKERS: list[Callable[[], Starlette]] = [
    lambda: Starlette(routes=[Route("/order", order)]),
    make_fastapi,
    make_openviper,
]


@pytest.mark.parametrize("make", MAKERS, ids=["starlette", "fastapi", "openviper"])
async def test_an_attached_application_defers(make: Callable[[], Starlette]) -> None:
    app = make()
    assert Email(MEMORY).attach(app) is app
    async with client_of(app) as client:
        assert (await client.get("/order")).json() == {"mode": DeliveryMode.DEFERRED}


@pytest.mark.parametrize("make", MAKERS, ids=["starlette", "fastapi", "openviper"])
def test_attaching_twice_is_refused(make: Callable[[], Starlette]) -> None:
    app = make()
    Email(MEMORY).attach(app)
    with pytest.raises(ImproperlyConfigured, match="once"):
        Email(MEMORY).attach(app)


@pytest.mark.parametrize("make", MAKERS, ids=["starlette", "fastapi", "openviper"])
async def test_attaching_after_the_start_is_refused(make: Callable[[], Starlette]) -> None:
    app = make()
    async with client_of(app):
        with pytest.raises(ImproperlyConfigured, match="has already started; attach mail before"):
            Email(MEMORY).attach(app)


class Plain:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("app", "text"),
    [
        (
            Litestar(),
            f"Email(...).attach(Litestar): {OTHER}",
        ),
        (
            Plain(),
            f"Email(...).attach(Plain): {OTHER}",
        ),
        (
            FastAPI,
            "Email(...).attach(FastAPI): this is a class, not an application; give FastAPI(...)",
        ),
        (
            Plain,
            "Email(...).attach(Plain): this is a class, not an application; give Plain(...)",
        ),
        (
            EmailMiddleware(Starlette()),
            "Email(...).attach(EmailMiddleware): this application already has mail; leave attach() out",
        ),
    ],
)
def test_other_objects_are_refused_with_the_remedy(app: Any, text: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        Email(MEMORY).attach(app)
    assert str(caught.value) == text


def test_an_attached_application_is_not_wrapped_again() -> None:
    app = Email(MEMORY).attach(FastAPI())
    with pytest.raises(ImproperlyConfigured, match=re.escape("EmailMiddleware(app): mail is attached to this")):
        EmailMiddleware(app)


def test_an_application_with_the_middleware_is_not_attached_as_well() -> None:
    app = Starlette()
    app.add_middleware(EmailMiddleware, settings=MEMORY)
    with pytest.raises(
        ImproperlyConfigured, match=re.escape("add_middleware(EmailMiddleware) already adds mail to it")
    ):
        Email(MEMORY).attach(app)


async def test_the_middleware_added_after_attaching_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    app = Email(MEMORY).attach(Starlette(routes=[Route("/order", order)]))
    app.add_middleware(EmailMiddleware, settings=MEMORY)
    async with client_of(app) as client:
        assert (await client.get("/order")).json() == {"mode": DeliveryMode.DEFERRED}
    lines = [record.getMessage() for record in caplog.records if "add_middleware" in record.getMessage()]
    assert lines == ["mail is attached to the application, so add_middleware(EmailMiddleware) must be left out"]


class Outer:
    """As a library that wraps ``build_middleware_stack`` itself, such as OpenTelemetry's instrumentation."""

    def __init__(self, app: ASGIApp, calls: list[str]) -> None:
        self.app = app
        self.calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls.append(scope["type"])
        await self.app(scope, receive, send)


async def test_another_library_may_wrap_the_same_method() -> None:
    calls: list[str] = []
    app = Email(MEMORY).attach(Starlette(routes=[Route("/order", order)]))
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: Outer(build(), calls)  # type: ignore[method-assign]
    async with client_of(app) as client:
        assert (await client.get("/order")).json() == {"mode": DeliveryMode.DEFERRED}
    assert calls == ["lifespan", "http"]


async def test_mail_of_every_layer_of_the_application_is_deferred() -> None:
    """Middleware added afterwards, and the handler of unexpected errors, are inside the attached layer."""
    modes: list[DeliveryMode] = []

    class Sending:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                modes.append((await submit_email("a@example.test", "middleware", text="")).mode)
            await self.app(scope, receive, send)

    async def failing(request: Request) -> Response:
        raise LookupError("on purpose")

    async def on_error(request: Request, error: Exception) -> Response:
        modes.append((await submit_email("a@example.test", "500", text="")).mode)
        return PlainTextResponse("failed", 500)

    app = Email(MEMORY).attach(Starlette(routes=[Route("/", failing)], exception_handlers={Exception: on_error}))
    app.add_middleware(Sending)
    async with client_of(app) as client:
        assert (await client.get("/")).text == "failed"
    assert modes == [DeliveryMode.DEFERRED, DeliveryMode.DEFERRED]


async def test_sub_applications_send_through_the_attached_one() -> None:
    """Mounted ones need nothing, and one that is attached itself keeps the outbox of the outermost."""
    plain = Starlette(routes=[Route("/order", order)])
    attached = Email({**MEMORY, "default_sender": "inner@example.test"}).attach(make_fastapi())
    app = Email(MEMORY).attach(Starlette(routes=[Mount("/plain", plain), Mount("/attached", attached)]))
    events: list[MessageEvent] = []
    unsubscribe = subscribe(events.append)
    try:
        async with client_of(app) as client:
            for path in ("/plain/order", "/attached/order"):
                assert (await client.get(path)).json() == {"mode": DeliveryMode.DEFERRED}
    finally:
        unsubscribe()
    delivered = [event.message.prepared.sender.addr_spec for event in events if event.kind == "delivered"]
    assert sorted(delivered) == ["inner@example.test", "shop@example.test"]


async def test_one_email_object_serves_two_applications_that_run_at_once() -> None:
    email = Email(MEMORY)
    one, two = email.attach(MAKERS[0]()), email.attach(MAKERS[1]())
    async with client_of(two) as of_two:
        async with client_of(one) as of_one:
            assert (await of_one.get("/order")).json() == {"mode": DeliveryMode.DEFERRED}
        assert (await of_two.get("/order")).json() == {"mode": DeliveryMode.DEFERRED}


def test_a_test_client_runs_the_attached_lifespan(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "openviper.email")
    app = Email(MEMORY).attach(make_fastapi())
    with TestClient(app) as client:
        assert client.get("/order").json() == {"mode": DeliveryMode.DEFERRED}
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(",")[0] for line in lines if line.startswith("mail: ")] == [
        "mail: deferred in requests (delivered after the response)"
    ]
    assert not any("lifespan was not run" in line for line in lines)


@pytest.mark.parametrize("make", MAKERS, ids=["starlette", "fastapi", "openviper"])
def test_a_test_client_raises_what_is_wrong_with_the_settings(make: Callable[[], Starlette]) -> None:
    app = Email({"prot": 25}).attach(make())
    with pytest.raises(ImproperlyConfigured, match=re.escape('Email({"prot": ...}): there is no such setting')):  # noqa: SIM117
        with TestClient(app):
            pass


def test_uvicorn_runs_the_attached_application_and_its_lifespan() -> None:
    with SmtpServer() as smtp:
        with Uvicorn("starlette_app:attached", APPS, env(smtp)) as server:
            smtp.wait_for(1)
            assert httpx.get(f"{server.url}/order", timeout=PATIENCE).json()["mode"] == "deferred"
            assert httpx.get(f"{server.url}/mounted/order", timeout=PATIENCE).json()["mode"] == "deferred"
            assert server.stop()
        assert subjects(smtp) == ["startup", "order", "order", "shutdown"]


def test_uvicorn_shows_the_inbox_page_of_an_attached_application() -> None:
    variables = {"EMAIL_BACKEND": "MemoryBackend", "EMAIL_INBOX": "always", "EMAIL_DEFAULT_SENDER": "s@example.test"}
    with Uvicorn("fastapi_app:attached", APPS, variables) as server:
        httpx.get(f"{server.url}/order?subject=attached", timeout=PATIENCE)
        found = httpx.get(f"{server.url}/_mail/api/messages/wait?subject=attached&timeout=60", timeout=PATIENCE)
        assert found.json()["mode"] == "deferred"


@pytest.mark.parametrize("app", ["starlette_app:attached", "fastapi_app:attached", "openviper_app:app"])
def test_wrong_settings_stop_the_start_without_a_traceback(app: str) -> None:
    with pytest.raises(RuntimeError, match=r"EMAIL_USE_TLS \(environment\): 'perhaps' is not allowed") as caught:
        Uvicorn(app, APPS, {"EMAIL_USE_TLS": "perhaps"}).__enter__()
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [(Uvicorn, "uvicorn"), (Hypercorn, "hypercorn")])
def test_an_unwrapped_application_under_a_server_is_warned_of_once_and_by_name(kind: type[Uvicorn], name: str) -> None:
    with SmtpServer() as smtp:
        with kind("starlette_app:application", APPS, env(smtp)) as server:
            for path in ("/order", "/threaded", "/order"):
                assert httpx.get(f"{server.url}{path}", timeout=PATIENCE).status_code == 200
            server.stop()
        warnings = [line for line in server.log if "mail is not attached" in line]
        assert len(warnings) == 1
        assert f"{name} runs an application to which mail is not attached" in warnings[0]
        assert f"app = EmailMiddleware(api), then `{name} module:app`" in warnings[0]


WRAPPED_BESIDE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from openviper.core.email import EmailMiddleware, send_email

async def order(request):
    return PlainTextResponse(str(await send_email("ana@example.com", "Your order", "Thank you!")))

api = Starlette(routes=[Route("/order", order)])
app = EmailMiddleware(api, {"backend": "MemoryBackend", "default_sender": "shop@example.com"})
"""


def test_an_unwrapped_application_without_the_settings_says_whose_they_are(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(WRAPPED_BESIDE)
    with Uvicorn("shop:api", tmp_path, {}) as server:
        assert httpx.get(f"{server.url}/order", timeout=PATIENCE).status_code == 500
        server.stop()
    error = "openviper.exceptions.ImproperlyConfigured: "
    (text,) = [line.removeprefix(error).strip() for line in server.log if line.startswith(error)]
    assert text == (
        "mail was set up by EmailMiddleware(app, settings), but uvicorn runs an application without it: give uvicorn "
        "the wrapped one (app = EmailMiddleware(api, settings), then `uvicorn module:app`), or attach mail to the one "
        "that it runs: Email(settings).attach(api); without these settings there is no sender"
    )


@pytest.mark.parametrize("app", ["starlette_app:mounted_only", "starlette_app:app", "openviper_app:app"])
def test_an_application_that_a_server_reaches_is_not_warned_of(app: str) -> None:
    path = "/inner/order" if "mounted" in app else "/order"
    with SmtpServer() as smtp:
        with Uvicorn(app, APPS, env(smtp), "--lifespan", "off") as server:
            assert httpx.get(f"{server.url}{path}", timeout=PATIENCE).status_code == 200
        assert not any("mail is not attached" in line for line in server.log)


async def test_a_script_that_imports_a_wrapped_application_is_not_warned(caplog: pytest.LogCaptureFixture) -> None:
    EmailMiddleware(Starlette(middleware=[Middleware(Outer, calls=[])]), MEMORY)
    settings.configure(EMAIL=MEMORY)
    assert await send_email("a@example.test", "script", text="")
    assert not any("wrapped or attached" in record.getMessage() for record in caplog.records)
