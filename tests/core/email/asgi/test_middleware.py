"""The extension and the middleware in this process: startup, shutdown, request state, no lifespan."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send
from support.lifespan import Lifespan
from support.patience import PATIENCE

from openviper import OpenViper
from openviper.conf import override
from openviper.core.email import DeliveryMode, Email, EmailMiddleware, send_email, submit_email
from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.backends.memory import MemoryBackend
from openviper.core.email.delivery import Mailer
from openviper.core.email.message import OutgoingMessage
from openviper.db.transaction import Record, entered
from openviper.exceptions import ImproperlyConfigured

MEMORY = {"backend": "MemoryBackend", "default_sender": "shop@example.test"}


def subjects(mailer: Mailer) -> list[str]:
    assert isinstance(mailer.backend, MemoryBackend)
    return [message.prepared.subject for message in mailer.backend.messages]


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with Lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


class Stuck(EmailBackend):
    """As a server that takes the connection and never answers."""

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        await asyncio.Event().wait()
        raise AssertionError


class Seen:
    """Collects the mailer of each request."""

    def __init__(self) -> None:
        self.mailers: list[Mailer] = []

    async def order(self, request: Request) -> Response:
        self.mailers.append(request.state.email)
        receipt = await submit_email("a@example.test", "order", text="Thank you")
        return JSONResponse({"mode": receipt.mode, "pending": len(subjects(request.state.email))})


async def test_openviper_sends_after_the_response_with_one_extension_added() -> None:
    seen = Seen()
    app = OpenViper(title="Test")
    app.add_extension(Email(MEMORY))
    app.get("/order")(seen.order)
    async with client_of(app) as client:
        answer = (await client.get("/order")).json()
    assert answer == {"mode": DeliveryMode.DEFERRED, "pending": 0}
    assert subjects(seen.mailers[0]) == ["order"]


async def test_one_line_at_startup_says_which_mode_mail_takes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "openviper.email")
    app = OpenViper()
    app.add_extension(Email(MEMORY))
    async with client_of(app):
        pass
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("mail: ")]
    assert len(lines) == 1
    assert "deferred in requests" in lines[0]
    assert "MemoryBackend" in lines[0]
    assert lines[0].endswith("; no message broker is in use")


async def test_the_line_at_startup_names_a_redirect(caplog: pytest.LogCaptureFixture) -> None:
    """Also where the log shows warnings only, as under a server that configures its own loggers alone."""
    caplog.set_level(logging.WARNING, "openviper.email")
    app = OpenViper()
    app.add_extension(Email({**MEMORY, "redirect_to": ["team@example.com"], "redirect_except": ["example.org"]}))
    async with client_of(app):
        pass
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("mail: ")]
    assert line.endswith("; redirected to team@example.com, except mail for example.org")


async def test_an_override_while_the_application_runs_warns_that_it_comes_too_late() -> None:
    app = OpenViper()
    app.add_extension(Email())
    with override(EMAIL=MEMORY):
        async with client_of(app):
            late = pytest.warns(RuntimeWarning, match=r"^override\(EMAIL=\.\.\.\) changes nothing for an application")
            with late as found, override(EMAIL={**MEMORY, "redirect_to": ["team@example.com"]}, TASKS={}):
                pass
            assert [warning.filename for warning in found] == [__file__]
            with override(EMAIL=dict(MEMORY), TASKS={"broker": "stub"}):  # nothing else than before
                pass
        with override(EMAIL={}):
            pass


async def test_wrong_settings_fail_the_start() -> None:
    app = OpenViper()
    app.add_extension(Email({"prot": 25}))
    with pytest.raises(ImproperlyConfigured) as caught:
        async with client_of(app):
            pass
    assert str(caught.value) == """Email({"prot": ...}): there is no such setting; did you mean 'port'?"""


async def test_wrong_settings_are_named_as_they_were_given_to_the_middleware() -> None:
    app = EmailMiddleware(Starlette(), {"prot": 25})
    transport = httpx.ASGITransport(app)  # without a lifespan, mail is opened by the first request
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        with pytest.raises(ImproperlyConfigured, match=re.escape('EmailMiddleware(app, {"prot": ...}): there is no')):
            await client.get("/")


async def test_request_state_has_send_email_and_the_mailer() -> None:
    seen = Seen()

    async def order(request: Request) -> Response:
        seen.mailers.append(request.state.email)
        return JSONResponse({"sent": await request.state.send_email("a@example.test", "by state", text="")})

    async with client_of(EmailMiddleware(Starlette(routes=[Route("/", order)]), MEMORY)) as client:
        assert (await client.get("/")).json() == {"sent": True}
    assert subjects(seen.mailers[0]) == ["by state"]


async def test_two_applications_on_one_loop_keep_their_mail_apart() -> None:
    first, second = Seen(), Seen()
    one = EmailMiddleware(Starlette(routes=[Route("/", first.order)]), MEMORY)
    two = EmailMiddleware(Starlette(routes=[Route("/", second.order)]), {**MEMORY, "default_sender": "b@example.test"})
    async with client_of(one) as of_one, client_of(two) as of_two:
        await of_one.get("/")
        await of_two.get("/")
        await of_one.get("/")
    assert len(set(map(id, first.mailers))) == 1
    assert (len(subjects(first.mailers[0])), len(subjects(second.mailers[0]))) == (2, 1)


async def test_a_send_in_the_applications_lifespan_goes_inline_through_its_mailer() -> None:
    modes: list[DeliveryMode] = []

    @asynccontextmanager
    async def lifespan(app: OpenViper) -> AsyncIterator[None]:
        modes.append((await submit_email("a@example.test", "up", text="")).mode)
        yield

    app = OpenViper(lifespan=lifespan)
    app.add_extension(Email(MEMORY))
    async with client_of(app):
        pass
    assert modes == [DeliveryMode.INLINE]


async def test_starlettes_add_middleware_works_too() -> None:
    seen = Seen()
    app = Starlette(routes=[Route("/", seen.order)])
    app.add_middleware(EmailMiddleware, settings=MEMORY)
    async with client_of(app) as client:
        assert (await client.get("/")).json()["mode"] == DeliveryMode.DEFERRED
    assert subjects(seen.mailers[0]) == ["order"]


async def test_a_500_handler_outside_the_layer_sends_after_the_outbox_was_handed_over() -> None:
    """Starlette's add_middleware puts the layer inside ServerErrorMiddleware, which runs the handler."""
    modes: list[DeliveryMode] = []
    seen = Seen()

    async def failing(request: Request) -> Response:
        await seen.order(request)
        raise LookupError("on purpose")

    async def on_error(request: Request, error: Exception) -> Response:
        modes.append((await submit_email("admin@example.test", "error", text=str(error))).mode)
        return PlainTextResponse("failed", 500)

    app = Starlette(routes=[Route("/", failing)], exception_handlers={Exception: on_error})
    app.add_middleware(EmailMiddleware, settings=MEMORY)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with Lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await asyncio.create_task(client.get("/"))).status_code == 500
    assert modes == [DeliveryMode.DEFERRED]
    assert subjects(seen.mailers[0]) == ["order", "error"]


