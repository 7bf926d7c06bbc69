"""Recipients who must not be mailed: left out of each attempt, in every mode, and told apart from refusals."""

import asyncio
import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.brokers import redis_server
from support.patience import PATIENCE
from support.redis import RedisServer
from support.smtpd import SmtpServer
from support.workers import Worker, write_project

from openviper.conf import override
from openviper.core.email import (
    DeliveryMode,
    MessageEvent,
    Receipt,
    SuppressionUnavailable,
    send_email,
    send_many,
    submit_email,
)
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.last_mile import FIRST_ATTEMPT, attempt_delivery
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.message import EmailMessageData, prepare_message
from openviper.core.email.message.serialiser import serialise_message
from openviper.core.email.queue import close_queue
from openviper.core.email.queue.retry import Done, InlinePolicy
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured
from openviper.testing import Mailbox

__all__ = ["redis_server"]

GONE, KEPT = "gone@example.test", "kept@example.test"


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as started:
        yield started


def gone(addresses: list[str], stream: str | None) -> list[str]:
    return [address for address in addresses if address == GONE]


async def gone_async(addresses: list[str], stream: str | None) -> set[str]:
    return {GONE.upper(), "other@example.test"}


def mailer(server: SmtpServer, suppress: object = gone, **settings: Any) -> Mailer:
    given = {"default_sender": "shop@example.test", "suppress": suppress, "retries": 0, **settings}
    return Mailer(EmailSettings(**server.settings(**given)))


async def send(made: Mailer, *recipients: str) -> Receipt:
    with using_mailer(made):
        receipt = await submit_email(list(recipients), "Hello", text="Hi")
    await made.aclose()
    return receipt


@pytest.mark.parametrize("suppress", [gone, gone_async, lambda addresses, stream: gone_async(addresses, stream)])
async def test_a_suppressed_recipient_is_left_out_of_the_envelope(
    server: SmtpServer, suppress: Callable[..., object]
) -> None:
    receipt = await send(mailer(server, suppress), GONE, KEPT)
    assert (receipt.accepted, receipt.refused, receipt.suppressed) == ((KEPT,), {}, (GONE,))
    assert receipt.outcome == "delivered"
    assert server.messages[0].recipients == [KEPT]
    assert server.messages[0].parse()["To"] == f"{GONE}, {KEPT}"  # what was written stays


async def test_if_all_are_suppressed_nothing_is_sent_and_the_receipt_is_true(server: SmtpServer) -> None:
    receipt = await send(mailer(server), GONE)
    assert receipt
    assert (receipt.outcome, receipt.accepted, receipt.suppressed) == ("suppressed", (), (GONE,))
    assert server.connections == 0


async def test_allow_partial_does_not_count_the_suppressed(server: SmtpServer) -> None:
    receipt = await send(mailer(server, allow_partial=False), GONE, KEPT)
    assert receipt.accepted == (KEPT,)


async def test_many_messages_are_asked_for_one_by_one(server: SmtpServer) -> None:
    made = mailer(server)
    with using_mailer(made):
        messages = [EmailMessageData([address], "Hello", text="Hi") for address in (GONE, KEPT, GONE)]
        receipts = {receipt.index: receipt async for receipt in send_many(messages, pipeline=True)}
    await made.aclose()
    assert [receipts[index].outcome for index in range(3)] == ["suppressed", "delivered", "suppressed"]
    assert [message.recipients for message in server.messages] == [[KEPT]]


async def test_deferred_mail_is_asked_for_at_each_attempt(server: SmtpServer) -> None:
    events: list[MessageEvent] = []
    suppressed: set[str] = set()
    made = mailer(server, lambda addresses, stream: list(suppressed), retries=1, listeners=[events.append])
    server.fault("MAIL", 451, nth=1)
    outbox = RequestOutbox()
    with using_mailer(made), collecting(outbox):
        assert (await submit_email([GONE, KEPT], "Hello", text="Hi")).outcome == "accepted"
    outbox.flush()
    await server.until(lambda: server.verbs.count("MAIL") == 1)
    suppressed.add(GONE)
    await made.aclose()
    assert [message.recipients for message in server.messages] == [[KEPT]]
    kinds = [event.kind for event in events]
    assert kinds == ["deferred", "sending", "retrying", "sending", "suppressed", "delivered"]
    assert events[4].refused == (GONE,)
    assert events[5].message.envelope.recipients == (KEPT,)


def failing(addresses: list[str], stream: str | None) -> list[str]:
    raise OSError(f"no database for {addresses[0]}")


def impatient(addresses: list[str], stream: str | None) -> list[str]:
    raise TimeoutError("the database's own limit")


def endless(addresses: list[str], stream: str | None) -> object:
    return asyncio.Event().wait()


