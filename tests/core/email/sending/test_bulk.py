"""send_many: a receipt for each message, bounded memory, and nothing left behind when the loop is left."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.patience import PATIENCE
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import (
    ConnectionFailed,
    DeliveryMode,
    EmailMessageData,
    InvalidAddress,
    InvalidMessage,
    MessageEvent,
    Receipt,
    RecipientsRefused,
    TemplateFailed,
    send_many,
    subscribe,
)
from openviper.core.email.backends import SMTPBackend
from openviper.core.email.backends.memory import MemoryBackend
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.settings import EmailSettings
from openviper.db.transaction import Record, entered
from openviper.exceptions import ImproperlyConfigured


def message(number: int = 0, **more: Any) -> dict[str, Any]:
    return {"recipients": f"to{number}@example.test", "subject": f"Message {number}", "text": "Hello"} | more


def messages(count: int) -> Iterator[dict[str, Any]]:
    return (message(number) for number in range(count))


@pytest.fixture
async def mailer(tmp_path: Path) -> AsyncIterator[Mailer]:
    (tmp_path / "hello.txt").write_text("Hello {{ name }}")
    with override(TEMPLATES_DIR=tmp_path):
        mailer = Mailer(EmailSettings(backend="MemoryBackend", default_sender="Shop <shop@example.test>"))
    with using_mailer(mailer):
        yield mailer
    await mailer.aclose()


def sent(mailer: Mailer) -> list[str]:
    assert isinstance(mailer.backend, MemoryBackend)
    return [one.prepared.subject for one in mailer.backend.messages]


class Serving:
    """A mailer for an SMTP server of the test."""

    def __init__(self, server: SmtpServer, **more: Any) -> None:
        values = {"default_sender": "shop@example.test"} | server.settings(**more)
        self._mailer = Mailer(EmailSettings(**values))
        self._using = using_mailer(self._mailer)

    async def __aenter__(self) -> SMTPBackend:
        self._using.__enter__()
        assert isinstance(self._mailer.backend, SMTPBackend)
        return self._mailer.backend

    async def __aexit__(self, *ended: object) -> None:
        self._using.__exit__(None, None, None)
        await self._mailer.aclose()


@pytest.mark.parametrize("pipeline", [False, True])
async def test_a_receipt_tells_who_may_have_a_message_of_several_envelopes(pipeline: bool) -> None:
    people = [f"r{number}@example.test" for number in range(4)]
    with SmtpServer() as server:
        server.fault("body", "drop", nth=2)
        async with Serving(server, max_recipients_per_message=2):
            (receipt,) = [one async for one in send_many([message(recipients=people)], pipeline=pipeline)]
            assert receipt
            assert list(receipt.accepted) == people[:2]
            assert {who: why.uncertain for who, why in receipt.refused.items()} == dict.fromkeys(people[2:], True)
        server.behave()
        server.fault("body", "drop", nth=1)
        async with Serving(server, max_recipients_per_message=2):
            (receipt,) = [one async for one in send_many([message(recipients=people)], pipeline=pipeline)]
            assert isinstance(receipt.error, ConnectionFailed)
            assert [who for who, why in receipt.refused.items() if why.uncertain] == people[:2]


async def at_rest() -> None:
    """What is ready to run has run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Connections that were being opened for nobody may still come, and closed ones say QUIT."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


# What comes out


@pytest.mark.parametrize("pipeline", [False, True])
async def test_every_message_gets_a_receipt_with_its_place(mailer: Mailer, pipeline: bool) -> None:
    receipts = [receipt async for receipt in send_many(messages(50), pipeline=pipeline)]
    assert sorted(receipt.index for receipt in receipts if receipt.index is not None) == list(range(50))
    assert all(receipt and receipt.mode is DeliveryMode.INLINE and receipt.message_id for receipt in receipts)
    assert sorted(sent(mailer)) == sorted(f"Message {number}" for number in range(50))


async def test_css_is_inlined_in_every_form_of_message() -> None:
    mailer = Mailer(EmailSettings(backend="MemoryBackend", default_sender="a@example.test", inline_css=True))
    html = "<style>p{color:red}</style><p>Hello</p>"
    data = EmailMessageData("to@example.test", "Data", html=html)
    with using_mailer(mailer):
        assert all([bool(receipt) async for receipt in send_many([message(html=html), data])])
        assert isinstance(mailer.backend, MemoryBackend)
        inlined = ['<p style="color: red;">' in (one.prepared.html or "") for one in mailer.backend.messages]
        assert inlined == [True, True]
    await mailer.aclose()
    assert data.html == html


