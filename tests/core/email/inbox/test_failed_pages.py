"""The page about dead letters, on either broker: list, why, retry, delete; by the page and by its JSON API."""

import asyncio
import threading
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pytest
from support.broker_server import BrokerServer
from support.brokers import rabbitmq_server, redis_server, until_available
from support.brokers import usual_broker as broker
from support.inbox import SAME_ORIGIN, Inboxes
from support.patience import PATIENCE
from support.smtpd import SmtpServer
from support.workers import Worker, write_project

from openviper.conf import override
from openviper.core.email import QueueUnavailable, send_email, submit_email
from openviper.core.email.inbox.dead_letters import DeadLetters
from openviper.core.email.queue import close_queue, queue_service

__all__ = ["broker", "rabbitmq_server", "redis_server"]

HOSTILE = '"><script>alert(1)</script>'


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


class Scene:
    """A broker, a mail server, and a project whose worker keeps what the mail server refuses."""

    def __init__(self, folder: Path, broker: BrokerServer, smtp: SmtpServer) -> None:
        self.broker = broker
        self.smtp = smtp
        self.tasks = broker.tasks()
        self.email = smtp.settings(default_sender="shop@example.test", on_uncertain="hold", protocol_log=True)
        self.folder = write_project(folder / "project", tasks=self.tasks, email=self.email)

    async def fail(self, *messages: tuple[str, str]) -> list[str]:
        """Have a worker give up these, each an address and a subject; return their Message-IDs."""
        for address, _ in messages:
            self.smtp.refuse(address, 550)
        receipts = [await submit_email(address, subject, text="") for address, subject in messages]
        with Worker(self.folder):
            await until_failed(len(messages))
        self.smtp.behave()
        return [receipt.message_id for receipt in receipts]


async def until_failed(count: int) -> None:
    service = queue_service()
    assert service is not None
    async with asyncio.timeout(PATIENCE):
        while len(await asyncio.to_thread(service.store.failed, 10)) < count:
            await asyncio.sleep(0.1)


@pytest.fixture
def scene(tmp_path: Path, broker: BrokerServer, smtp: SmtpServer) -> Iterator[Scene]:
    made = Scene(tmp_path, broker, smtp)
    with override(TASKS=made.tasks, EMAIL=made.email):
        until_available()
        yield made
        close_queue()


async def failed_of(client: Any) -> list[dict[str, Any]]:
    answer = await client.get("/_mail/api/failed")
    assert answer.status_code == 200, answer.text
    messages: list[dict[str, Any]] = answer.json()["messages"]
    assert answer.json()["total"] == len(messages)
    return messages


async def test_a_dead_letter_is_listed_with_its_reason_then_retried_or_deleted(inboxes: Inboxes, scene: Scene) -> None:
    first, second = await scene.fail(("a@example.test", HOSTILE), ("b@example.test", "Second"))
    async with inboxes.open() as client:
        page = (await client.get("/_mail/failed")).text
        assert HOSTILE not in page
        for words in ("&lt;script&gt;alert(1)", "Second", "b@example.test", "550", "after 1 attempt<", "2 that"):
            assert words in page
        listed = await failed_of(client)
        assert {one["message_id"] for one in listed} == {first, second}
        assert listed == sorted(listed, key=lambda one: str(one["failed_at"]))
        listed.sort(key=lambda one: one["message_id"] != first)  # two threads of the worker failed them in any order
        assert (listed[0]["subject"], listed[0]["to"], listed[0]["attempts"]) == (HOSTILE, "a@example.test", 1)
        assert list(listed[0]["refused"]) == ["a@example.test"]
        assert not listed[0]["perhaps_delivered"]
        dialogue = "C: RCPT TO:<...@example.test>\nS: 550"
        assert dialogue in listed[0]["protocol"]
        assert escape(dialogue) in page

        answer = await client.post("/_mail/failed/purge", data={"id": second}, headers=SAME_ORIGIN)
        assert (answer.status_code, answer.headers["location"]) == (303, "/_mail/failed?purged=1")
        assert "1 message deleted." in (await client.get(answer.headers["location"])).text
        answer = await client.post("/_mail/failed/retry", data={"id": first}, headers=SAME_ORIGIN)
        assert (answer.status_code, answer.headers["location"]) == (303, "/_mail/failed?retried=1")
        page = (await client.get(answer.headers["location"])).text
        assert "1 message queued again." in page
        assert "No failed mail" in page
        answer = await client.post("/_mail/failed/retry", data={"id": first}, headers=SAME_ORIGIN)
        assert "Nothing was queued again" in (await client.get(answer.headers["location"])).text
    with Worker(scene.folder):
        (message,) = await scene.smtp.arrive(1)
    assert message.recipients == ["a@example.test"]


