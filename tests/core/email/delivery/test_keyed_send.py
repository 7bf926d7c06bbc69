"""Idempotency keys in each delivery mode, within one process."""

import asyncio
import io
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import (
    AttachmentData,
    Cancel,
    ConnectionFailed,
    DeliveryError,
    DeliveryTimeout,
    DuplicateKey,
    EmailMessageData,
    EmailSettings,
    InvalidMessage,
    MessageEvent,
    MessageRefused,
    Receipt,
    send_email,
    send_many,
    submit_email,
)
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.checks.run import check_results
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.db.transaction import Record, entered
from openviper.testing import Mailbox

TO = "ana@example.test"
SENDER = {"default_sender": "shop@example.test"}


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as started:
        yield started


@pytest.fixture
def key() -> str:
    """A key that no other test of this process has used."""
    return f"order-{uuid.uuid4()}"


@pytest.fixture
def events() -> list[MessageEvent]:
    return []


@pytest.fixture
async def mailer(server: SmtpServer, events: list[MessageEvent]) -> AsyncIterator[Mailer]:
    settings = server.settings(**SENDER, retries=1, listeners=[events.append])
    made = Mailer(EmailSettings(**settings))
    with using_mailer(made):
        yield made
    await made.aclose()


async def order(key: str | None, text: str = "Thank you.", **given: Any) -> Receipt:
    return await submit_email(given.pop("to", TO), "Your order", text=text, key=key, **given)


@pytest.mark.usefixtures("mailer")
async def test_second_send_returns_the_receipt_of_the_first(
    server: SmtpServer, key: str, events: list[MessageEvent]
) -> None:
    first = await order(key)
    second = await order(key)
    assert (first.duplicate, second.duplicate) == (False, True)
    assert second == first._replace(duplicate=True)
    assert (second.outcome, bool(second)) == ("delivered", True)
    assert len(server.messages) == 1
    last = events[-1]
    assert (last.kind, last.key, last.message_id != first.message_id) == ("duplicate", key, True)
    assert first.message_id in last.detail


@pytest.mark.usefixtures("mailer")
async def test_send_without_a_key_or_with_another_one_is_no_duplicate(server: SmtpServer, key: str) -> None:
    assert [(await order(each)).duplicate for each in (key, None, f"{key}-2", None)] == [False] * 4
    assert len(server.messages) == 4


@pytest.mark.usefixtures("mailer")
async def test_of_concurrent_sends_one_is_delivered_and_the_others_are_in_flight(server: SmtpServer, key: str) -> None:
    gate = server.hold("body")
    sends = [asyncio.create_task(order(key)) for _ in range(10)]
    await gate.reached()
    answers = [await each for each in sends[1:]]
    assert {(each.outcome, each.duplicate, bool(each)) for each in answers} == {("in_flight", True, False)}
    gate.release()
    receipts = await asyncio.gather(*sends)
    assert sorted(each.outcome for each in receipts) == ["delivered", *["in_flight"] * 9]
    assert len(server.messages) == 1
    assert (await order(key)).outcome == "delivered"


@pytest.mark.usefixtures("mailer")
async def test_send_email_is_false_while_the_first_is_in_flight(server: SmtpServer, key: str) -> None:
    gate = server.hold("body")
    first = asyncio.create_task(send_email(TO, "Hi", "Hi", key=key))
    await gate.reached()
    assert await send_email(TO, "Hi", "Hi", key=key) is False
    gate.release()
    assert await first is True
    assert await send_email(TO, "Hi", "Hi", key=key) is True


@pytest.mark.usefixtures("mailer")
async def test_same_key_for_another_message_is_refused(server: SmtpServer, key: str) -> None:
    first = await order(key)
    with pytest.raises(DuplicateKey) as raised:
        await order(key, "Another text.", fail_silently=True)
    assert (raised.value.key, raised.value.message_id) == (key, first.message_id)
    assert "Another" not in str(raised.value)
    assert len(server.messages) == 1


