"""Listeners: what an event says in each delivery mode and process, and that they cannot harm mail."""

import asyncio
import copy
import json
import logging
import operator
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.brokers import redis_server
from support.messages import outgoing
from support.patience import PATIENCE
from support.redis import RedisServer
from support.smtpd import SmtpServer
from support.workers import Worker, write_project

from openviper.conf import override
from openviper.core.email import DeliveryMode, MessageEvent, send_email, submit_email, subscribe
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.errors import DeliveryError
from openviper.core.email.events import drain_listeners, publish
from openviper.core.email.message.storage import decode, encode
from openviper.core.email.queue import close_queue
from openviper.core.email.settings import EmailSettings
from openviper.db import transaction
from openviper.exceptions import ImproperlyConfigured
from openviper.testing import Mailbox

__all__ = ["redis_server"]


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as started:
        yield started


class Listening:
    """A mailer whose settings have listeners."""

    def __init__(self, server: SmtpServer, *listeners: object, **settings: Any) -> None:
        given = {"default_sender": "shop@example.test", "listeners": list(listeners), "retries": 1, **settings}
        self.mailer = Mailer(EmailSettings(**server.settings(**given)))

    async def send(self, mode: DeliveryMode) -> None:
        outbox = RequestOutbox()
        with using_mailer(self.mailer):
            if mode is DeliveryMode.DEFERRED:
                with collecting(outbox):
                    await submit_email("a@example.test", "Hello", text="Hi")
                outbox.flush()
            elif mode is DeliveryMode.HELD:
                async with transaction():
                    await submit_email("a@example.test", "Hello", text="Hi")
            else:
                await submit_email("a@example.test", "Hello", text="Hi", fail_silently=True)
        await self.mailer.aclose()


@pytest.mark.parametrize(
    ("mode", "replies", "expected"),
    [
        (DeliveryMode.INLINE, [], [("sending", "inline", 1, None), ("delivered", "inline", 1, 250)]),
        (DeliveryMode.INLINE, [550], [("sending", "inline", 1, None), ("failed", "inline", 1, 550)]),
        (
            DeliveryMode.DEFERRED,
            [451],
            [
                ("deferred", "deferred", None, None),
                ("sending", "deferred", 1, None),
                ("retrying", "deferred", 1, 451),
                ("sending", "deferred", 2, None),
                ("delivered", "deferred", 2, 250),
            ],
        ),
        (
            DeliveryMode.HELD,
            [],
            [
                ("held", "held", None, None),
                ("sending", "deferred", 1, None),
                ("delivered", "deferred", 1, 250),
            ],
        ),
    ],
)
async def test_an_event_says_how_and_at_which_attempt(
    server: SmtpServer, mode: DeliveryMode, replies: list[int], expected: list[tuple[object, ...]]
) -> None:
    events: list[MessageEvent] = []
    for reply in replies:
        server.fault("MAIL", reply, nth=1)
    await Listening(server, events.append).send(mode)
    assert [(event.kind, event.mode, event.attempt, event.code) for event in events] == expected
    for event in events:
        ended = event.kind not in ("held", "deferred", "sending")
        assert (event.seconds is not None and event.seconds > 0) is ended


async def test_listeners_of_the_setting_and_those_that_subscribed_get_the_same_events(server: SmtpServer) -> None:
    by_setting: list[MessageEvent] = []
    subscribed: list[MessageEvent] = []
    unsubscribe = subscribe(subscribed.append)
    await Listening(server, by_setting.append).send(DeliveryMode.INLINE)
    unsubscribe()
    assert by_setting == subscribed
    assert len(by_setting) == 2


async def test_a_listener_cannot_change_what_is_sent(server: SmtpServer) -> None:
    def meddle(event: MessageEvent) -> None:
        prepared = event.message.prepared
        given: Any = event
        changes: list[Callable[[], object]] = [
            lambda: given.metadata.update(shop="other"),
            lambda: prepared.extra.pop("ref"),
            lambda: prepared.extra["tags"].append("other"),
            lambda: operator.setitem(prepared.must, "stream", "other"),
            lambda: operator.ior(prepared.must, {"stream": "other"}),
            lambda: setattr(prepared.attachments[0], "filename", "other"),
            lambda: setattr(given, "kind", "other"),
        ]
        for change in changes:
            with pytest.raises((TypeError, AttributeError)):
                change()
        tried.append(event)

    tried: list[MessageEvent] = []
    made = Listening(server, meddle).mailer
    with using_mailer(made):
        await submit_email(
            "a@example.test",
            "Hello",
            text="Hi",
            attachments=[("a.txt", b"a")],
            tags=["welcome"],
            ref="order-7",
            metadata={"shop": "de"},
            stream="news",
        )
    await made.aclose()
    assert [event.kind for event in tried] == ["sending", "delivered"]
    prepared = tried[-1].message.prepared
    for copied in (prepared, pickle.loads(pickle.dumps(prepared)), copy.deepcopy(prepared), decode(encode(prepared))):
        assert copied.extra == {"tags": ("welcome",), "ref": "order-7", "metadata": {"shop": "de"}}
        assert copied.must == {"stream": "news"}