async def test_all_are_retried_or_deleted_by_the_api(inboxes: Inboxes, scene: Scene) -> None:
    ids = await scene.fail(*((f"r{number}@example.test", "Hello") for number in range(3)))
    async with inboxes.open() as client:
        for method, path in (("DELETE", "/_mail/api/failed"), ("PUT", "/_mail/api/failed/retry")):
            assert (await client.request(method, path)).status_code == 400, "neither ids nor all"
            assert (await client.request(method, f"{path}?all=1&id=x")).status_code == 400
        assert (await client.post("/_mail/failed/purge", headers=SAME_ORIGIN)).status_code == 400
        bare = ids[0].strip("<>")
        assert (await client.put(f"/_mail/api/failed/retry?id={bare}")).json() == {"count": 1, "content_dropped": 0}
        assert (await client.put("/_mail/api/failed/retry?id=unknown")).json() == {"count": 0, "content_dropped": 0}
        assert (await client.delete("/_mail/api/failed?all=1")).json() == {"count": 2}
        assert await failed_of(client) == []


async def test_who_perhaps_has_the_message_is_shown_as_such(inboxes: Inboxes, scene: Scene) -> None:
    scene.smtp.fault("body", "drop", nth=1)
    await submit_email("a@example.test", "Cut off", text="")
    with Worker(scene.folder):
        await until_failed(1)
    async with inboxes.open() as client:
        page = (await client.get("/_mail/failed")).text
        assert 'class="state">perhaps delivered<' in page
        assert "may get it twice" in page
        (listed,) = await failed_of(client)
    assert listed["perhaps_delivered"]


async def test_a_broker_that_does_not_answer_is_named_within_the_time_limit(inboxes: Inboxes, scene: Scene) -> None:
    async with inboxes.open() as client:
        assert "No failed mail" in (await client.get("/_mail/failed")).text
        scene.broker.pause()
        try:
            async with asyncio.timeout(PATIENCE):
                pages = await asyncio.gather(*(client.get("/_mail/failed") for _ in range(8)))
                api = await client.get("/_mail/api/failed")
        finally:
            scene.broker.resume()
    assert [page.status_code for page in pages] == [503] * 8
    assert len({page.text for page in pages}) == 1
    assert 'role="alert"' in pages[0].text
    assert api.status_code == 503
    assert api.json()["error"]


async def test_reading_beyond_the_limit_holds_one_thread_however_many_wait(scene: Scene) -> None:
    letters = DeadLetters(limit=0.05)
    scene.broker.pause()
    try:
        for _ in range(5):
            with pytest.raises(QueueUnavailable, match=r"no answer within 0\.05 s"):
                await letters.read()
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("openviper-inbox-queue") == 1
        with pytest.raises(QueueUnavailable, match="no answer within"):
            await letters.change("retry", None)
        with pytest.raises(QueueUnavailable, match="an earlier command is still changing"):
            await letters.change("retry", None)
    finally:
        scene.broker.resume()
    async with asyncio.timeout(PATIENCE):
        while "openviper-inbox-queue" in [thread.name for thread in threading.enumerate()]:
            await asyncio.sleep(0.05)


async def test_without_a_broker_the_page_says_so(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        await send_email("a@example.test", "Hello", text="")
        page = (await client.get("/_mail/failed")).text
        assert "Mail is not queued" in page
        assert 'TASKS["broker"]' in page
        assert 'aria-current="page">Failed' in page
        assert (await client.get("/_mail/api/failed")).json() == {"broker": None, "total": 0, "messages": []}
        answer = await client.delete("/_mail/api/failed?all=1")
        assert (answer.status_code, "TASKS" in answer.json()["error"]) == (409, True)


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}])
@pytest.mark.parametrize("path", ["/_mail/failed/retry", "/_mail/failed/purge"])
async def test_another_site_changes_nothing(inboxes: Inboxes, path: str, headers: dict[str, str]) -> None:
    async with inboxes.open() as client:
        assert (await client.post(path, data={"all": "1"}, headers=headers)).status_code == 403
        assert (await client.get(f"{path}?all=1")).status_code in (404, 405)
        foreign = {**headers, "Host": "evil.example"}
        assert (await client.get("/_mail/failed", headers=foreign)).status_code == 403
        assert (await client.get("/_mail/api/failed", headers=foreign)).status_code == 403


@pytest.mark.parametrize("query", ["retried=1<script>", "purged=²", "retried=-1", "retried=12345678901"])
async def test_a_count_that_is_none_is_not_shown(inboxes: Inboxes, query: str) -> None:
    async with inboxes.open() as client:
        page = await client.get(f"/_mail/failed?{query}")
    assert page.status_code == 200
    assert 'class="notice"' not in page.text
    assert "<script>" not in page.text


async def test_a_form_that_is_too_large_is_refused(inboxes: Inboxes) -> None:
    async with inboxes.open() as client:
        answer = await client.post("/_mail/failed/retry", data={"id": "x" * 10_001}, headers=SAME_ORIGIN)
    assert answer.status_code == 413
