"""The endpoint of one-click unsubscribe (RFC 8058): scanners change nothing, a POST does, and nobody is named."""

import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from litestar import Litestar, asgi
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send
from support.lifespan import Lifespan
from support.smtpd import SmtpServer

from openviper import OpenViper, db
from openviper.conf import override
from openviper.core.email import (
    Email,
    EmailMiddleware,
    UnsubscribeEndpoint,
    UnsubscribeRequest,
    send_many,
    submit_email,
)
from openviper.core.email.message.unsubscribe import make_token
from openviper.db.suppression import list_suppressions
from openviper.exceptions import ImproperlyConfigured

KEY, OLD = "k" * 32, "o" * 32
SITE = "https://shop.example"
SETTINGS: dict[str, Any] = {
    "default_sender": "shop@example.test",
    "site_url": SITE,
    "unsubscribe_keys": [KEY, OLD],
    "suppress": "openviper.db.find_suppressed",
}
ANN = UnsubscribeRequest("news", address="ann@example.test")
PATH = f"/unsubscribe/{make_token(ANN, KEY)}"
URLENCODED = {"content-type": "application/x-www-form-urlencoded"}
ONE_CLICK: dict[str, Any] = {"headers": URLENCODED, "content": b"List-Unsubscribe=One-Click"}
MULTIPART: dict[str, Any] = {
    "headers": {"content-type": 'multipart/form-data; boundary="==b1"'},
    "content": b'--==b1\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--==b1--\r\n',
}


class Asked(list[UnsubscribeRequest]):
    """Keeps what the endpoint asks for."""

    async def __call__(self, request: UnsubscribeRequest) -> None:
        self.append(request)


@pytest.fixture
def asked() -> Asked:
    return Asked()


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=SITE) as client:
        yield client