@pytest.mark.usefixtures("mailer")
async def test_final_refusal_frees_the_key(server: SmtpServer, key: str) -> None:
    server.fault("body", 554, nth=1)
    with pytest.raises(MessageRefused):
        await order(key)
    assert (await order(key)).outcome == "delivered"


async def test_server_that_cannot_be_reached_frees_the_key(server: SmtpServer, mailer: Mailer, key: str) -> None:
    server.fault("greeting", 421)
    with pytest.raises(ConnectionFailed):
        await order(key)
    server.behave()
    assert (await order(key)).duplicate is False


@pytest.mark.usefixtures("mailer")
async def test_uncertain_delivery_keeps_the_key_and_is_told_again(server: SmtpServer, key: str) -> None:
    server.fault("body", "drop", nth=1)
    with pytest.raises(DeliveryError) as raised:
        await order(key)
    assert raised.value.uncertain
    with pytest.raises(DeliveryError, match="may have been delivered") as again:
        await order(key)
    assert (again.value.uncertain, again.value.temporary) == (True, False)
    silent = await order(key, fail_silently=True)
    assert (silent.duplicate, silent.outcome, bool(silent)) == (True, "failed", False)
    assert len(server.messages) == 0


@pytest.mark.usefixtures("mailer")
async def test_partly_refused_message_is_done(server: SmtpServer, key: str) -> None:
    server.refuse("gone@example.test", 550)
    first = await order(key, to=[TO, "gone@example.test"])
    second = await order(key, to=["gone@example.test", TO])
    assert (second.accepted, second.refused) == ((TO,), first.refused)
    assert second.duplicate


@pytest.mark.usefixtures("mailer")
async def test_cancelled_send_that_may_have_been_sent_keeps_the_key(server: SmtpServer, key: str) -> None:
    gate = server.hold("body")
    first = asyncio.create_task(order(key))
    await gate.reached()
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    gate.release()
    with pytest.raises(DeliveryError) as raised:
        await order(key)
    assert raised.value.uncertain


@pytest.mark.usefixtures("mailer")
async def test_send_that_is_cancelled_before_anything_was_sent_frees_the_key(server: SmtpServer, key: str) -> None:
    gate = server.hold("greeting")
    first = asyncio.create_task(order(key))
    await gate.reached()
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    gate.release()
    assert (await order(key)).duplicate is False


@pytest.mark.usefixtures("mailer")
async def test_timeout_before_anything_was_sent_frees_the_key(server: SmtpServer, key: str) -> None:
    gate = server.hold("greeting")
    with pytest.raises(DeliveryTimeout):
        await order(key, timeout=0.2)
    gate.release()
    assert (await order(key)).duplicate is False


async def test_key_is_free_after_its_ttl(server: SmtpServer, key: str) -> None:
    made = Mailer(EmailSettings(**server.settings(**SENDER, key_ttl=0.2)))
    with using_mailer(made):
        await order(key)
        assert (await order(key)).duplicate
        await asyncio.sleep(0.4)
        assert (await order(key)).duplicate is False
    await made.aclose()


async def test_deferred_send_has_the_key_from_the_call_on(
    server: SmtpServer, mailer: Mailer, key: str, events: list[MessageEvent]
) -> None:
    outbox = RequestOutbox()
    with collecting(outbox):
        first = await order(key)
        second = await order(key)
    assert (first.mode, first.duplicate) == ("deferred", False)
    assert (second.message_id, second.outcome, second.duplicate) == (first.message_id, "in_flight", True)
    server.fault("MAIL", 451, nth=1)
    for delivery in outbox.flush():
        mailer.dispatcher.retry_now(first.message_id)
        await delivery.done
    assert len(server.messages) == 1
    third = await order(key)
    assert (third.mode, third.outcome, third.duplicate) == ("deferred", "accepted", True)
    assert [event.kind for event in events].count("duplicate") == 2


