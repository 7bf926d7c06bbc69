"""Queueing without a broker, or with one that does not answer: mail takes another mode, and one line says so."""

import logging
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from support.lifespan import Lifespan
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import EmailMiddleware, submit_email

ASKED = {"by the call": (True, None), "by the setting": (None, True)}


@pytest.fixture(params=["none", "refused", "silent"])
def tasks(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """No broker; one that refuses the connection; one that takes it and never says a word."""
    if request.param == "none":
        yield {}
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if request.param == "refused":
            listener.close()
        yield {"broker": "redis", "broker_url": f"redis://127.0.0.1:{port}"}


@pytest.fixture(params=list(ASKED.values()), ids=list(ASKED))
def background(request: pytest.FixtureRequest, tasks: dict[str, Any], smtp: SmtpServer) -> Iterator[bool | None]:
    """The argument of the call, under settings that ask for the queue if it does not."""
    argument, setting = request.param
    email = smtp.settings(default_sender="shop@example.com", use_background_worker=setting)
    with override(TASKS=tasks, EMAIL=email):
        yield argument


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_in_a_request_it_is_deferred_with_one_warning(
    background: bool | None, tasks: dict[str, Any], smtp: SmtpServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def order(_request: Request) -> Response:
        receipt = await submit_email("a@example.com", "Order", text="", background=background)
        return PlainTextResponse(f"{receipt.mode} {receipt.message_id}")

    app = EmailMiddleware(Starlette(routes=[Route("/", order)]))
    async with Lifespan(app):
        at_start = warnings(caplog)
        assert len(at_start) == bool(tasks), "the broker does not answer"
        assert all(line.endswith('; start it, or correct TASKS["broker_url"]') for line in at_start)
        caplog.clear()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as client:
            for count in (1, 2):
                mode, message_id = (await client.get("/")).text.split()
                assert mode == "deferred"
                await smtp.arrive(count)
                assert_one_warning(caplog, message_id, tasks)
                caplog.clear()


async def test_in_a_script_it_is_sent_inline_with_one_warning(
    background: bool | None, tasks: dict[str, Any], smtp: SmtpServer, caplog: pytest.LogCaptureFixture
) -> None:
    for count in (1, 2):
        receipt = await submit_email("a@example.com", "Order", text="", background=background)
        assert receipt.mode == "inline"
        assert len(smtp.messages) == count
        if count == 1 and tasks:
            assert "does not answer" in caplog.records.pop(0).getMessage(), "of the broker, once"
        assert_one_warning(caplog, receipt.message_id, tasks)
        caplog.clear()


def assert_one_warning(caplog: pytest.LogCaptureFixture, message_id: str, tasks: dict[str, Any]) -> None:
    reason = "does not answer" if tasks else "TASKS names no real broker"
    (line,) = warnings(caplog)
    assert line.startswith(f"message {message_id} is not queued: ")
    assert reason in line
