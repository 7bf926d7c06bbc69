"""The headers that guard the page: on each response of each route, errors included."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import httpx
import pytest
from jinja2 import BaseLoader, Environment
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message
from support.inbox import SAME_ORIGIN, Inboxes, directives, every_address
from support.lifespan import Lifespan

from openviper.conf import override
from openviper.core.email import EmailMiddleware, send_email, submit_email
from openviper.core.email.inbox.entries import key_of

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY")
SETTINGS = {"backend": "MemoryBackend", "default_sender": "shop@example.test"}


async def start_of(app: ASGIApp, method: str, path: str, headers: Mapping[str, str] = SAME_ORIGIN) -> httpx.Response:
    """Status and headers of the response, of which the rest is not awaited: streams have no end."""
    started: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    asked = count()

    async def receive() -> Message:
        if next(asked):  # a stream waits for its reader to leave
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            started.set_result(message)

    given = {"host": "127.0.0.1:8000", **headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in given.items()]
    query = b"timeout=0" if path.endswith("/wait") else b""
    scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": raw, "scheme": "http"}
    call = asyncio.ensure_future(app(scope, receive, send))
    await asyncio.wait((call, started), return_when=asyncio.FIRST_COMPLETED)
    if not call.done():
        call.cancel()
        await asyncio.wait((call,))
    message = started.result()
    return httpx.Response(message["status"], headers=message["headers"])


def check_guards(response: httpx.Response, what: str) -> None:
    headers = response.headers
    assert "default-src 'none'" in headers["content-security-policy"], what
    assert headers["x-content-type-options"] == "nosniff", what
    assert headers["cache-control"] == "no-store", what
    assert headers["referrer-policy"] == "no-referrer", what
    assert headers["cross-origin-opener-policy"] == "same-origin", what
    assert headers["x-dns-prefetch-control"] == "off", what
    assert len(headers.get_list("content-security-policy")) == 1, what


@pytest.mark.parametrize("surrounded", [False, True], ids=["outermost", "mounted"])
async def test_every_response_to_every_method_is_guarded(surrounded: bool) -> None:
    """An application around it has handlers for errors of its own, which would know neither guards nor JSON."""
    wrapped = EmailMiddleware(Starlette(), SETTINGS)
    app = Starlette(routes=[Mount("/shop", wrapped)]) if surrounded else wrapped
    root = "/shop" if surrounded else ""
    statuses: Counter[int] = Counter()
    with override(DEBUG=True):
        async with Lifespan(wrapped):
            receipt = await submit_email("a@example.test", "x", html='<img src="cid:logo">', attachments=[b"x"])
            addresses = {path for _, path in await every_address(key_of(receipt.message_id))}
            for path in sorted([*addresses, "/_mail/api/no", "/_mail/a/b/c"], key=lambda path: path.count("delete")):
                for method in METHODS:
                    response = await start_of(app, method, root + path)
                    what = f"{method} {path}: {response.status_code}"
                    check_guards(response, what)
                    statuses[response.status_code] += 1
                    if response.status_code == 405:
                        assert method not in response.headers["allow"], what
                        kind = "application/json" if path.startswith("/_mail/api/") else "text/html"
                        assert response.headers["content-type"].startswith(kind), what
                    foreign = await start_of(app, method, root + path, {"host": "evil.example"})
                    check_guards(foreign, what)
                    assert foreign.status_code == 403
    assert {200, 204, 303, 400, 404, 405} <= statuses.keys()
    assert statuses[405] > 100


async def test_a_wrong_method_is_told_those_that_are_right(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        answer = await client.patch("/_mail/api/messages")
        page = await client.put("/_mail/clear")
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET, HEAD")
    assert answer.json() == {"error": "PATCH is not allowed here (allowed: DELETE, GET, HEAD)."}
    assert (page.status_code, page.headers["allow"]) == (405, "POST")
    assert "PUT is not allowed here (allowed: POST)." in page.text


@pytest.mark.parametrize("path", ["/_mail/clear", "/_mail/selected"])
async def test_an_action_is_not_taken_for_a_message(inboxes: Inboxes, path: str) -> None:
    """A message's address has the same form."""
    async with inboxes.open() as client:
        for method in ("GET", "HEAD"):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert (await client.get("/_mail/0123456789abcdef")).status_code == 404
        assert (await client.delete("/_mail/api/messages/0123456789abcdef")).status_code == 404


async def test_a_frame_and_a_file_keep_policies_of_their_own(inboxes: Inboxes) -> None:
    image = {"content": b"<svg/>", "filename": "x.svg", "mimetype": "image/svg+xml"}
    async with inboxes.with_message(html="<p>Hello", attachments=[image]) as (client, path):
        frame = await client.get(f"{path}/html")
        picture = await client.get(f"{path}/attachments/0/image")
        large = await client.post(f"{path}/delete", content=b"x=" + b"a" * 20_000, headers=SAME_ORIGIN)
    assert "sandbox" in directives(frame.headers)
    assert directives(picture.headers)["sandbox"] == ""
    assert large.status_code == 413
    for response in (frame, picture, large):
        check_guards(response, str(response.url))


class _FailingLoader(BaseLoader):
    def list_templates(self) -> list[str]:
        raise RuntimeError("secret of the loader")


@pytest.mark.parametrize("surrounded", [False, True], ids=["outermost", "mounted"])
async def test_a_failure_is_guarded_and_raised_for_the_servers_log(tmp_path: Path, surrounded: bool) -> None:
    settings = {**SETTINGS, "template_environment": Environment(loader=_FailingLoader(), autoescape=True)}
    wrapped = EmailMiddleware(Starlette(), settings)
    app = Starlette(routes=[Mount("/shop", wrapped)]) if surrounded else wrapped
    with override(DEBUG=True, TEMPLATES_DIR=tmp_path):
        async with Lifespan(wrapped):
            await send_email("a@example.test", "x", text="")
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                response = await client.get(f"{'/shop' if surrounded else ''}/_mail/templates")
            with pytest.raises(RuntimeError, match="secret of the loader"):
                async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
                    await client.get(f"{'/shop' if surrounded else ''}/_mail/templates")
    assert (response.status_code, response.headers["content-type"]) == (500, "text/plain; charset=utf-8")
    assert "see the server's log" in response.text
    assert "secret" not in response.text
    check_guards(response, "500")