async def test_deferred_message_that_is_given_up_frees_the_key(server: SmtpServer, mailer: Mailer, key: str) -> None:
    server.fault("MAIL", 550, nth=1)
    outbox = RequestOutbox()
    with collecting(outbox):
        await order(key)
    for delivery in outbox.flush():
        await delivery.done
    assert (await order(key)).outcome == "delivered"


async def test_discarded_message_frees_the_key(server: SmtpServer, mailer: Mailer, key: str) -> None:
    outbox = RequestOutbox()
    with collecting(outbox):
        await order(key)
    outbox.discard("the request failed")
    assert (await order(key)).duplicate is False
    assert len(server.messages) == 1


async def test_shutdown_frees_the_key_of_what_was_not_sent_and_keeps_that_of_what_may_have_been(
    server: SmtpServer, key: str
) -> None:
    gate = server.hold("body")
    made = Mailer(EmailSettings(**server.settings(**SENDER, pool_size=1, shutdown_timeout=0.2)))
    outbox = RequestOutbox()
    with using_mailer(made), collecting(outbox):
        await order(f"{key}-sending")
        await order(f"{key}-waiting")
    outbox.flush()
    await gate.reached()
    await made.aclose()
    gate.release()
    again = Mailer(EmailSettings(**server.settings(**SENDER)))
    with using_mailer(again):
        assert (await order(f"{key}-waiting")).duplicate is False
        with pytest.raises(DeliveryError) as raised:
            await order(f"{key}-sending")
    await again.aclose()
    assert raised.value.uncertain


@pytest.mark.usefixtures("mailer")
async def test_rollback_never_claimed_the_key(server: SmtpServer, key: str) -> None:
    record = Record()
    with entered(record):
        receipt = await order(key)
        assert (receipt.mode, receipt.duplicate) == ("held", None)
    record.discard()
    assert (await order(key)).duplicate is False
    assert len(server.messages) == 1


async def commit(record: Record) -> None:
    for held in record.commit():
        waiting = held.on_commit()
        assert waiting is not None
        await waiting


@pytest.mark.usefixtures("mailer")
async def test_duplicate_that_is_found_after_the_commit_is_dropped_with_one_event(
    server: SmtpServer, key: str, events: list[MessageEvent]
) -> None:
    record = Record()
    with entered(record):
        first, second = await order(key), await order(key)
    await commit(record)
    assert len(server.messages) == 1
    of_second = [event.kind for event in events if event.message_id == second.message_id]
    assert of_second == ["held", "duplicate"]
    assert first.message_id in events[-1].detail


@pytest.mark.usefixtures("mailer")
async def test_key_of_another_message_that_is_found_after_the_commit_is_logged_with_both_ids(
    server: SmtpServer, key: str, events: list[MessageEvent], caplog: pytest.LogCaptureFixture
) -> None:
    first = await order(key)
    record = Record()
    with entered(record):
        second = await order(key, "Another text.")
    await commit(record)
    assert len(server.messages) == 1
    (line,) = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    assert first.message_id in line
    assert second.message_id in line
    assert [event.kind for event in events if event.message_id == second.message_id] == ["held", "failed"]


@pytest.mark.usefixtures("mailer")
async def test_cancelled_message_never_claimed_the_key(server: SmtpServer, key: str) -> None:
    reasons = ["on holiday"]

    def hook(data: EmailMessageData) -> object:
        assert data.key == key
        data.subject = f"[shop] {data.subject}"
        return Cancel(reasons.pop()) if reasons else data

    made = Mailer(EmailSettings(**server.settings(**SENDER, before_send=hook)))
    with using_mailer(made):
        assert (await order(key)).outcome == "cancelled"
        assert (await order(key)).duplicate is False
        assert (await order(key)).duplicate
    await made.aclose()


@pytest.mark.usefixtures("mailer")
async def test_what_before_send_makes_of_a_message_does_not_count(server: SmtpServer, key: str) -> None:
    numbers = iter(range(9))

    def hook(data: EmailMessageData) -> EmailMessageData:
        data.text = f"{data.text} #{next(numbers)}"
        return data

    made = Mailer(EmailSettings(**server.settings(**SENDER, before_send=hook)))
    with using_mailer(made):
        await order(key)
        assert (await order(key)).duplicate
    await made.aclose()


