"""Live updates and waiting, on a real server where the end of a connection matters."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.inbox import Inboxes
from support.patience import PATIENCE
from support.uvicorn import Uvicorn

from openviper.core.email import send_email
from openviper.core.email.inbox.live import on_shutdown_signal
from openviper.core.email.inbox.store import Changes

FOLDER = Path(__file__).parent
MAIL = {"recipients": "a@example.test", "subject": "Hello", "text": "Hello"}
ENVIRONMENT = {"EMAIL_BACKEND": "MemoryBackend", "EMAIL_DEFAULT_SENDER": "shop@example.test"}


@pytest.fixture
def server() -> Iterator[Uvicorn]:
    with Uvicorn("inbox_app:app", FOLDER, ENVIRONMENT) as server:
        yield server


async def lines(answer: httpx.Response) -> AsyncIterator[str]:
    async for line in answer.aiter_lines():
        if line.startswith("data"):
            yield line


async def test_a_page_is_told_of_a_new_message(server: Uvicorn) -> None:
    client = httpx.AsyncClient(base_url=server.url, timeout=PATIENCE)
    async with client, client.stream("GET", "/_mail/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = lines(answer)
        await client.post("/send", json=MAIL)
        assert await anext(events) == "data: changed"


async def wait_for_mail(client: httpx.AsyncClient) -> httpx.Response:
    while (answer := await client.get("/_mail/api/messages/wait?timeout=60")).status_code == 503:
        await asyncio.sleep(0.05)  # a shorter request has the last place
    return answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_open_pages_and_waiting_tests_do_not_hold_the_shutdown(server: Uvicorn, number: int) -> None:
    client = httpx.AsyncClient(base_url=server.url, timeout=PATIENCE)
    async with client, AsyncExitStack() as pages:
        # Of 32 places one is left: the waiting request has arrived when there is none for another.
        for _ in range(31):
            answer = await pages.enter_async_context(client.stream("GET", "/_mail/events"))
            assert answer.status_code == 200
        waiting = asyncio.create_task(wait_for_mail(client))
        while (await client.get("/_mail/api/messages/wait?timeout=0")).status_code != 503:
            await asyncio.sleep(0.05)
        begun = time.monotonic()
        server.process.send_signal(number)
        assert (await waiting).status_code == 404
        assert time.monotonic() - begun < 50, "it waited to the end of its own time"
        assert await asyncio.to_thread(server.stop)
    assert not any("Traceback" in line for line in server.log), "".join(server.log)


async def test_a_page_that_was_left_frees_its_place(server: Uvicorn) -> None:
    """More pages than may be open at once, one after the other."""
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
        for _ in range(40):
            async with client.stream("GET", "/_mail/events") as answer:
                assert answer.status_code == 200
                await anext(answer.aiter_lines())


async def test_no_more_than_so_many_pages_are_open_at_once(server: Uvicorn) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE, limits=limits) as client:
        answers = []
        for _ in range(32):
            request = client.build_request("GET", "/_mail/events")
            answers.append(await client.send(request, stream=True))
        assert {answer.status_code for answer in answers} == {200}
        assert (await client.get("/_mail/events")).status_code == 503
        assert (await client.get("/_mail/api/messages/wait?timeout=1")).status_code == 503
        for answer in answers:
            await answer.aclose()


@pytest.mark.parametrize(("streams", "waits"), [(200, 0), (40, 40), (0, 100)])
async def test_of_many_requests_at_once_no_more_than_promised_wait(inboxes: Inboxes, streams: int, waits: int) -> None:
    """Each is admitted and counted in one step, whoever else is on the way in."""
    admitted: list[int] = []
    go_on = asyncio.Event()
    async with inboxes.open() as client:
        app: Any = client._transport.app  # type: ignore[attr-defined]

        async def request(path: str) -> int:
            statuses: list[int] = []

            async def receive() -> dict[str, object]:
                await go_on.wait()
                return {"type": "http.disconnect"}

            async def send(event: dict[str, Any]) -> None:
                if event["type"] == "http.response.start":
                    statuses.append(event["status"])
                    admitted.append(event["status"])

            query = b"timeout=0.5" if path.endswith("wait") else b""
            headers = [(b"host", b"127.0.0.1")]
            scope: dict[str, object] = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode()}
            scope |= {"query_string": query, "headers": headers, "client": ("127.0.0.1", 1), "root_path": ""}
            scope |= {"server": ("127.0.0.1", 80), "scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0"}}
            await app(scope, receive, send)
            return statuses[0]

        paths = ["/_mail/events"] * streams + ["/_mail/api/messages/wait"] * waits
        tasks = [asyncio.create_task(request(path)) for path in paths]
        while len(admitted) < len(paths):
            await asyncio.sleep(0.01)
        go_on.set()
        statuses = await asyncio.gather(*tasks)
    assert len(statuses) - statuses.count(503) == 32


async def test_waiting_answers_as_soon_as_the_message_is_there(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        waiting = asyncio.create_task(client.get("/_mail/api/messages/wait?to=b@&subject=SECOND&timeout=60"))
        await send_email("a@example.test", "first", text="")
        await send_email("a@example.test", "second", text="")
        assert not waiting.done()
        await send_email("b@example.test", "Second", text="It")
        answer = (await waiting).json()
    assert (answer["subject"], answer["text"], answer["to"]) == ("Second", "It", ["b@example.test"])


async def test_waiting_can_go_on_from_a_cursor(inboxes: Inboxes) -> None:
    """Without one the newest that fits counts, with one the next: so a test reads message after message."""
    async with inboxes.open() as client:
        for subject in ("one", "two", "three"):
            await send_email("a@example.test", subject, text="")
        assert (await client.get("/_mail/api/messages/wait?timeout=0")).json()["subject"] == "three"
        cursor = "1"
        for subject in ("one", "two", "three"):
            answer = (await client.get(f"/_mail/api/messages/wait?timeout=0&after={cursor}")).json()
            assert answer["subject"] == subject
            cursor = answer["cursor"]
        assert (await client.get("/_mail/api/messages")).json()["cursor"] == cursor
        assert (await client.get(f"/_mail/api/messages/wait?timeout=0.05&after={cursor}")).status_code == 404


async def test_waiting_for_a_state(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        await send_email("a@example.test", "one", text="")
        assert (await client.get("/_mail/api/messages/wait?timeout=60&state=delivered")).status_code == 200
        late = await client.get("/_mail/api/messages/wait?timeout=0.05&state=failed")
        assert late.status_code == 404
        assert "no matching message arrived within 0.05 s" in late.json()["error"]


@pytest.mark.parametrize("timeout", ["x", "-1", "61", "nan", "inf", "1e9"])
async def test_a_timeout_out_of_bounds_is_refused(inboxes: Inboxes, timeout: str) -> None:
    async with inboxes.open() as client:
        answer = await client.get(f"/_mail/api/messages/wait?timeout={timeout}")
    assert answer.status_code == 400
    assert "timeout" in answer.json()["error"]


async def test_changes_are_seen_from_other_threads_and_never_missed() -> None:
    changes = Changes()
    thread = threading.Thread(target=changes.notify)
    thread.start()
    assert await changes.after(0, 10) == 1
    assert await changes.after(0, 0) == 1
    assert await changes.after(1, 0.01) == 1
    changes.close()
    assert await changes.after(1, 10) == 2
    assert await changes.after(2, 10) == 2
    thread.join()


async def test_changes_after_the_loop_has_ended_are_no_error() -> None:
    async def make() -> Changes:
        return Changes()

    changes = await asyncio.to_thread(lambda: asyncio.run(make()))
    changes.notify()
    changes.close()


async def test_the_servers_own_handler_runs_after_ours_and_is_put_back() -> None:
    heard: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: heard.append("server"))
    server = signal.getsignal(signal.SIGTERM)
    try:
        with on_shutdown_signal(lambda: heard.append("first")) as told:
            assert told
            with on_shutdown_signal(lambda: heard.append("second")):
                os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ["first", "second", "server"]
        assert signal.getsignal(signal.SIGTERM) is server
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_outside_the_main_thread_nothing_can_be_told() -> None:
    def block() -> bool:
        with on_shutdown_signal(lambda: None) as told:
            return told

    assert not await asyncio.to_thread(block)
