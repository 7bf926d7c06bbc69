"""``send_many(background=True)``: every message is queued or has a receipt that says why not; none goes inline."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.brokers import queueing_again

from openviper.conf import override
from openviper.core.email import (
    AttachmentData,
    BulkProgress,
    Cancel,
    DeliveryError,
    DeliveryMode,
    DuplicateKey,
    EmailMessageData,
    InvalidAddress,
    InvalidMessage,
    MessageEvent,
    QueueUnavailable,
    Receipt,
    send_many,
    submit_email,
    subscribe,
)
from openviper.core.email.message import identify_data
from openviper.core.email.queue import enqueue_email_job, queue_service
from openviper.core.email.queue.redis_scripts import ADD_MANY
from openviper.db import transaction
from openviper.testing import Mailbox

Dict = dict[str, Any]


def message(number: int = 0, **more: Any) -> Dict:
    return {"recipients": f"to{number}@example.com", "subject": f"Message {number}", "text": "Hello"} | more


def messages(count: int, **more: Any) -> Iterator[Dict]:
    return (message(number, **more) for number in range(count))


async def queue_all(given: Any, **more: Any) -> list[Receipt]:
    return [receipt async for receipt in send_many(given, background=True, **more)]


def noting(read: list[Dict]) -> Iterator[Dict]:
    """Three messages; ``read`` gets those that were asked for."""
    for each in messages(3):
        read.append(each)
        yield each


async def waiting() -> int:
    service = queue_service()
    assert service is not None
    return (await asyncio.to_thread(service.store.stats)).waiting


async def test_a_worker_delivers_each_of_several_batches_once(scene: Any) -> None:
    receipts = await queue_all(messages(450))
    assert {receipt.index for receipt in receipts} == set(range(450))
    assert len(receipts) == 450
    assert {(receipt.mode, receipt.outcome) for receipt in receipts} == {(DeliveryMode.QUEUED, "accepted")}
    assert len({receipt.message_id for receipt in receipts}) == 450
    assert scene.smtp.messages == []
    with scene.worker():
        arrived = await scene.smtp.arrive(450)
    assert sorted(each.recipients[0] for each in arrived) == sorted(f"to{number}@example.com" for number in range(450))


async def test_run_that_is_started_again_from_the_top_queues_each_message_once(scene: Any) -> None:
    """Without keys, with them, and with a large part."""
    run = uuid.uuid4().hex  # RabbitMQ leaves keys to the process, which has other tests
    given = [message(number, key=f"{run}-{number}") for number in range(220)]
    given[3]["attachments"] = [("large.bin", bytes(300_000))]
    plain = message(1000)
    assert len(await queue_all([plain, *given[:100]])) == 101
    again = {each.index: each for each in await queue_all([plain, *given])}
    assert [again[index].duplicate for index in (0, 1, 4, 100, 101, 220)] == [False, True, True, True, False, False]
    assert {each.outcome for each in again.values()} == {"accepted"}
    assert sum(each.duplicate is True for each in again.values()) == 100
    changed = await queue_all([{**given[7], "text": "Changed"}])
    assert isinstance(changed[0].error, DuplicateKey)
    assert await waiting() == 222


async def test_same_key_twice_in_one_batch_is_queued_once(scene: Any) -> None:
    key = uuid.uuid4().hex
    receipts = await queue_all([message(key=key), message(key=key)])
    assert sorted(each.duplicate is True for each in receipts) == [False, True]
    assert await waiting() == 1


async def test_key_of_scheduled_mail_is_kept_until_after_its_time(scene: Any) -> None:
    with override(EMAIL={**scene.email, "key_ttl": 1}):
        single, many = uuid.uuid4().hex, uuid.uuid4().hex
        told = []
        for _ in range(2):
            given = {**message(), "delay": 60}
            told.append(await submit_email(**given, key=single))
            told += await queue_all([{**given, "key": many}])
            await asyncio.sleep(1.2)
    assert [receipt.duplicate for receipt in told] == [False, False, True, True]


async def test_job_whose_key_is_uncertain_is_refused(redis_scene: Any) -> None:
    """As a process leaves the key that was killed during an attempt."""
    data = EmailMessageData("to@example.com", "Hello", text="Hi", key="order-7")
    fingerprint = (await identify_data(data))[1].fingerprint
    values = {"state": "sending", "until": 0, "fingerprint": fingerprint, "message_id": "<first@example.com>"}
    redis_scene.broker.client().hset("dramatiq:mail:key:order-7", mapping=values)
    with pytest.raises(DeliveryError, match=r"<first@example\.com>, which may have been delivered") as raised:
        await enqueue_email_job(data)
    assert raised.value.uncertain
    assert await waiting() == 0


async def test_job_with_a_key_is_queued_once(scene: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "openviper.email")
    events: list[MessageEvent] = []
    data = EmailMessageData("to@example.com", "Hello", text="Hi", key=uuid.uuid4().hex)
    unsubscribe = subscribe(events.append)
    first, second = await enqueue_email_job(data), await enqueue_email_job(data)
    unsubscribe()
    assert (first.duplicate, second) == (False, first._replace(duplicate=True))
    assert [(event.kind, event.key) for event in events] == [("queued", data.key), ("duplicate", data.key)]
    assert f"is not sent: message {first.message_id} has its key" in caplog.text
    with pytest.raises(DuplicateKey):
        await enqueue_email_job(replace(data, text="Changed"))
    assert await waiting() == 1


async def test_attachments_of_all_sizes_arrive_unchanged(scene: Any) -> None:
    """Large parts, many small ones and none travel in one batch."""
    large = [[("large.bin", bytes([number]) * 300_000)] for number in range(3)]
    many = [(f"{number}.bin", bytes([number])) for number in range(120)]
    given = [message(number, attachments=each) for number, each in enumerate([*large, many, None, many[:3]])]
    assert [receipt.error for receipt in await queue_all(given)] == [None] * 6
    with scene.worker():
        arrived = await scene.smtp.arrive(6)
    for each in arrived:
        number = int(each.recipients[0].removeprefix("to").partition("@")[0])
        found = [part.get_payload(decode=True) for part in each.parse().iter_attachments()]
        assert found == [content for _, content in given[number]["attachments"] or ()]


async def test_what_is_wrong_with_one_message_stops_no_other(scene: Any) -> None:
    given = [
        message(0),
        message(1, recipients="nobody"),
        EmailMessageData(["to2@example.com"], "Message 2", text=""),
        message(3, background=False),
        message(4, timeout=5),
        message(5, background=True),
    ]
    receipts = [receipt for _, receipt in sorted((receipt.index or 0, receipt) for receipt in await queue_all(given))]
    errors = [type(receipt.error) for receipt in receipts]
    nothing = type(None)
    assert errors == [nothing, InvalidAddress, nothing, InvalidMessage, InvalidMessage, nothing]
    assert receipts[1].message_id == ""
    assert await waiting() == 3


async def test_an_unknown_argument_raises_after_the_receipts_of_earlier_messages(redis_scene: Any) -> None:
    async def given() -> AsyncIterator[Dict]:
        yield message(0)
        await asyncio.sleep(0.05)  # others wait for the next message, which never comes
        yield message(1, txt="Hello")
        await asyncio.Event().wait()

    receipts: list[Receipt] = []

    async def collect() -> None:
        async for receipt in send_many(given(), background=True):
            receipts.append(receipt)  # noqa: PERF401 - the loop raises

    with pytest.raises(TypeError, match=r"message 1 has unknown arguments: 'txt'"):
        await collect()
    assert [receipt.index for receipt in receipts] == [0]
    assert await waiting() == 1


async def test_before_send_edits_and_cancels_and_labels_travel(redis_scene: Any) -> None:
    def hook(data: EmailMessageData) -> EmailMessageData | Cancel:
        if data.ref == "stop":
            return Cancel("not today")
        data.subject += " (edited)"
        return data

    events: list[MessageEvent] = []
    end = subscribe(events.append)
    with override(EMAIL=redis_scene.email | {"before_send": hook}):
        receipts = await queue_all([message(0, ref="go", tags=["news"]), message(1, ref="stop")])
    end()
    by_index = {receipt.index: receipt for receipt in receipts}
    assert by_index[0].outcome == "accepted"
    assert (by_index[1].outcome, by_index[1].cancelled, by_index[1].mode) == ("cancelled", "not today", "queued")
    assert sorted((event.kind, event.ref, event.tags) for event in events) == [
        ("cancelled", "stop", ()),
        ("queued", "go", ("news",)),
    ]
    assert heads(redis_scene)[0]["subject"] == "Message 0 (edited)"


def heads(scene: Any) -> list[Any]:
    client = scene.broker.client()
    return [json.loads(client.hget(key, "head")) for key in client.keys("dramatiq:mail:job:*")]


async def test_bulk_mail_of_staging_requires_a_worker_that_redirects(redis_scene: Any) -> None:
    with override(EMAIL=redis_scene.email | {"redirect_to": ["team@example.com"]}):
        await queue_all(messages(2))
    assert [head["must"] for head in heads(redis_scene)] == [{"redirect": True}] * 2


async def test_a_transaction_refuses_bulk_mail_and_says_what_to_do(redis_scene: Any) -> None:
    read: list[Dict] = []

    async def refused() -> None:
        async with transaction():
            await queue_all(noting(read))

    with pytest.raises(InvalidMessage, match="call it after the transaction, or in a function given to on_commit"):
        await refused()
    assert read == []
    assert await waiting() == 0


@pytest.mark.parametrize(
    ("tasks", "email", "remedy"),
    [
        ({}, {}, r'set TASKS\["broker"\]'),
        ({"broker": "stub"}, {}, r'set TASKS\["broker"\]'),
        (None, {"backend": "MemoryBackend"}, r'set another EMAIL\["backend"\]'),
        ({"broker": "redis", "broker_url": "redis://127.0.0.1:1/0"}, {}, "does not answer"),
    ],
)
async def test_without_a_broker_nothing_is_read_and_nothing_goes_inline(
    redis_scene: Any, tasks: Dict | None, email: Dict, remedy: str
) -> None:
    read: list[Dict] = []
    with (
        override(TASKS=redis_scene.tasks if tasks is None else tasks, EMAIL=redis_scene.email | email),
        pytest.raises(QueueUnavailable, match=remedy),
    ):
        await queue_all(noting(read))
    assert read == []
    assert redis_scene.smtp.messages == []


async def test_a_broker_that_has_just_died_is_noticed_before_anything_is_read(scene: Any) -> None:
    """It is asked anew, since the last answer may be seconds old."""
    await queue_all(messages(1))
    await asyncio.to_thread(scene.broker.kill)
    read: list[Dict] = []
    with pytest.raises(QueueUnavailable, match="does not answer; nothing was queued"):
        await queue_all(noting(read))
    assert read == []
    await asyncio.to_thread(scene.broker.start)


async def test_a_broker_that_dies_midway_leaves_a_receipt_for_each_message(scene: Any) -> None:
    receipts: list[Receipt] = []

    async def given() -> AsyncIterator[Dict]:
        for each in messages(30):
            if len(receipts) == 10:
                await asyncio.to_thread(scene.broker.kill)
                receipts.append(Receipt("", DeliveryMode.INLINE))  # killed once
            yield each
            while len(receipts) < 10 and each["subject"] == "Message 9":
                await asyncio.sleep(0.01)

    found: list[Receipt] = []
    async for receipt in send_many(given(), background=True):
        found.append(receipt)
        receipts.append(receipt)
    assert len(found) == 30
    errors = {receipt.index: receipt.error for receipt in found}
    assert [errors[index] for index in range(10)] == [None] * 10
    assert {type(errors[index]) for index in range(10, 30)} == {QueueUnavailable}
    assert scene.smtp.messages == []
    await asyncio.to_thread(scene.broker.start)
    await queueing_again()
    assert await waiting() == 10


async def test_a_slow_source_gets_each_receipt_before_it_goes_on(redis_scene: Any) -> None:
    """A batch waits for no further message."""
    taken = asyncio.Event()

    async def given() -> AsyncIterator[Dict]:
        for each in messages(3):
            taken.clear()
            yield each
            await taken.wait()

    count = 0
    async for receipt in send_many(given(), background=True):
        count += bool(receipt)
        taken.set()
    assert count == 3


@pytest.mark.parametrize(("size", "most"), [(0, 600), (700_000, 20)])
async def test_messages_are_read_no_further_than_two_batches(redis_scene: Any, size: int, most: int) -> None:
    read: list[int] = []

    def given() -> Iterator[Dict]:
        attachments = [AttachmentData("large.bin", bytes(size))] if size else None
        for number in range(10_000):
            read.append(number)
            yield message(number, attachments=attachments)

    taken = 0
    async with aclosing(send_many(given(), background=True)) as receipts:
        async for _ in receipts:
            taken += 1
            await asyncio.sleep(0.001)
            assert len(read) - taken <= most
            if taken == (400 if size == 0 else 40):
                break
    assert await waiting() >= taken


async def test_leaving_the_loop_closes_the_source_and_waits_for_the_batch_on_its_way(redis_scene: Any) -> None:
    closed = asyncio.Event()

    async def given() -> AsyncIterator[Dict]:
        try:
            for each in messages(1000):
                yield each
        finally:
            closed.set()

    async with aclosing(send_many(given(), background=True)) as receipts:
        async for _ in receipts:
            break
    assert closed.is_set()
    before = await waiting()
    await asyncio.sleep(0.2)
    assert await waiting() == before >= 1


async def test_progress_counts_up_to_the_total(redis_scene: Any) -> None:
    given = [*messages(300), message(300, recipients="nobody")]
    calls: list[BulkProgress] = []
    await queue_all(given, progress=calls.append)
    assert calls[-1] == BulkProgress(done=301, failed=1, total=301)
    assert [call.done for call in calls] == sorted({call.done for call in calls})
    assert len(calls) < 100, "once for each batch"
    calls.clear()
    await queue_all(iter(given[:2]), progress=calls.append)
    assert calls[-1] == BulkProgress(2, 0, None)


async def test_what_progress_raises_ends_the_run(redis_scene: Any) -> None:
    def failing(_: BulkProgress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await queue_all(messages(1000), progress=failing)
    assert await waiting() < 1000


async def test_the_queue_keeps_scheduled_messages_until_their_time(redis_scene: Any) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    given = [message(0, delay=3600), message(1, send_at=later), message(2, expires_at=later), message(3)]
    assert all(await queue_all(given))
    client = redis_scene.broker.client()
    assert client.zcard("dramatiq:mail:later") == 2
    assert await waiting() == 2


async def test_the_same_message_is_queued_once_and_another_with_its_id_refused(redis_scene: Any) -> None:
    date = datetime(2026, 5, 1, tzinfo=UTC)
    mine = {"headers": {"Message-ID": "<mine@example.com>"}, "date": date}
    given = [message(0, **mine), message(0, **mine), message(0, **mine, html="<p>Other")]
    receipts = [*await queue_all(given), *await queue_all(given)]
    assert [type(receipt.error).__name__ for receipt in receipts] == ["NoneType", "NoneType", "InvalidMessage"] * 2
    assert await waiting() == 1


async def test_redis_without_memory_accepts_no_part_of_a_batch(redis_scene: Any) -> None:
    client = redis_scene.broker.client()
    client.script_load(ADD_MANY)

    async def given() -> AsyncIterator[Dict]:
        await asyncio.to_thread(client.config_set, "maxmemory", 1)
        for each in messages(5):
            yield each

    receipts = await queue_all(given())
    client.config_set("maxmemory", 0)
    assert {type(receipt.error) for receipt in receipts} == {QueueUnavailable}
    assert any("maxmemory" in str(receipt.error) for receipt in receipts)
    assert client.keys("dramatiq:mail:job:*") == []
    assert await waiting() == 0


async def test_the_test_kit_delivers_bulk_mail(redis_scene: Any, mailbox: Mailbox) -> None:
    assert all(await queue_all(messages(3)))
    assert sorted(each.subject for each in mailbox) == ["Message 0", "Message 1", "Message 2"]
    assert await waiting() == 0


@pytest.mark.parametrize("watched", [False, True])
async def test_what_only_the_bytes_show_is_found_in_the_caller(redis_scene: Any, watched: bool) -> None:
    events: list[MessageEvent] = []
    end = subscribe(events.append) if watched else None
    given = [
        message(0, text="\ud800"),
        message(1, html="x" * 70_000),
        message(2, recipients="b\u00fccher@example.com"),
        message(3, text="caf\u00e9 " * 2000),
    ]
    with override(EMAIL=redis_scene.email | {"max_message_bytes": 65_536}):
        receipts = await queue_all(given)
    if end is not None:
        end()
    errors = {receipt.index: str(receipt.error) for receipt in receipts if receipt.error is not None}
    assert errors.keys() == {0, 1}
    assert "text: contains the lone surrogate U+D800" in errors[0]
    assert 'more than EMAIL["max_message_bytes"] (65,536)' in errors[1]
    with redis_scene.worker():
        arrived = await redis_scene.smtp.arrive(2)
    by_recipient = {each.recipients[0]: each for each in arrived}
    assert "SMTPUTF8" in by_recipient["b\u00fccher@example.com"].options
    assert by_recipient["to3@example.com"].parse().get_content().rstrip("\r\n") == "caf\u00e9 " * 2000
    # A listener reads the bytes that are sent.
    queued = {event.message.envelope.recipients[0]: b"".join(event.message.content) for event in events}
    assert queued == ({name: each.content for name, each in by_recipient.items()} if watched else {})