@pytest.mark.usefixtures("mailer")
async def test_run_of_many_that_is_started_again_sends_each_once(server: SmtpServer, key: str) -> None:
    messages: list[EmailMessageData | dict[str, Any]] = [
        EmailMessageData(TO, "News", text="Hi", key=f"{key}-0"),
        {"recipients": TO, "subject": "News", "text": "Hi", "key": f"{key}-1"},
        {"recipients": TO, "subject": "News", "text": "Hi", "key": f"{key}-2"},
    ]
    async for _ in send_many(messages[:2]):
        pass
    again = {each.index: each async for each in send_many(messages, pipeline=True)}
    assert [again[index].duplicate for index in range(3)] == [True, True, False]
    assert len(server.messages) == 3
    changed = {"recipients": TO, "subject": "News", "text": "Changed", "key": f"{key}-2"}
    (refused,) = [each async for each in send_many([changed])]
    assert isinstance(refused.error, DuplicateKey)


@pytest.mark.parametrize("wrong", ["", 7, "x" * 201, "a\nb", b"order-7"])
async def test_key_that_is_none_is_refused(mailbox: Mailbox, wrong: Any) -> None:
    with override(EMAIL=SENDER), pytest.raises(InvalidMessage, match=r"^key: "):
        await order(wrong)


class Colour(Enum):
    RED = "red"


@dataclass
class Item:
    name: str
    price: Decimal


class Opaque:
    pass


def given(**changed: Any) -> dict[str, Any]:
    values = {
        "recipients": ["a@example.test", "B <b@example.test>"],
        "subject": "Hello",
        "text": "Hi",
        "headers": {"X-Campaign": "7", "Message-ID": f"<{uuid.uuid4()}@example.test>"},
        "attachments": [("a.txt", b"one"), AttachmentData("b.txt", b"two", "text/plain")],
    }
    return {**values, **changed}


SAME: list[dict[str, Any]] = [
    given(),
    given(recipients=("B <b@example.test>", "a@example.test")),
    given(recipients=(each for each in ("a@example.test", "B <b@example.test>"))),
    given(attachments=iter([("a.txt", b"one"), AttachmentData("b.txt", b"two", "text/plain")])),
    given(date=datetime(2026, 11, 29, tzinfo=UTC)),
    given(headers={"x-campaign": "7"}),
]
OTHER: list[dict[str, Any]] = [
    given(recipients="a@example.test"),
    given(cc="c@example.test"),
    given(bcc="c@example.test"),
    given(subject="Hello!"),
    given(text="Hi!"),
    given(html="<p>Hi</p>"),
    given(sender="other@example.test"),
    given(headers={"X-Campaign": "8"}),
    given(attachments=[("a.txt", b"ONE"), AttachmentData("b.txt", b"two", "text/plain")]),
    given(attachments=[("a.txt", b"one")]),
    given(attachments=[("a.txt", b"one"), AttachmentData("c.txt", b"two", "text/plain")]),
]


@pytest.mark.parametrize("second", SAME)
async def test_the_same_message_is_recognised(mailbox: Mailbox, key: str, second: dict[str, Any]) -> None:
    with override(EMAIL=SENDER):
        await submit_email(**given(), key=key)
        assert (await submit_email(**second, key=key)).duplicate
    assert len(mailbox) == 1
    assert len(mailbox.last.attachments) == 2