async def test_data_and_dicts_come_from_an_async_iterable_too(mailer: Mailer) -> None:
    async def rows() -> AsyncIterator[EmailMessageData | dict[str, Any]]:
        yield message(1, template="hello.txt", context={"name": "Alice"}, text=None)
        await asyncio.sleep(0)
        yield EmailMessageData("to@example.test", "Message 2", html="<p>Hello</p>")

    receipts = [receipt async for receipt in send_many(rows())]
    assert [bool(receipt) for receipt in receipts] == [True, True]
    assert sorted(sent(mailer)) == ["Message 1", "Message 2"]
    assert isinstance(mailer.backend, MemoryBackend)
    assert "Hello Alice" in [one.prepared.text for one in mailer.backend.messages]


@pytest.mark.parametrize("kind", ["dict", "data"])
async def test_a_generator_may_fill_the_same_object_for_each_message(mailer: Mailer, kind: str) -> None:
    def rows() -> Iterator[EmailMessageData | dict[str, Any]]:
        to: list[str] = []
        context = {"name": ""}
        fields = {"recipients": to, "subject": "", "template": "hello.txt", "context": context}
        data = EmailMessageData(to, "")
        for number in range(10):
            to[:] = [f"to{number}@example.test"]
            context["name"] = fields["subject"] = data.subject = data.text = f"Customer {number}"
            yield fields if kind == "dict" else data

    receipts = [receipt async for receipt in send_many(rows())]
    assert all(receipts)
    assert isinstance(mailer.backend, MemoryBackend)
    prepared = sorted((one.prepared for one in mailer.backend.messages), key=lambda one: one.subject)
    assert [one.subject for one in prepared] == [f"Customer {number}" for number in range(10)]
    assert [one.recipients for one in prepared] == [(f"to{number}@example.test",) for number in range(10)]
    assert all(one.subject in (one.text or "") for one in prepared)


async def test_nothing_gives_nothing(mailer: Mailer) -> None:
    assert [receipt async for receipt in send_many([])] == []


async def test_what_is_not_valid_is_a_receipt_and_the_others_go_on(mailer: Mailer) -> None:
    wrong = [
        (message(recipients="nobody"), InvalidAddress),
        (message(template="missing.txt", text=None), TemplateFailed),
        (message(background=True), InvalidMessage),
        (message(delay=60), InvalidMessage),
        (message(expires_at=datetime.now(UTC) - timedelta(hours=1)), InvalidMessage),
    ]
    receipts = {receipt.index: receipt async for receipt in send_many([*(one for one, _ in wrong), message(9)])}
    for index, (_, kind) in enumerate(wrong):
        assert type(receipts[index].error) is kind
        assert receipts[index].message_id == ""
    assert receipts[5]
    assert sent(mailer) == ["Message 9"]


async def test_what_means_now_or_is_about_raising_is_taken(mailer: Mailer) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    options: dict[str, Any] = {
        "fail_silently": False,
        "background": False,
        "send_at": None,
        "delay": 0,
        "expires_at": later,
    }
    (receipt,) = [receipt async for receipt in send_many([message(**options)])]
    assert receipt


@pytest.mark.parametrize("wrong", [message(recipient="a@example.test"), {"subject": "Hello"}, "a@example.test", None])
async def test_a_programming_error_raises_after_the_receipts_of_those_before(mailer: Mailer, wrong: Any) -> None:
    receipts: list[Receipt] = []
    with pytest.raises(TypeError, match=r"send_many\(\): message 1 (has|must)"):  # noqa: PT012
        async for receipt in send_many([message(0), wrong, *messages(100)]):
            receipts.append(receipt)  # noqa: PERF401 - those before the error are kept
    assert receipts[0].index == 0
    assert len(receipts) < 20


async def test_a_missing_setting_raises() -> None:
    mailer = Mailer(EmailSettings(backend="MemoryBackend"))
    with using_mailer(mailer), pytest.raises(ImproperlyConfigured, match="default_sender"):
        _ = [receipt async for receipt in send_many(messages(3))]
    await mailer.aclose()


async def test_an_error_of_the_iterable_raises_after_the_receipts(mailer: Mailer) -> None:
    async def rows() -> AsyncIterator[dict[str, Any]]:
        for one in messages(7):
            yield one
        raise LookupError("the database is gone")

    receipts: list[Receipt] = []
    with pytest.raises(LookupError, match="the database is gone"):  # noqa: PT012
        async for receipt in send_many(rows()):
            receipts.append(receipt)  # noqa: PERF401
    assert sorted(receipt.index or 0 for receipt in receipts) == list(range(7))


async def test_it_is_inline_in_a_request_and_inside_a_transaction(mailer: Mailer) -> None:
    with collecting(RequestOutbox()), entered(Record()):
        receipts = [receipt async for receipt in send_many(messages(2))]
    assert [receipt.mode for receipt in receipts] == [DeliveryMode.INLINE, DeliveryMode.INLINE]
    assert len(sent(mailer)) == 2


# Delivery


