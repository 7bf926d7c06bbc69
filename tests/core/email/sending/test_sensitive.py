"""``sensitive=True``: sent whole on every path, and hidden from events, texts of values, logs and the inbox page."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.sensitive import RESET, SECRET

from openviper.conf import override
from openviper.core.email import (
    EmailMessageData,
    InvalidMessage,
    MessageEvent,
    render_email,
    send_email,
    send_email_sync,
    send_many,
    submit_email,
    subscribe,
)
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.message.serialiser import serialise_message
from openviper.core.email.message.storage import decode, encode
from openviper.core.email.queue import enqueue_email_job
from openviper.db import transaction
from openviper.testing import Mailbox

SENDER = {"default_sender": "shop@example.test"}
DATA = EmailMessageData("a@example.test", "Reset", text=f"text {SECRET}", sensitive=True)


async def inline() -> object:
    return await send_email(**RESET)


async def sync() -> object:
    return await asyncio.to_thread(lambda: send_email_sync(**RESET))


async def deferred() -> None:
    outbox = RequestOutbox()
    with collecting(outbox):
        await send_email(**RESET)
    outbox.flush()


async def held() -> None:
    async with transaction():
        await send_email(**RESET)


async def many() -> object:
    return [receipt async for receipt in send_many([RESET])]


async def many_of_data() -> object:
    return [receipt async for receipt in send_many([DATA])]


async def queued() -> object:
    return await send_email(**RESET, background=True)


async def bulk() -> object:
    return [receipt async for receipt in send_many([RESET], background=True)]


async def job() -> object:
    return await enqueue_email_job(DATA)


PATHS = [inline, sync, deferred, held, many, many_of_data, queued, bulk, job]


@pytest.mark.parametrize("path", PATHS)
async def test_it_is_sent_whole_and_its_events_show_no_content(
    path: Callable[[], Awaitable[object]], mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    by_setting: list[MessageEvent] = []
    subscribed: list[MessageEvent] = []
    trusted: list[MessageEvent] = []
    ends = [subscribe(subscribed.append), subscribe(trusted.append, sensitive=True)]
    tasks = {"broker": "redis"} if path in (queued, bulk, job) else {}
    caplog.set_level(logging.DEBUG)
    with override(TASKS=tasks, EMAIL={**SENDER, "listeners": [by_setting.append]}):
        await path()
        sent = await mailbox.wait()
    for end in ends:
        end()
    assert SECRET in (sent.text or "")
    assert sent.sensitive
    assert [event.kind for event in by_setting] == [event.kind for event in subscribed]
    assert [event.kind for event in trusted] == [event.kind for event in subscribed]
    assert "delivered" in [event.kind for event in subscribed]
    for event in (*by_setting, *subscribed):
        prepared, content = event.message.prepared, b"".join(event.message.content)
        assert event.sensitive
        assert (prepared.subject, prepared.html, prepared.attachments) == ("Reset", None, ())
        assert prepared.text == "Not shown: this message was sent with sensitive=True.\n"
        assert b"4711" not in content
        assert b"Subject: Reset" in content
        assert len(content) == event.message.size
    assert all(SECRET in event.message.prepared.text for event in trusted)
    assert "4711" not in caplog.text


async def test_without_it_events_show_the_message_as_it_is(mailbox: Mailbox) -> None:
    events: list[MessageEvent] = []
    with override(EMAIL={**SENDER, "listeners": [events.append]}):
        await send_email("a@example.test", "Hello", text="Hi")
    assert [(event.sensitive, event.message.prepared.text) for event in events] == [(False, "Hi")] * 2


async def test_no_value_shows_it_as_text(mailbox: Mailbox) -> None:
    with override(EMAIL=SENDER):
        receipt = await submit_email(**RESET)
    outgoing = mailbox.last.outgoing
    for value in (DATA, outgoing, outgoing.prepared, receipt, encode(outgoing.prepared)):
        assert "4711" not in repr(value)
    assert "text=<hidden>" in repr(DATA)
    assert repr(EmailMessageData("a@example.test", "Hello", text="Hi")).startswith(
        "EmailMessageData(recipients='a@example.test', subject='Hello', text='Hi', html=None"
    )


async def test_it_travels_in_the_stored_form_where_an_older_worker_leaves_it(mailbox: Mailbox) -> None:
    with override(EMAIL=SENDER):
        await send_email(**RESET)
    payload = encode(mailbox.last.outgoing.prepared)
    assert decode(payload).must == {"sensitive": True}
    assert payload.sensitive
    assert not payload.content_dropped
    assert not encode(mailbox.last.outgoing.prepared._replace(must={}, extra={"ref": '"sensitive"'})).sensitive
    head = payload.without_content()
    assert (head.parts, head.content_dropped, head.sensitive) == ((), True, True)
    assert head.summary()["Subject"] == "Reset"


async def test_a_hook_can_set_it(mailbox: Mailbox) -> None:
    def mark(data: EmailMessageData) -> EmailMessageData:
        data.sensitive = "reset" in data.tags
        return data

    with override(EMAIL={**SENDER, "before_send": mark}):
        await send_email("a@example.test", "One", text="Hi", tags=["reset"])
        await send_email("a@example.test", "Two", text="Hi")
    assert [message.sensitive for message in mailbox] == [True, False]


@pytest.mark.parametrize("given", ["no", 1, 0, None])
async def test_only_true_and_false_are_taken(given: Any, mailbox: Mailbox) -> None:
    with override(EMAIL=SENDER), pytest.raises(InvalidMessage, match=r"^sensitive: must be True or False, not "):
        await send_email("a@example.test", "Hello", text="Hi", sensitive=given)


async def test_render_email_shows_it_to_the_caller() -> None:
    with override(EMAIL=SENDER):
        assert SECRET in ((await render_email("Reset", text=SECRET, sensitive=True)).text or "")


async def test_a_placeholder_is_never_what_is_delivered(mailbox: Mailbox) -> None:
    """What listeners get is another value than what is sent, also when an attempt is repeated."""
    with override(EMAIL={**SENDER, "listeners": [lambda event: None]}), mailbox.fail_with("451 later", times=1):
        outbox = RequestOutbox()
        with collecting(outbox):
            await send_email(**RESET)
        outbox.flush()
        sent = await mailbox.wait()
    stored = decode(encode(sent.outgoing.prepared))
    assert SECRET in (stored.text or "")
    assert (await serialise_message(stored, max_message_bytes=10**6)).size == sent.outgoing.size