@pytest.mark.parametrize("second", OTHER)
async def test_another_message_is_recognised(mailbox: Mailbox, key: str, second: dict[str, Any]) -> None:
    with override(EMAIL=SENDER):
        await submit_email(**given(), key=key)
        with pytest.raises(DuplicateKey):
            await submit_email(**second, key=key)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"n": 1}, {"n": 1}, True),
        ({"a": 1, "b": [2, 3]}, {"b": (2, 3), "a": 1}, True),
        ({"tags": {"x", "y"}}, {"tags": {"y", "x"}}, True),
        ({"item": Item("Tea", Decimal("1.50"))}, {"item": Item("Tea", Decimal("1.50"))}, True),
        ({"user": Opaque()}, {"user": Opaque()}, True),
        ({"n": 1}, {"n": 2}, False),
        ({"n": 1}, {"n": "1"}, False),
        ({"day": date(2026, 1, 1)}, {"day": date(2026, 1, 2)}, False),
        ({"item": Item("Tea", Decimal("1.50"))}, {"item": Item("Tea", Decimal("1.60"))}, False),
        ({"colour": Colour.RED}, {"colour": "red"}, False),
        ({"user": Opaque()}, {"user": Item("Tea", Decimal(1))}, False),
    ],
)
async def test_context_of_a_template_counts_not_what_is_made_of_it(
    mailbox: Mailbox, key: str, tmp_path: Path, first: dict[str, Any], second: dict[str, Any], same: bool
) -> None:
    template = tmp_path / "order.txt"
    template.write_text("Thank you.")
    with override(EMAIL=SENDER, TEMPLATES_DIR=str(tmp_path)):
        await submit_email(TO, "Order", template="order.txt", context=first, key=key)
        template.write_text("Many thanks.")
        if same:
            assert (await submit_email(TO, "Order", template="order.txt", context=second, key=key)).duplicate
        else:
            with pytest.raises(DuplicateKey):
                await submit_email(TO, "Order", template="order.txt", context=second, key=key)


async def test_context_that_contains_itself_has_a_fingerprint(mailbox: Mailbox, key: str, tmp_path: Path) -> None:
    (tmp_path / "order.txt").write_text("Thank you.")
    context: dict[str, Any] = {"name": "Ana"}
    context["itself"] = context
    with override(EMAIL=SENDER, TEMPLATES_DIR=str(tmp_path)):
        assert (await submit_email(TO, "Order", template="order.txt", context=context, key=key)).duplicate is False
        assert (await submit_email(TO, "Order", template="order.txt", context=context, key=key)).duplicate


async def test_stream_counts_by_its_type_and_is_still_attached(mailbox: Mailbox, key: str) -> None:
    with override(EMAIL=SENDER):
        await order(key, attachments=[("a.txt", io.BytesIO(b"one"))])
        assert (await order(key, attachments=[("a.txt", io.BytesIO(b"two"))])).duplicate
    assert mailbox.last.attachments[0].content == b"one"


async def test_duplicate_is_shown_to_a_test(mailbox: Mailbox, key: str) -> None:
    with override(EMAIL=SENDER):
        await order(key)
        await order(key)
        mailbox.assert_sent(key=key, count=1)
        mailbox.assert_not_sent(key=f"{key}-2")
        ((message, reason),) = mailbox.duplicates
        assert (message.key, mailbox.last.message_id in reason) == (key, True)
        mailbox.clear()
        await order(key)
    mailbox.assert_not_sent()
    assert len(mailbox.duplicates) == 1


@pytest.mark.parametrize(
    ("tasks", "backend", "words"),
    [
        ({"broker": "redis"}, {}, "shared by all processes through redis at localhost:6379"),
        ({"broker": "rabbitmq"}, {}, "kept in this process only; set TASKS"),
        ({}, {}, "kept in this process only; set TASKS"),
        ({"broker": "redis"}, {"backend": "MemoryBackend"}, "kept in this process only, as its mail is"),
    ],
)
async def test_check_says_who_shares_keys(tasks: dict[str, Any], backend: dict[str, Any], words: str) -> None:
    with override(TASKS=tasks, EMAIL={**SENDER, "port": 1, **backend}):
        found = {
            each.check: each async for each in check_results(EmailSettings.from_settings(), None, 0.2, module=None)
        }
    assert found["keys"].found.startswith(words)
    assert found["keys"].status == "ok"
