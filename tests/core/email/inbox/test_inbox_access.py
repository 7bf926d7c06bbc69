"""Who may see and change what: host names, foreign sites, DEBUG, where the page lies."""

import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send
from support.inbox import SAME_ORIGIN, Inboxes, every_address, keys_of

from openviper.conf import override
from openviper.core.email import EmailMiddleware, send_email, submit_email
from openviper.core.email.events import listening
from openviper.core.email.inbox.entries import key_of

OWN_NAMES = ["127.0.0.1", "127.8.9.1:80", "localhost:8000", "LOCALHOST", "shop.localhost", "[::1]:1"]
FOREIGN_NAMES = ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.0.7", "0.0.0.0", "", "["]
ODD_NAMES = ["a b", "localhost; x", "localhost:80; script-src *", "evil.example@localhost", "localhost@evil.example"]


@pytest.mark.parametrize("host", OWN_NAMES)
async def test_the_page_is_shown_under_every_name_of_this_machine(inboxes: Inboxes, host: str) -> None:
    async with inboxes.open() as client:
        assert (await client.get("/_mail/", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("host", [*FOREIGN_NAMES, *ODD_NAMES])
async def test_a_foreign_host_name_that_leads_here_sees_nothing(inboxes: Inboxes, host: str) -> None:
    """DNS rebinding: the name is the attacker's, the address this machine's."""
    async with inboxes.open() as client:
        await send_email("a@example.test", "secret-subject", text="")
        for path in ("/_mail", "/_mail/", "/_mail/inbox.css", "/_mail/api/messages"):
            answer = await client.get(path, headers={"Host": host})
            assert answer.status_code == 403
            assert "secret-subject" not in answer.text


async def test_a_host_in_inbox_hosts_is_let_in_whatever_its_case(inboxes: Inboxes) -> None:
    async with inboxes.open(inbox_hosts=["Dev.Example"]) as client:
        assert (await client.get("/_mail/", headers={"Host": "dev.example:8000"})).status_code == 200
        assert (await client.get("/_mail/", headers={"Host": "other.example"})).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_a_change_that_another_site_asks_for_is_refused(inboxes: Inboxes, headers: dict[str, str]) -> None:
    async with inboxes.with_message() as (client, path):
        for action in (f"{path}/delete", f"{path}/again", f"{path}/retry", "/_mail/clear"):
            assert (await client.post(action, headers=headers)).status_code == 403
        assert len(keys_of((await client.get("/_mail/")).text)) == 1


@pytest.mark.parametrize("headers", [SAME_ORIGIN, {"Origin": "http://127.0.0.1:8000"}])
async def test_a_change_from_the_page_itself_is_done(inboxes: Inboxes, headers: dict[str, str]) -> None:
    async with inboxes.with_message() as (client, path):
        answer = await client.post(f"{path}/delete", headers=headers)
        assert (answer.status_code, answer.headers["location"]) == (303, "/_mail/")
        assert (await client.get(path)).status_code == 404


async def test_a_change_is_never_made_by_a_link(inboxes: Inboxes) -> None:
    async with inboxes.with_message() as (client, path):
        for action in (f"{path}/delete", f"{path}/again", f"{path}/retry", "/_mail/clear"):
            assert (await client.get(action)).status_code in (404, 405)
        assert (await client.get(path)).status_code == 200


async def test_clear_all_empties_the_inbox(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        for number in range(3):
            await send_email("a@example.test", f"n{number}", text="")
        assert (await client.post("/_mail/clear", headers=SAME_ORIGIN)).status_code == 303
        assert keys_of((await client.get("/_mail/")).text) == []


async def site(request: Request) -> Response:
    return PlainTextResponse("the application's own")


OWN = Starlette(routes=[Route("/{path:path}", site)])


OFF = [{"DEBUG": False}, {"DEBUG": True, "EMAIL": {"inbox": False}}]


@pytest.mark.parametrize("settings", OFF)
async def test_where_it_is_off_every_address_is_not_found_and_nothing_is_kept(
    inboxes: Inboxes, tmp_path: Path, settings: dict[str, Any]
) -> None:
    with override(**settings):
        async with inboxes.open(inbox_dir=str(tmp_path / "inbox")) as client:
            receipt = await submit_email("a@example.test", "x", html='<img src="cid:logo">', attachments=[b"x"])
            assert not listening()
            for method, path in await every_address(key_of(receipt.message_id)):
                answer = await client.request(method, path, headers=SAME_ORIGIN)
                assert answer.status_code == 404, f"{method} {path}"
    assert not (tmp_path / "inbox").exists()


@pytest.mark.parametrize("settings", OFF)
async def test_where_it_is_off_every_address_is_the_applications_own(
    inboxes: Inboxes, settings: dict[str, Any]
) -> None:
    with override(**settings):
        async with inboxes.open(OWN) as client:
            reads = [path for method, path in await every_address("0123456789abcdef") if method == "GET"]
            assert len(reads) > 15
            for path in reads:
                assert (await client.get(path)).text == "the application's own", path


async def test_always_shows_it_without_debug_and_warns(inboxes: Inboxes, caplog: pytest.LogCaptureFixture) -> None:
    with override(DEBUG=False):
        async with inboxes.open(inbox="always") as client:
            assert (await client.get("/_mail/")).status_code == 200
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert 'EMAIL["inbox"]' in warning
    assert "always" in warning


async def test_with_debug_nothing_is_warned_of(inboxes: Inboxes, caplog: pytest.LogCaptureFixture) -> None:
    async with inboxes.open(inbox="always"):
        pass
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_it_lies_under_the_root_path(inboxes: Inboxes) -> None:
    async with inboxes.open(OWN, root_path="/sub") as client:
        await send_email("a@example.test", "x", text="")
        page = (await client.get("/sub/_mail/")).text
        (key,) = keys_of(page)
        assert f'href="/sub/_mail/{key}"' in page
        assert 'href="/sub/_mail/inbox.css"' in page
        answer = await client.post(f"/sub/_mail/{key}/delete", headers=SAME_ORIGIN)
        assert answer.headers["location"] == "/sub/_mail/"
        assert (await client.get("/sub/other/_mail/")).text == "the application's own"


async def test_it_is_found_in_a_mounted_application(inboxes: Inboxes) -> None:
    inner = EmailMiddleware(Starlette(), {"backend": "MemoryBackend", "default_sender": "a@example.test"})
    app = Starlette(routes=[Mount("/shop", inner)])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        page = await client.get("/shop/_mail/")
    assert page.status_code == 200
    assert 'href="/shop/_mail/inbox.css"' in page.text


async def test_a_path_that_merely_begins_alike_is_the_applications_own(inboxes: Inboxes) -> None:
    async with inboxes.open(OWN) as client:
        for path in ("/_mailbox", "/_mail.txt", "/x/_mail", "/_MAIL/"):
            assert (await client.get(path)).text == "the application's own"


async def test_a_websocket_is_never_the_pages(inboxes: Inboxes) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    wrapped = EmailMiddleware(app, {"backend": "MemoryBackend", "default_sender": "a@example.test"})

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    await wrapped({"type": "websocket", "path": "/_mail/", "headers": []}, receive, send)
    assert seen == ["websocket"]


async def test_an_unknown_message_or_address_is_not_found(inboxes: Inboxes) -> None:
    async with inboxes.with_message() as (client, path):
        unknown = "/_mail/0123456789abcdef"
        for address in (unknown, f"{unknown}/html", f"{unknown}/source", f"{unknown}/message.eml", f"{path}/nothing"):
            assert (await client.get(address)).status_code == 404
        for address in (f"{path}/attachments/0", f"{path}/attachments/99", f"{path}/html", "/_mail/..%2f"):
            assert (await client.get(address)).status_code == 404
        assert (await client.get(f"{path}/attachments/x")).status_code == 404


async def test_head_answers_without_a_body(inboxes: Inboxes) -> None:
    async with inboxes.with_message() as (client, path):
        for address in ("/_mail/", path, f"{path}/source", "/_mail/inbox.css"):
            answer = await client.head(address)
            assert (answer.status_code, answer.content) == (200, b"")


async def test_the_address_without_a_final_slash_works(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        assert (await client.get("/_mail")).status_code == 200
