"""Staging: no mail reaches a customer, whatever its mode, and whoever reads it sees for whom it was."""

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.brokers import redis_server
from support.patience import PATIENCE
from support.redis import RedisServer
from support.smtpd import SmtpServer
from support.workers import Worker, viperctl, write_project

from openviper.conf import override
from openviper.core.email import DeliveryMode, MessageEvent, Receipt, send_email, send_many, submit_email
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.errors import DeliveryError, RecipientsRefused
from openviper.core.email.message import EmailMessageData, make_link
from openviper.core.email.message.unsubscribe import read_token
from openviper.core.email.queue import close_queue
from openviper.core.email.settings import EmailSettings
from openviper.db import transaction
from openviper.exceptions import ImproperlyConfigured
from openviper.testing import Mailbox

__all__ = ["redis_server"]

TEAM, QA = "team@dev.test", "qa@dev.test"
STAGING = {"default_sender": "shop@example.test", "redirect_to": [TEAM, QA], "redirect_except": ["dev.test"]}


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as started:
        yield started


def mailer(server: SmtpServer, **settings: Any) -> Mailer:
    return Mailer(EmailSettings(**server.settings(**{**STAGING, "retries": 0, **settings})))


async def send(made: Mailer, **message: Any) -> Receipt:
    with using_mailer(made):
        receipt = await submit_email(**{"subject": "Hello", "text": "Hi", "fail_silently": True, **message})
    await made.aclose()
    return receipt


def rcpts(server: SmtpServer) -> set[str]:
    lines = [command.line for command in server.commands if command.verb == "RCPT"]
    return {match[1] for line in lines if (match := re.search(r"<([^>]*)>", line))}