async def test_an_async_listener_runs_in_a_task_and_is_waited_for_at_the_end(server: SmtpServer) -> None:
    seen: list[str] = []

    async def listener(event: MessageEvent) -> None:
        await asyncio.sleep(0)
        seen.append(event.kind)

    await Listening(server, listener).send(DeliveryMode.DEFERRED)
    assert seen == ["deferred", "sending", "delivered"]


async def raising(event: MessageEvent) -> None:
    raise LookupError("broken listener")


def raising_at_once(event: MessageEvent) -> None:
    raise LookupError("broken listener")


async def hanging(event: MessageEvent) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("listener", [raising, raising_at_once, hanging])
@pytest.mark.parametrize("mode", [DeliveryMode.INLINE, DeliveryMode.DEFERRED, DeliveryMode.HELD])
async def test_a_broken_listener_harms_no_mail(
    server: SmtpServer, listener: object, mode: DeliveryMode, caplog: pytest.LogCaptureFixture
) -> None:
    await Listening(server, listener, shutdown_timeout=0.2).send(mode)
    assert len(server.messages) == 1
    if listener is hanging:
        assert "async listeners did not get" in caplog.text
    else:
        assert "broken listener" in caplog.text


async def test_slow_listeners_run_at_most_a_hundred_at_a_time_and_lose_events_beyond_a_bound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    running = most = done = 0
    go = asyncio.Event()

    async def slow(event: MessageEvent) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        done += 1

    message = outgoing()
    for _ in range(10_110):
        publish("sending", message, listeners=[slow])
    await asyncio.sleep(0)
    go.set()
    await drain_listeners(PATIENCE)
    assert most == 100
    assert done == 10_000
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines == [
        "async listeners are too slow: 10000 events wait, further ones are dropped",
        "async listeners did not get 110 events",
    ]


def test_an_async_listener_without_an_event_loop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    publish("sending", outgoing(), listeners=[hanging])
    assert "needs an event loop" in caplog.text


def test_a_script_waits_for_its_async_listeners(server: SmtpServer) -> None:
    seen: list[str] = []

    async def listener(event: MessageEvent) -> None:
        seen.append(event.kind)

    async def script() -> None:
        await send_email("a@example.test", "Hello", text="Hi")

    with override(EMAIL=server.settings(default_sender="shop@example.test", listeners=[listener])):
        asyncio.run(script())
    assert sorted(seen) == ["delivered", "sending"]


async def test_listeners_hear_of_captured_mail(mailbox: Mailbox) -> None:
    seen: list[MessageEvent] = []
    with override(EMAIL={"default_sender": "shop@example.test", "listeners": [seen.append]}):
        await send_email("a@example.test", "Hello", text="Hi")
    assert [event.kind for event in seen] == ["sending", "delivered"]
    mailbox.assert_sent(to="a@example.test")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["no_such.module"], 'EMAIL["listeners"]: there is no module'),
        ([f"{__name__}.no_such"], 'EMAIL["listeners"]: module'),
        ([f"{__name__}.PATIENCE"], 'EMAIL["listeners"]: '),
    ],
)
async def test_a_wrong_listener_is_told_when_the_mailer_is_made(
    server: SmtpServer, given: list[str], text: str
) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        Listening(server, *given)
    assert str(raised.value).startswith(text)


LISTENERS = """
import json
from pathlib import Path

async def note(event):
    with Path({log!r}).open("a") as log:
        print(json.dumps([event.kind, event.mode, event.attempt, event.code]), file=log)
"""


async def test_a_worker_calls_the_listeners_of_the_setting(
    tmp_path: Path, redis_server: RedisServer, server: SmtpServer
) -> None:
    log = tmp_path / "events.log"
    email = server.settings(default_sender="shop@example.com", listeners=["events_log.note"])
    folder = write_project(tmp_path / "project", tasks=redis_server.tasks(), email=email)
    (folder / "events_log.py").write_text(LISTENERS.format(log=str(log)))
    seen: list[MessageEvent] = []
    server.fault("MAIL", 451, nth=1)
    with override(TASKS=redis_server.tasks(), EMAIL={**email, "listeners": [seen.append]}):
        try:
            assert (await submit_email("a@example.test", "Hello", text="Hi")).mode is DeliveryMode.QUEUED
        finally:
            await asyncio.to_thread(close_queue)
    worker = Worker(folder)
    await asyncio.to_thread(worker.start)
    await server.arrive(1)
    assert await asyncio.to_thread(worker.terminate) == 0  # after its listeners have ended
    assert [(event.kind, event.mode) for event in seen] == [("queued", "queued")]
    assert [json.loads(line) for line in log.read_text().splitlines()] == [
        ["sending", "queued", 1, None],
        ["retrying", "queued", 1, 451],
        ["sending", "queued", 2, None],
        ["delivered", "queued", 2, 250],
    ]


async def test_the_listeners_of_a_failure_do_not_change_its_error(server: SmtpServer) -> None:
    server.fault("MAIL", 550)
    listening = Listening(server, raising)
    with using_mailer(listening.mailer), pytest.raises(DeliveryError, match="550"):
        await send_email("a@example.test", "Hello", text="Hi")
    await listening.mailer.aclose()