@pytest.mark.parametrize(
    ("suppress", "text"),
    [
        (failing, f"raised OSError at {__file__}:"),
        (impatient, "raised TimeoutError"),
        (endless, r"did not return within 0.05 s"),
        (lambda addresses, stream: None, "returned a NoneType; return a list of addresses"),
        (lambda addresses, stream: GONE, "returned a str; return a list of addresses"),
        (lambda addresses, stream: [1], "returned 'int' in its list; return addresses as text"),
    ],
)
async def test_if_nobody_can_say_who_is_suppressed_nobody_is_mailed(
    server: SmtpServer, suppress: object, text: str
) -> None:
    made = mailer(server, suppress, timeout=0.05 if suppress is endless else PATIENCE)
    with pytest.raises(SuppressionUnavailable) as raised:
        await send(made, GONE, KEPT)
    await made.aclose()
    error = raised.value
    assert str(error).startswith('EMAIL["suppress"]: ')
    assert text in str(error)
    assert GONE not in str(error)
    assert error.temporary
    assert str(pickle.loads(pickle.dumps(error))) == str(copy.copy(error)) == str(error)
    assert server.connections == 0


@pytest.mark.parametrize("returned", ["ann@münchen.example", "ANN@XN--MNCHEN-3YA.example", " ann@München.example"])
async def test_a_domain_in_unicode_is_its_ascii_form(server: SmtpServer, returned: str) -> None:
    made = mailer(server, lambda addresses, stream: [returned])
    receipt = await send(made, "ann@münchen.example", KEPT)
    assert receipt.suppressed == ("ann@xn--mnchen-3ya.example",)
    assert receipt.accepted == (KEPT,)


@pytest.mark.parametrize(
    ("stream", "rows", "left_out"),
    [
        (None, {GONE: None}, True),
        ("news", {GONE: None}, True),
        ("news", {GONE: "news"}, True),
        ("resets", {GONE: None}, False),
        ("resets", {GONE: "resets"}, True),
    ],
)
async def test_a_suppression_without_a_stream_stops_all_but_some(
    server: SmtpServer, stream: str | None, rows: Mapping[str, str | None], left_out: bool
) -> None:
    asked: list[str | None] = []

    def suppress(addresses: list[str], of: str | None) -> Mapping[str, str | None]:
        asked.append(of)
        return rows

    made = mailer(server, suppress, always_streams=["resets"])
    data = EmailMessageData([GONE], "Hello", text="Hi", sender="shop@example.test")
    message = await prepare_message(
        data, default_sender=None, auto_submitted=False, max_message_bytes=10**6, inline_css=False
    )
    if stream is not None:
        prepared = message.prepared._replace(must={"stream": stream})
        message = await serialise_message(prepared, max_message_bytes=10**6)
    await made.open()
    decision = await attempt_delivery(message, made.transport, FIRST_ATTEMPT, InlinePolicy(), mode=DeliveryMode.INLINE)
    await made.aclose()
    assert isinstance(decision, Done)
    assert (decision.report.suppressed == (GONE,)) is left_out
    assert asked == [stream]


async def test_the_test_kit_leaves_out_the_suppressed_too(mailbox: Mailbox) -> None:
    with override(EMAIL={"default_sender": "shop@example.test", "suppress": gone}):
        await send_email([GONE, KEPT], "One", text="Hi")
        assert (await submit_email([GONE], "Two", text="Hi")).outcome == "suppressed"
    assert [message.subject for message in mailbox] == ["One"]
    assert mailbox[0].recipients == (KEPT,)


async def test_a_worker_asks_at_each_attempt(tmp_path: Path, redis_server: RedisServer, server: SmtpServer) -> None:
    email = server.settings(default_sender="shop@example.com", suppress="people.gone")
    folder = write_project(tmp_path / "project", tasks=redis_server.tasks(), email=email)
    (folder / "people.py").write_text(f"def gone(addresses, stream):\n    return [{GONE!r}]\n")
    with override(TASKS=redis_server.tasks(), EMAIL={**email, "suppress": gone}):
        try:
            for recipients in ([GONE, KEPT], [GONE]):
                assert (await submit_email(recipients, "Hello", text="Hi")).mode is DeliveryMode.QUEUED
        finally:
            await asyncio.to_thread(close_queue)
    worker = Worker(folder)
    await asyncio.to_thread(worker.start)
    await server.arrive(1)
    await asyncio.to_thread(worker.wait_for, "1 recipient suppressed", times=2)
    assert await asyncio.to_thread(worker.terminate) == 0
    assert [message.recipients for message in server.messages] == [[KEPT]]
    assert redis_server.client().llen("dramatiq:emails") == 0


def test_a_wrong_function_is_told_when_the_mailer_is_made(server: SmtpServer) -> None:
    async def make() -> None:
        mailer(server, "people.no_such")

    with pytest.raises(ImproperlyConfigured, match=r'^EMAIL\["suppress"\]: there is no module'):
        asyncio.run(make())