async def test_one_copy_goes_to_the_team_and_says_for_whom_it_was(server: SmtpServer) -> None:
    receipt = await send(
        mailer(server),
        recipients=["ann@example.com", ("Ben", "ben@example.com")],
        cc=["cleo@example.com"],
        bcc=["hidden@example.com"],
        headers={
            "List-Unsubscribe": "<https://shop.example/out>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        },
    )
    (message,) = server.messages
    assert message.recipients == [TEAM, QA]
    parsed = message.parse()
    assert parsed["X-Original-Recipients"] == "ann@example.com, ben@example.com, cleo@example.com"
    assert parsed["To"] == "ann@example.com, Ben <ben@example.com>"
    assert parsed["List-Unsubscribe"] is parsed["List-Unsubscribe-Post"] is None
    assert b"hidden" not in message.content
    assert receipt.accepted == ("ann@example.com", "ben@example.com", "cleo@example.com", "hidden@example.com")


async def test_the_unsubscribe_links_of_a_copy_act_on_nothing(server: SmtpServer) -> None:
    """A tester who follows one must not unsubscribe the customer; an exception's own mail keeps its link."""
    keys = ["k" * 32]
    made = mailer(server, unsubscribe_keys=keys, site_url="https://shop.example")
    messages: list[dict[str, Any]] = [
        {"recipients": address, "subject": "June", "text": "News", "unsubscribe": True, "stream": "news"}
        for address in ("ann@example.com", "eve@dev.test")
    ]
    for news in messages:
        url = make_link(news["recipients"], None, None, "news", True, None, made.settings).url
        news["text"], news["html"] = f"Leave: {url}", f'<a href="{url}">Leave</a>'
    with using_mailer(made):
        assert all([receipt async for receipt in send_many(messages)])
    await made.aclose()
    copy, own = sorted(server.messages, key=lambda message: message.recipients == ["eve@dev.test"])
    assert (copy.recipients, own.recipients) == ([TEAM, QA], ["eve@dev.test"])
    assert copy.parse()["List-Unsubscribe"] is copy.parse()["List-Unsubscribe-Post"] is None
    for message, live in ((copy, False), (own, True)):
        for kind in ("plain", "html"):
            body = message.parse().get_body([kind])
            assert body is not None
            (token,) = re.findall(r"https://shop\.example/unsubscribe/([\w.-]+)", body.get_content())
            assert (read_token(token, keys) is not None) is live


async def test_an_own_header_of_that_name_is_replaced(server: SmtpServer) -> None:
    await send(mailer(server), recipients=["ann@example.com"], headers={"X-Original-Recipients": "mine"})
    assert server.messages[0].parse().get_all("X-Original-Recipients") == ["ann@example.com"]


@pytest.mark.parametrize(("show", "expected"), [(False, "(Bcc only)"), (True, "hidden@example.com")])
async def test_bcc_is_shown_only_on_request(server: SmtpServer, show: bool, expected: str) -> None:
    await send(mailer(server, redirect_bcc=show), recipients=[QA], bcc=["hidden@example.com"])
    copy = next(message for message in server.messages if message.recipients == [TEAM, QA])
    assert copy.parse()["X-Original-Recipients"] == expected
    assert (b"hidden" in copy.content) is show


async def test_exceptions_get_the_message_itself_in_their_own_envelope(server: SmtpServer) -> None:
    made = mailer(server, redirect_except=["dev.test", "Boss@Example.com"])
    receipt = await send(
        made,
        recipients=["ann@example.com", "eve@DEV.test", "boss@example.com", "x@sub.dev.test"],
        headers={"List-Unsubscribe": "<https://shop.example/out>"},
    )
    own, copy = server.messages
    assert own.recipients == ["eve@DEV.test", "boss@example.com"]
    assert own.parse()["X-Original-Recipients"] is None
    assert own.parse()["List-Unsubscribe"] is not None
    assert copy.recipients == [TEAM, QA]
    assert copy.parse()["X-Original-Recipients"] == "ann@example.com, x@sub.dev.test"
    assert set(receipt.accepted) == {"ann@example.com", "eve@DEV.test", "boss@example.com", "x@sub.dev.test"}


@pytest.mark.parametrize(
    ("refused", "accepted"),
    [(TEAM, {"ann@example.com", "eve@dev.test"}), ("eve@dev.test", {"ann@example.com"})],
)
async def test_the_receipt_speaks_of_the_original_recipients(
    server: SmtpServer, refused: str, accepted: set[str]
) -> None:
    server.refuse(refused, 550)
    receipt = await send(mailer(server), recipients=["ann@example.com", "eve@dev.test"])
    assert set(receipt.accepted) == accepted
    assert set(receipt.refused) == {"ann@example.com", "eve@dev.test"} - accepted


async def test_if_the_copy_fails_those_it_was_for_are_refused(server: SmtpServer) -> None:
    server.refuse(TEAM, 450)
    server.refuse(QA, 450)
    receipt = await send(mailer(server), recipients=["ann@example.com", "eve@dev.test"])
    assert receipt.accepted == ("eve@dev.test",)
    assert receipt.refused["ann@example.com"].temporary


async def test_if_nothing_can_be_sent_the_error_speaks_of_the_original_recipients(server: SmtpServer) -> None:
    server.fault("RCPT", 550)
    made = mailer(server)
    with using_mailer(made), pytest.raises(DeliveryError) as raised:
        await send_email(["ann@example.com", "eve@dev.test"], "Hello", text="Hi")
    await made.aclose()
    assert set(raised.value.refused) == {"ann@example.com", "eve@dev.test"}
    server.behave()
    server.fault("RCPT", 550)
    made = mailer(server)
    with using_mailer(made), pytest.raises(RecipientsRefused) as raised:
        await send_email("ann@example.com", "Hello", text="Hi")
    await made.aclose()
    assert raised.value.refused == {}


async def test_a_deferred_retry_sends_the_copy_only_for_those_still_missing(server: SmtpServer) -> None:
    events: list[MessageEvent] = []
    made = mailer(server, retries=1, listeners=[events.append])
    server.refuse("eve@dev.test", 450, nth=1)
    outbox = RequestOutbox()
    with using_mailer(made), collecting(outbox):
        await submit_email(["ann@example.com", "eve@dev.test"], "Hello", text="Hi")
    outbox.flush()
    await made.aclose()
    assert [message.recipients for message in server.messages] == [[TEAM, QA], ["eve@dev.test"]]
    details = [event.detail for event in events if event.kind == "redirected"]
    assert details == [f"to {TEAM}, {QA}, was for ann@example.com"]


async def test_a_thousand_sends_in_every_mode_reach_no_customer(
    tmp_path: Path, redis_server: RedisServer, server: SmtpServer
) -> None:
    email = server.settings(**STAGING)
    folder = write_project(tmp_path / "project", tasks=redis_server.tasks(), email=email)
    made = Mailer(EmailSettings(**email))
    outbox = RequestOutbox()

    def message(mode: str, number: int) -> dict[str, Any]:
        people = [f"{mode}{number}@example.com", "eve@dev.test"]
        return {"recipients": people, "bcc": [f"bcc{number}@example.com"], "subject": f"{mode} {number}", "text": "Hi"}

    with using_mailer(made):
        for number in range(200):
            await send_email(**message("inline", number), background=False)
            with collecting(outbox):
                await send_email(**message("deferred", number))
            async with transaction():
                await send_email(**message("held", number))
        outbox.flush()
        many = [EmailMessageData(**message("many", number)) for number in range(200)]
        assert all([bool(receipt) async for receipt in send_many(many, pipeline=True)])
    await made.aclose()
    with override(TASKS=redis_server.tasks(), EMAIL=email):
        try:
            for number in range(200):
                receipt = await submit_email(**message("queued", number))
                assert receipt.mode is DeliveryMode.QUEUED
        finally:
            await asyncio.to_thread(close_queue)
    worker = Worker(folder)
    await asyncio.to_thread(worker.start)
    messages = await server.arrive(2000)
    assert await asyncio.to_thread(worker.terminate) == 0
    assert rcpts(server) == {TEAM, QA, "eve@dev.test"}
    assert not [each for each in messages if re.search(rb"bcc\d+@example\.com|\nbcc:", each.content.lower())]
    copies = [each for each in messages if each.recipients == [TEAM, QA]]
    assert len(copies) == len({each.parse()["Subject"] for each in copies}) == 1000


async def test_a_worker_without_the_setting_leaves_the_mail_and_says_why(
    tmp_path: Path, redis_server: RedisServer, server: SmtpServer
) -> None:
    email = server.settings(**STAGING)
    plain = {key: value for key, value in email.items() if not key.startswith("redirect")}
    folder = write_project(tmp_path / "project", tasks=redis_server.tasks(), email={**plain, "retry_max_age": 0})
    with override(TASKS=redis_server.tasks(), EMAIL=email):
        try:
            await send_email("ann@example.com", "Hello", text="Hi")
        finally:
            await asyncio.to_thread(close_queue)
    worker = Worker(folder)
    await asyncio.to_thread(worker.start)
    deadline = time.monotonic() + PATIENCE
    while "was not delivered" not in worker.output:
        assert time.monotonic() < deadline, worker.output
        await asyncio.sleep(0.05)
    assert await asyncio.to_thread(worker.terminate) == 0
    assert server.connections == 0
    listed = (await asyncio.to_thread(viperctl, "email", "failed", "list", "--project", folder)).stdout
    shown = await asyncio.to_thread(viperctl, "email", "failed", "show", listed.split()[2], "--project", folder)
    assert 'accepted under EMAIL["redirect_to"]' in shown.stdout


async def test_the_test_kit_shows_the_redirected_copy(mailbox: Mailbox) -> None:
    with override(EMAIL=STAGING):
        await send_email("ann@example.com", "Hello", text="Hi")
    assert mailbox.last.recipients == (TEAM, QA)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"redirect_to": ["no address"]}, 'EMAIL["redirect_to"]'),
        ({"redirect_to": [1]}, 'EMAIL["redirect_to"]'),
        ({"redirect_except": ["two words"]}, 'EMAIL["redirect_except"]'),
    ],
)
def test_a_wrong_address_is_told_at_the_start(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        EmailSettings.load({}, {"default_sender": "shop@example.test", **given})
    assert str(raised.value).startswith(text)


@pytest.mark.parametrize("given", [TEAM, [TEAM], ("Team", TEAM)[1], [("Team", TEAM)]])
def test_one_address_may_stand_alone(given: Any) -> None:
    assert EmailSettings.load({}, {"redirect_to": given}).redirect_to == (TEAM,)