@asynccontextmanager
async def serving(endpoint: UnsubscribeEndpoint, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    with override(EMAIL={**SETTINGS, **settings}):
        async with client_of(Starlette(routes=[Mount("/unsubscribe", endpoint)])) as client:
            yield client


async def test_scanners_change_nothing_and_one_click_stops_one_stream(tmp_path: Path) -> None:
    """All of it: mail to two readers, scanners that fetch each URL, then a mailbox provider's two kinds of POST."""
    (tmp_path / "news.html").write_text(
        '<p>June</p><a href="{{ unsubscribe_url }}">leave</a> <a href="https://shop.example/">shop</a>'
    )
    readers = ["ann@example.test", "ben@example.test", "cleo@example.test"]
    app = FastAPI()
    app.mount("/unsubscribe", UnsubscribeEndpoint())
    with (
        SmtpServer() as server,
        override(DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path / 'shop.sqlite3'}", TEMPLATES_DIR=tmp_path),
    ):
        Email(server.settings(**SETTINGS)).attach(app)
        await db.create_suppression_table()
        async with Lifespan(app), client_of(app) as client:

            async def newsletter() -> list[str]:
                before = len(server.messages)
                messages = [{"recipients": reader, "template": "news.html", "subject": "June"} for reader in readers]
                receipts = [each async for each in send_many(messages, stream="news", unsubscribe=True)]
                assert all(receipts)
                return sorted(message.recipients[0] for message in server.messages[before:])

            assert await newsletter() == readers
            links = {message.recipients[0]: message.parse()["List-Unsubscribe"][1:-1] for message in server.messages}
            for message in server.messages:
                assert message.parse()["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
                body = message.parse().get_body(["html"])
                assert body is not None
                found = set(re.findall(r'https://[^"<> ]+', body.get_content() + message.parse()["List-Unsubscribe"]))
                assert links[message.recipients[0]] in found
                for url in found:
                    for method in ("GET", "HEAD", "OPTIONS"):
                        await client.request(method, url)
            assert await list_suppressions() == []
            assert await newsletter() == readers

            for reader, request in (("ann@example.test", ONE_CLICK), ("ben@example.test", MULTIPART)):
                assert (await client.post(links[reader], **request)).status_code == 200
            assert {(row.address, row.stream) for row in await list_suppressions()} == {
                ("ann@example.test", "news"),
                ("ben@example.test", "news"),
            }
            assert await newsletter() == ["cleo@example.test"]
            orders = await submit_email("ann@example.test", "Your order", text="Thank you", stream="orders")
            assert (orders.accepted, orders.suppressed) == (("ann@example.test",), ())
        await db.dispose()


@pytest.mark.parametrize("request_of", [ONE_CLICK, MULTIPART])
async def test_unknown_and_repeated_requests_are_answered_alike(asked: Asked, request_of: dict[str, Any]) -> None:
    async with serving(UnsubscribeEndpoint(asked)) as client:
        answers = [
            await client.post(path, **request_of) for path in (PATH, PATH, PATH[:-1], "/unsubscribe/", f"{PATH}/")
        ]
    assert asked == [ANN] * 3
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert {tuple(sorted(answer.headers)) for answer in answers} == {
        (
            "cache-control",
            "content-length",
            "content-security-policy",
            "content-type",
            "referrer-policy",
            "x-content-type-options",
            "x-robots-tag",
        )
    }


async def test_a_reader_sees_a_button_whose_form_unsubscribes(asked: Asked) -> None:
    async with serving(UnsubscribeEndpoint(asked)) as client:
        page = await client.get(PATH, headers={"cookie": "session=1"})
        assert asked == []
        field = re.search(r'<form method="post">\s*<input type="hidden" name="(.*?)" value="(.*?)">', page.text)
        assert field is not None
        unknown = await client.get("/unsubscribe/unknown")
        done = await client.post(PATH, data={field[1]: field[2]}, headers={"origin": "null"})
    assert asked == [ANN]
    assert "You are unsubscribed" in done.text
    assert page.text == unknown.text
    for answer in (page, unknown, done):
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "script" not in answer.headers["content-security-policy"]
        assert "set-cookie" not in answer.headers
        assert "ann" not in answer.text


async def test_head_has_the_headers_of_get_and_other_methods_are_405(asked: Asked) -> None:
    async with serving(UnsubscribeEndpoint(asked)) as client:
        get, head = await client.get(PATH), await client.head(PATH)
        others = [await client.request(method, PATH, **ONE_CLICK) for method in ("PUT", "DELETE", "PATCH", "OPTIONS")]
    assert (head.status_code, head.content, head.headers) == (200, b"", get.headers)
    assert [(each.status_code, each.headers["allow"]) for each in others] == [(405, "GET, HEAD, POST")] * 4
    assert asked == []


def multipart(content: bytes, kind: str = "multipart/form-data; boundary=b") -> dict[str, Any]:
    return {"headers": {"content-type": kind}, "content": content.replace(b"\n", b"\r\n")}


PART = b'--b\nContent-Disposition: form-data; name="List-Unsubscribe"\n\nOne-Click\n--b--\n'


@pytest.mark.parametrize(
    "request_of",
    [
        {
            "headers": {"content-type": "Application/X-WWW-Form-Urlencoded; charset=UTF-8"},
            "content": b"List-Unsubscribe=One-Click\r\n",
        },
        {"headers": URLENCODED, "content": b"a=1&List%2DUnsubscribe=One%2DClick&b="},
        multipart(PART),
        multipart(PART, "Multipart/Form-Data; charset=utf-8; Boundary=b"),
        multipart(b"preamble\n--b\ncontent-disposition: form-data; name=other\n\nx\n" + PART + b"epilogue"),
        multipart(PART.replace(b'"\n', b'"\nContent-Type: text/plain; charset=us-ascii\n')),
        {"files": {"List-Unsubscribe": (None, "One-Click")}},
        multipart(PART.replace(b"--b", b"--b c"), 'multipart/form-data; boundary="b c"'),
    ],
)
async def test_forms_as_clients_write_them_are_read(asked: Asked, request_of: dict[str, Any]) -> None:
    async with serving(UnsubscribeEndpoint(asked)) as client:
        assert (await client.post(PATH, **request_of)).status_code == 200
    assert asked == [ANN]


@pytest.mark.parametrize(
    ("request_of", "status"),
    [
        ({}, 415),
        ({"json": {"List-Unsubscribe": "One-Click"}}, 415),
        ({"headers": {"content-type": "text/plain"}, "content": b"List-Unsubscribe=One-Click"}, 415),
        ({"headers": URLENCODED, "content": b""}, 400),
        ({"headers": URLENCODED, "content": b"List-Unsubscribe=Two-Clicks"}, 400),
        ({"headers": URLENCODED, "content": b"List-Unsubscribe"}, 400),
        ({"headers": URLENCODED, "content": b"\xff\x00=%ff"}, 400),
        ({"headers": URLENCODED, "content": b"a=1&" * 100 + b"List-Unsubscribe=One-Click"}, 400),
        ({"headers": URLENCODED, "content": b"List-Unsubscribe=One-Click&a=" + b"x" * 4096}, 413),
        (multipart(PART + b"x" * 4096), 413),
        (multipart(PART, "multipart/form-data"), 400),
        (multipart(PART, "multipart/form-data; boundary=other"), 400),
        (multipart(PART.removesuffix(b"--b--\n")), 400),
        (multipart(PART.replace(b"One-Click", b"Two-Clicks")), 400),
        (multipart(PART.replace(b"form-data", b"attachment")), 400),
        (multipart(PART.replace(b'"List-', b'"X-List-')), 400),
        (multipart(PART.replace(b"\n\nOne-Click", b"\nOne-Click")), 400),
        (multipart(b"\n" * 2000), 400),
    ],
)
async def test_other_requests_change_nothing(asked: Asked, request_of: dict[str, Any], status: int) -> None:
    async with serving(UnsubscribeEndpoint(asked)) as client:
        answer = await client.post(PATH, **request_of)
    assert answer.status_code == status
    assert answer.headers["cache-control"] == "no-store"
    assert asked == []


async def test_no_more_than_4_kb_are_read() -> None:
    """A body without an end is refused after the first piece that passes the limit."""
    given = 0

    async def receive() -> dict[str, Any]:
        nonlocal given
        given += 1
        return {"type": "http.request", "body": b"a" * 1024, "more_body": True}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/x-www-form-urlencoded")]
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}
    with override(EMAIL=SETTINGS):
        await UnsubscribeEndpoint()(scope, receive, send)
    assert sent[0]["status"] == 413
    assert given == 5


async def test_a_client_that_leaves_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there")

    headers = [(b"content-type", b"application/x-www-form-urlencoded")]
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}
    with override(EMAIL=SETTINGS):
        await UnsubscribeEndpoint()(scope, receive, send)
    assert caplog.text == ""


