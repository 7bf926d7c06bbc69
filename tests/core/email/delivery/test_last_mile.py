"""An attempt at a delivery, and the events of it."""

import asyncio
import logging
import time

import pytest
from support.mailers import memory_mailer
from support.prepared import make_outgoing
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import (
    DeliveryMode,
    EmailSettings,
    MessageEvent,
    send_email,
    submit_email,
    subscribe,
)
from openviper.core.email.delivery import using_mailer
from openviper.core.email.delivery.last_mile import attempt_delivery
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.delivery.transport import BackendTransport
from openviper.core.email.queue.job import Progress
from openviper.core.email.queue.retry import QueuePolicy


async def test_events_follow_a_message_to_its_end() -> None:
    mailer = memory_mailer()
    events: list[MessageEvent] = []
    unsubscribe = subscribe(events.append)
    outbox = RequestOutbox()
    with using_mailer(mailer), collecting(outbox):
        receipt = await submit_email("user@example.test", "Hello", text="Hi")
    outbox.flush()
    await mailer.aclose()
    unsubscribe()
    assert [event.kind for event in events] == ["deferred", "sending", "delivered"]
    assert {event.message_id for event in events} == {receipt.message_id}


async def test_a_listener_that_fails_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: MessageEvent) -> None:
        raise LookupError("broken listener")

    unsubscribe = subscribe(broken)
    with using_mailer(memory_mailer()):
        assert await send_email("user@example.test", "Hello", text="Hi") is True
    unsubscribe()
    assert "broken listener" in caplog.text
    assert any(record.levelno == logging.ERROR for record in caplog.records)


@pytest.mark.parametrize(("code", "end"), [(250, "delivered"), (550, "failed")])
async def test_a_listener_that_comes_during_an_attempt_hears_how_it_ends(code: int, end: str) -> None:
    events: list[MessageEvent] = []
    with SmtpServer() as server, override(EMAIL=server.settings(default_sender="shop@example.test")):
        if code == 550:
            server.refuse("user@example.test", code)
        gate = server.hold("MAIL")
        sending = asyncio.create_task(send_email("user@example.test", "Hello", text="Hi", fail_silently=True))
        await gate.reached()
        unsubscribe = subscribe(events.append)
        gate.release()
        assert await sending is (code == 250)
        unsubscribe()
    assert [(event.kind, event.mode, event.attempt) for event in events] == [(end, "inline", 1)]
    assert events[0].seconds is not None


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            ("RCPT", "451 4.2.1 user@example.test is busy"),
            "RecipientsRefused 451: {peer}: RCPT TO: 1 of 1 recipients refused, nothing was sent",
        ),
        (("MAIL", 421), "ConnectionFailed 421: {peer}: MAIL FROM; the server closes the connection"),
        (("body", "drop"), "ConnectionFailed: {peer}: BDAT: the connection was lost; the message may or may not"),
        (None, "ConnectionFailed: {peer}: connecting: Connection refused; correct EMAIL"),
    ],
)
async def test_a_failed_attempt_of_queued_mail_is_logged_with_server_and_step_without_the_servers_words(
    rule: tuple[str, int | str] | None, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A server may repeat an address in its reply."""
    with SmtpServer() as server:
        given = server.settings(allow_partial=True)
        if rule is None:
            given["port"] = 1
        else:
            server.fault(*rule)
        settings = EmailSettings(**given)
        transport = BackendTransport(settings)
        await transport.open()
        message = await make_outgoing("user@example.test")
        progress = Progress(since=time.time())
        await attempt_delivery(message, transport, progress, QueuePolicy(settings), mode=DeliveryMode.QUEUED)
        await transport.aclose()
    peer = f"{settings.host}:{settings.port}"
    assert f"message {message.message_id}: {expected.format(peer=peer)}" in caplog.text
    assert "user@example.test" not in caplog.text