async def test_middleware_outside_the_layer_sees_what_the_application_set() -> None:
    seen: list[tuple[Any, ...]] = []

    async def order(request: Request) -> Response:
        request.state.user = "Ana"
        return PlainTextResponse("ok")

    def outside(app: Any) -> Any:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, send)
            if scope["type"] == "http":
                seen.append((scope["state"].get("user"), scope["endpoint"]))

        return middleware

    app = Starlette(routes=[Route("/", order)])
    app.add_middleware(EmailMiddleware, settings=MEMORY)
    app.add_middleware(outside)
    async with client_of(app) as client:
        await client.get("/")
    assert seen == [("Ana", order)]


async def test_without_a_lifespan_the_request_waits_for_its_mail(caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()
    app = EmailMiddleware(Starlette(routes=[Route("/", seen.order)]), MEMORY)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        for _ in range(2):
            await client.get("/")
    assert subjects(seen.mailers[0]) == ["order", "order"]
    assert sum("lifespan was not run" in record.getMessage() for record in caplog.records) == 1


async def no_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await send_email("a@example.test", "raw", text="")
    await PlainTextResponse("ok")(scope, receive, send)


async def ignores_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await PlainTextResponse("ok")(scope, receive, send)


@pytest.mark.parametrize("app", [no_lifespan, ignores_lifespan])
async def test_the_middleware_answers_the_lifespan_for_an_application_that_does_not(app: Any) -> None:
    async with client_of(EmailMiddleware(app, MEMORY)) as client:
        assert (await client.get("/")).text == "ok"


async def test_a_lifespan_that_fails_to_start_is_reported_as_such() -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        raise LookupError("no database")
        yield

    with pytest.raises(LookupError, match="no database"):
        async with client_of(EmailMiddleware(Starlette(lifespan=lifespan), MEMORY)):
            pass


async def test_shutdown_is_answered_only_after_mail_was_delivered() -> None:
    """What the application sends in its own shutdown is delivered before the server is told that it is complete."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        receipt = await submit_email("a@example.test", "bye", text="")
        assert receipt.mode is DeliveryMode.INLINE
        await send({"type": "lifespan.shutdown.complete"})
        assert [message["type"] for message in sent] == ["lifespan.startup.complete"]

    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    await EmailMiddleware(app, MEMORY)({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_nested_layers_use_the_outermost_outbox() -> None:
    seen = Seen()
    inner = EmailMiddleware(Starlette(routes=[Route("/", seen.order)]), MEMORY)
    outer = EmailMiddleware(inner, MEMORY)
    async with client_of(outer) as client:
        answer = (await client.get("/")).json()
    assert answer == {"mode": DeliveryMode.DEFERRED, "pending": 0}
    assert subjects(seen.mailers[0]) == ["order"]


async def test_an_error_handler_outside_the_layer_sends_deferred_through_the_same_mailer() -> None:
    """With add_middleware the handler of all exceptions stands around the layer, whose outbox is handed over then."""
    seen = Seen()
    modes: list[DeliveryMode] = []

    async def fail(request: Request) -> Response:
        seen.mailers.append(request.state.email)
        raise LookupError("on purpose")

    async def tell_admin(request: Request, error: Exception) -> Response:
        modes.append((await submit_email("admin@example.test", "failed", text="")).mode)
        return PlainTextResponse("failed", 500)

    app = Starlette(routes=[Route("/", fail)], exception_handlers={Exception: tell_admin})
    app.add_middleware(EmailMiddleware, settings=MEMORY)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with Lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.get("/")).status_code == 500
    assert modes == [DeliveryMode.DEFERRED]
    assert subjects(seen.mailers[0]) == ["failed"]


async def test_a_request_started_in_the_context_of_another_is_not_held_by_its_transaction() -> None:
    """As uvicorn starts the next request of a connection while the one before sends the end of its response."""
    modes: list[DeliveryMode] = []

    async def order(request: Request) -> Response:
        modes.append((await submit_email("a@example.test", "order", text="")).mode)
        return PlainTextResponse("ok")

    next_request = EmailMiddleware(Starlette(routes=[Route("/", order)]), MEMORY)

    async def first(request: Request) -> Response:
        with entered(Record()):
            await submit_email("a@example.test", "held", text="")
            async with httpx.AsyncClient(transport=httpx.ASGITransport(next_request), base_url="http://next") as client:
                await client.get("/")
            modes.append((await submit_email("a@example.test", "held", text="")).mode)
        return PlainTextResponse("ok")

    async with client_of(EmailMiddleware(Starlette(routes=[Route("/", first)]), MEMORY)) as client:
        await client.get("/")
    assert modes == [DeliveryMode.DEFERRED, DeliveryMode.HELD]


async def test_a_request_waits_for_room_no_longer_than_a_shutdown_may_take(caplog: pytest.LogCaptureFixture) -> None:
    """A server that is told to stop waits for its requests, and only then has the lifespan drain what is left."""

    async def order(request: Request) -> Response:
        for number in range(3):
            await send_email("a@example.test", f"number {number}", text="")
        return PlainTextResponse("ok")

    settings = {**MEMORY, "backend": f"{__name__}.Stuck", "dispatcher_messages": 1, "shutdown_timeout": 0.1}
    async with (
        asyncio.timeout(PATIENCE),
        client_of(EmailMiddleware(Starlette(routes=[Route("/", order)]), settings)) as one,
    ):
        assert (await one.get("/")).text == "ok"
    assert sum("was not delivered" in record.getMessage() for record in caplog.records) == 3