async def test_refused_ones_are_receipts_with_the_servers_answer() -> None:
    events: list[MessageEvent] = []
    unsubscribe = subscribe(events.append)
    with SmtpServer() as server:
        server.refuse("to3@example.test", 550)
        async with Serving(server):
            receipts = {receipt.index: receipt async for receipt in send_many(messages(8))}
    unsubscribe()
    assert [index for index, receipt in receipts.items() if not receipt] == [3]
    error = receipts[3].error
    assert isinstance(error, RecipientsRefused)
    assert error.refused["to3@example.test"].code == 550
    assert error.__traceback__ is None  # its frames would keep the message in memory
    assert receipts[3].message_id
    assert [event.kind for event in events if event.message_id == receipts[3].message_id] == ["sending", "failed"]
    assert sum(event.kind == "delivered" for event in events) == 7
    assert len(server.messages) == 7


async def test_without_a_server_every_message_fails_by_itself() -> None:
    with SmtpServer() as server:
        server.stop()
        async with Serving(server):
            receipts = [receipt async for receipt in send_many(messages(30))]
    assert len(receipts) == 30
    assert all(isinstance(receipt.error, ConnectionFailed) for receipt in receipts)


async def test_all_connections_work_at_once() -> None:
    with SmtpServer() as server:
        gate = server.hold("body")
        async with Serving(server, pool_size=4), aclosing(send_many(messages(30))) as receipts:
            first = asyncio.ensure_future(anext(receipts))
            await server.seen("body", 4)
            gate.release()
            await first
            assert len([receipt async for receipt in receipts]) == 29
    assert server.connections == 4
    assert len(server.messages) == 30


# Bounds


async def test_the_iterable_is_read_only_as_far_as_receipts_are_taken(mailer: Mailer) -> None:
    read = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal read
        while True:
            read += 1
            yield message(read)

    window = 2 * mailer.settings.pool_size
    taken = 0
    async with aclosing(send_many(endless())) as receipts:
        async for _ in receipts:
            taken += 1
            await at_rest()
            assert taken <= read <= taken + window
            if taken == 100:
                break


@pytest.mark.parametrize(("size", "most"), [(1_000, 40), (100_000, 8), (400_000, 5)])
async def test_large_messages_bound_what_is_read_ahead_to_be_overlapped(size: int, most: int) -> None:
    """40 messages, 512 kB, and never more than two whose size is not known yet."""
    read = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal read
        while True:
            read += 1
            yield message(read, text="x" * 70 + "\n" + "large " * (size // 6))

    with SmtpServer() as server:
        gate = server.hold("body")
        async with Serving(server, pool_size=1), aclosing(send_many(endless(), pipeline=True)) as receipts:
            first = asyncio.ensure_future(anext(receipts))
            await server.seen("body")
            await until(lambda: read >= most // 2)
            await asyncio.sleep(0.1)
            assert read <= most
            gate.release()
            await first


# Leaving early


@pytest.mark.parametrize("pipeline", [False, True])
async def test_leaving_early_cancels_what_is_not_sent_and_leaves_nothing_behind(pipeline: bool) -> None:
    closed = False

    async def rows() -> AsyncIterator[dict[str, Any]]:
        nonlocal closed
        try:
            for one in messages(10_000):
                yield one
        finally:
            closed = True

    with SmtpServer() as server:
        async with Serving(server, pool_size=2) as backend:
            before = others()
            async with aclosing(send_many(rows(), pipeline=pipeline)) as receipts:
                async for _ in receipts:
                    break
            assert closed
            await until(lambda: others() == before)
            # What is half used is closed, and the pool goes on.
            assert all([receipt async for receipt in send_many(messages(20), pipeline=pipeline)])
            assert backend.stats is not None
            assert backend.stats.open == backend.stats.idle <= 2
    assert len(server.messages) < 2_000


@pytest.mark.parametrize("pipeline", [False, True])
async def test_a_cancelled_loop_leaves_nothing_behind(pipeline: bool) -> None:
    async def consume() -> None:
        async for _ in send_many(messages(100), pipeline=pipeline):
            pass

    with SmtpServer() as server:
        gate = server.hold("body")
        async with Serving(server, pool_size=2) as backend:
            before = others()
            consumer = asyncio.create_task(consume())
            await server.seen("body")
            consumer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await consumer
            await until(lambda: others() == before)
            assert backend.stats is not None
            assert backend.stats.open == backend.stats.idle
            assert backend.stats.waiting == 0
            gate.release()


async def test_a_plain_break_stops_sending_too(mailer: Mailer) -> None:
    before = others()
    async for _ in send_many(messages(1000)):
        break
    await at_rest()
    assert others() == before
    assert len(sent(mailer)) < 100


async def test_a_source_that_is_cancelled_from_outside_is_not_taken_for_its_end(mailer: Mailer) -> None:
    async def rows() -> AsyncIterator[dict[str, Any]]:
        yield message(0)
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        _ = [receipt async for receipt in send_many(rows())]