def mounted_in_starlette(endpoint: UnsubscribeEndpoint) -> Any:
    return Starlette(routes=[Mount("/unsubscribe", endpoint)])


def mounted_in_fastapi(endpoint: UnsubscribeEndpoint) -> Any:
    app = FastAPI()
    app.mount("/unsubscribe", endpoint)
    return app


def in_litestar(endpoint: UnsubscribeEndpoint) -> Any:
    @asgi("/unsubscribe", is_mount=True, copy_scope=True)
    async def unsubscribe(scope: Any, receive: Any, send: Any) -> None:
        await endpoint(scope, receive, send)

    return Litestar([unsubscribe])


class Csrf:
    """Refuses every POST, as protection against CSRF does one without its token."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            await PlainTextResponse("CSRF", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def extension_of_openviper(endpoint: UnsubscribeEndpoint) -> Any:
    app = OpenViper(middleware=[Middleware(Csrf)])
    app.add_extension(Email(SETTINGS))
    app.add_extension(endpoint)
    return app


def wrapped(endpoint: UnsubscribeEndpoint) -> Any:
    return EmailMiddleware(endpoint.wrap(Csrf(FastAPI())), SETTINGS)


def alone(endpoint: UnsubscribeEndpoint) -> Any:
    return EmailMiddleware(endpoint, SETTINGS)


APPS = [mounted_in_starlette, mounted_in_fastapi, in_litestar, extension_of_openviper, wrapped, alone]


@pytest.mark.parametrize("make", APPS)
async def test_any_asgi_application_takes_it(make: Callable[[UnsubscribeEndpoint], Any], asked: Asked) -> None:
    app = make(UnsubscribeEndpoint(asked))
    with override(EMAIL={**SETTINGS, "backend": "MemoryBackend"}):
        async with Lifespan(app), client_of(app) as client:
            assert "Unsubscribe" in (await client.get(PATH)).text
            assert (await client.post(PATH, **ONE_CLICK)).status_code == 200
            elsewhere = await client.post("/other", **ONE_CLICK)
    assert asked == [ANN]
    assert elsewhere.status_code in (404, 403) or make is alone


async def test_it_answers_below_a_root_path(asked: Asked) -> None:
    """As behind a proxy that forwards a part of the site."""
    app = UnsubscribeEndpoint(asked).wrap(FastAPI())
    transport = httpx.ASGITransport(app, root_path="/app")
    with override(EMAIL=SETTINGS):
        async with httpx.AsyncClient(transport=transport, base_url=SITE) as client:
            assert (await client.post(f"/app{PATH}", **ONE_CLICK)).status_code == 200
    assert asked == [ANN]


async def test_old_keys_verify_and_removed_ones_do_not(asked: Asked) -> None:
    old = f"/unsubscribe/{make_token(ANN, OLD)}"
    async with serving(UnsubscribeEndpoint(asked)) as client:
        await client.post(old, **ONE_CLICK)
    async with serving(UnsubscribeEndpoint(asked), unsubscribe_keys=[KEY]) as client:
        assert (await client.post(old, **ONE_CLICK)).status_code == 200
    assert asked == [ANN]


async def test_the_function_gets_the_applications_own_id() -> None:
    """A plain function runs in a thread."""
    asked: list[UnsubscribeRequest] = []
    token = make_token(UnsubscribeRequest("news", recipient_id="reader-7"), KEY)
    async with serving(UnsubscribeEndpoint(asked.append)) as client:
        await client.post(f"/unsubscribe/{token}", **ONE_CLICK)
    assert asked == [UnsubscribeRequest("news", None, "reader-7")]


def fail(request: UnsubscribeRequest) -> None:
    raise RuntimeError(f"no such reader: {request.address}")


@pytest.mark.parametrize(
    ("endpoint", "asked_for", "reason"),
    [
        (UnsubscribeEndpoint(fail), ANN, "fail raised RuntimeError at "),
        (UnsubscribeEndpoint(), ANN, "there is no table email_suppression on DATABASE_URL; create it with"),
        (
            UnsubscribeEndpoint(),
            UnsubscribeRequest("news", recipient_id="reader-7"),
            "the link has a recipient_id; give UnsubscribeEndpoint(on_unsubscribe=...)",
        ),
    ],
)
async def test_a_failure_is_503_and_logged_without_the_recipient(
    endpoint: UnsubscribeEndpoint,
    asked_for: UnsubscribeRequest,
    reason: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The reader was not unsubscribed, and must not read that they were."""
    caplog.set_level(logging.DEBUG, "openviper.email")
    token = make_token(asked_for, KEY)
    with override(DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path / 'shop.sqlite3'}"):
        async with serving(endpoint) as client:
            answer = await client.post(f"/unsubscribe/{token}", **ONE_CLICK)
        await db.dispose()
    assert (answer.status_code, "try again later" in answer.text) == (503, True)
    (record,) = [each for each in caplog.records if each.name == "openviper.email"]
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith("a reader could not be unsubscribed from the stream news: ")
    assert reason in record.getMessage()
    for secret in ("ann", "reader-7", token):
        assert secret not in record.getMessage()


