"""A backend that cannot be opened: ``fail_silently`` keeps delivery errors to itself, and no other ones."""

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from support.lifespan import Lifespan

from openviper.conf import override
from openviper.core.email import (
    ConnectionFailed,
    DeliveryReport,
    EmailBackend,
    EmailMiddleware,
    send_email,
    send_many,
    submit_email,
)
from openviper.core.email.message import OutgoingMessage
from openviper.exceptions import ImproperlyConfigured


class Closed(EmailBackend):
    """A backend whose service cannot be reached."""

    async def open(self) -> None:
        raise ConnectionFailed("the service cannot be reached", temporary=True)

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        raise AssertionError("it is not open")


class Wrong(Closed):
    """A backend with a wrong setting."""

    async def open(self) -> None:
        raise ImproperlyConfigured("KEY: is not set; set it")


class Buggy(Closed):
    """A backend with a mistake in it."""

    async def open(self) -> None:
        raise LookupError("a mistake")


def settings(backend: type[EmailBackend], **more: Any) -> dict[str, Any]:
    return {"backend": f"{__name__}.{backend.__name__}", "default_sender": "shop@example.com", **more}


async def test_without_fail_silently_it_is_raised() -> None:
    with override(EMAIL=settings(Closed)), pytest.raises(ConnectionFailed):
        await send_email("a@example.com", "Hello", "Hi")


@pytest.mark.parametrize("setting", [True, False])
async def test_with_fail_silently_it_is_in_the_receipt(*, setting: bool, caplog: pytest.LogCaptureFixture) -> None:
    with override(EMAIL=settings(Closed, fail_silently=setting)):
        receipt = await submit_email("a@example.com", "Hello", "Hi", fail_silently=None if setting else True)
        assert not receipt
        assert isinstance(receipt.error, ConnectionFailed)
    assert "was not delivered (fail_silently): the service cannot be reached" in caplog.text


async def test_the_call_beats_the_setting() -> None:
    with override(EMAIL=settings(Closed, fail_silently=True)), pytest.raises(ConnectionFailed):
        await send_email("a@example.com", "Hello", "Hi", fail_silently=False)


@pytest.mark.parametrize(("backend", "error"), [(Wrong, ImproperlyConfigured), (Buggy, LookupError)])
async def test_wrong_settings_and_mistakes_are_raised_all_the_same(
    backend: type[EmailBackend], error: type[Exception]
) -> None:
    with override(EMAIL=settings(backend, fail_silently=True)):
        for silent in (True, None):
            with pytest.raises(error):
                await send_email("a@example.com", "Hello", "Hi", fail_silently=silent)


async def test_many_messages_are_not_read() -> None:
    with override(EMAIL=settings(Closed, fail_silently=True)):
        receipts = send_many([{"recipients": "a@example.com", "subject": "Hello", "text": "Hi"}])
        with pytest.raises(ConnectionFailed):
            await anext(receipts)


async def order(request: Request) -> Response:
    return JSONResponse({"sent": await send_email("a@example.com", "Hello", "Hi")})


async def home(request: Request) -> Response:
    return JSONResponse({})


@pytest.mark.parametrize("lifespan", [True, False])
async def test_an_application_serves_what_sends_no_mail(*, lifespan: bool, caplog: pytest.LogCaptureFixture) -> None:
    app = EmailMiddleware(
        Starlette(routes=[Route("/", home), Route("/order", order)]), settings(Closed, fail_silently=True)
    )
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")
    async with client:
        if lifespan:
            async with Lifespan(app):
                assert (await client.get("/")).status_code == 200
                assert (await client.get("/order")).json() == {"sent": False}
        else:
            assert (await client.get("/")).status_code == 200
            assert (await client.get("/order")).json() == {"sent": False}
    lines = [record.getMessage() for record in caplog.records if "cannot be opened yet" in record.getMessage()]
    assert lines == [
        "the backend cannot be opened yet, and the next send tries again (fail_silently): the service cannot be reached"
    ]


async def test_without_fail_silently_the_start_stops() -> None:
    with pytest.raises(ConnectionFailed):
        async with Lifespan(EmailMiddleware(Starlette(), settings(Closed))):
            pass