async def test_nothing_that_is_logged_names_a_reader_or_a_token(asked: Asked, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "openviper")
    forged = f"{PATH[:-1]}{'A' if PATH[-1] != 'A' else 'B'}"
    async with serving(UnsubscribeEndpoint(asked)) as client:
        for path in (PATH, forged):
            await client.get(path)
            await client.post(path, **ONE_CLICK)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("openviper")]
    assert lines == [
        "a reader unsubscribed from the stream news",
        'an unsubscribe link was not signed by any key in EMAIL["unsubscribe_keys"], and nothing changed',
    ]


async def test_without_keys_nobody_is_told_that_they_are_unsubscribed(
    asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(UnsubscribeEndpoint(asked), unsubscribe_keys=[]) as client:
        answers = [await client.get(PATH), await client.post(PATH, **ONE_CLICK)]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert 'EMAIL["unsubscribe_keys"]: is empty' in caplog.text
    assert asked == []


async def test_the_pages_may_be_the_applications_own(asked: Asked) -> None:
    endpoint = UnsubscribeEndpoint(asked, page=lambda done: "<p>Abgemeldet</p>" if done else "<p>Abmelden?</p>")
    async with serving(endpoint) as client:
        assert (await client.get(PATH)).text == "<p>Abmelden?</p>"
        assert (await client.post(PATH, **ONE_CLICK)).text == "<p>Abgemeldet</p>"


@pytest.mark.parametrize(
    "given", [{"on_unsubscribe": "shop.leave"}, {"on_unsubscribe": lambda: None}, {"page": "<p>"}, {"page": lambda: ""}]
)
def test_what_is_no_function_of_one_argument_is_refused(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(ImproperlyConfigured, match=rf"^UnsubscribeEndpoint\({name}=\): .* of one argument$"):
        UnsubscribeEndpoint(**given)


async def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await UnsubscribeEndpoint()({"type": "websocket", "path": PATH}, None, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1003}]
