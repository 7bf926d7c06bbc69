"""``timeout=`` of one call: when it ends, and what the error knows of the message."""

import asyncio
import pickle
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
from support.patience import PATIENCE
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import (
    DeliveryMode,
    DeliveryReport,
    DeliveryTimeout,
    EmailBackend,
    InvalidMessage,
    MessageEvent,
    send_email,
    send_email_sync,
    send_many,
    submit_email,
    subscribe,
)
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.message import OutgoingMessage

SHORT = 0.3
ENOUGH = 2.0  # to get as far as the backend on a busy machine


class Slow(EmailBackend):
    """A backend that never ends, and does not say how far it is."""

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        await asyncio.sleep(PATIENCE)
        return DeliveryReport(message.envelope.recipients)


@pytest.fixture
def smtpd() -> Iterator[SmtpServer]:
    with SmtpServer() as server, override(EMAIL=server.settings(default_sender="shop@example.com")):
        yield server


async def late(timeout: float = SHORT, **arguments: Any) -> DeliveryTimeout:
    with pytest.raises(DeliveryTimeout) as caught:
        await send_email("a@example.com", "Hello", text="Hi", timeout=timeout, **arguments)
    assert caught.value.temporary
    return caught.value


async def test_a_message_that_is_delivered_in_time_is_delivered(smtpd: SmtpServer) -> None:
    assert await send_email("a@example.com", "Hello", text="Hi", timeout=PATIENCE)
    assert await send_email("a@example.com", "Hello", text="Hi", timeout=timedelta(seconds=PATIENCE))
    assert len(await smtpd.arrive(2)) == 2


@pytest.mark.parametrize("verb", ["EHLO", "MAIL", "RCPT"])
async def test_before_the_content_is_complete_nothing_was_sent(smtpd: SmtpServer, verb: str) -> None:
    smtpd.capabilities = ()
    gate = smtpd.hold(verb)
    error = await late()
    assert not error.uncertain
    assert str(error) == "timeout: 0.3 s have passed; nothing was sent"
    gate.release()
    assert smtpd.messages == []


async def test_after_the_content_the_outcome_is_uncertain(smtpd: SmtpServer) -> None:
    gate = smtpd.hold("body")
    error = await late(ENOUGH)
    assert error.uncertain
    assert str(error) == "timeout: 2 s have passed; the message may have been accepted anyway"
    gate.release()
    assert pickle.loads(pickle.dumps(error)).uncertain


async def test_a_backend_that_says_nothing_of_its_progress_leaves_it_uncertain() -> None:
    with override(EMAIL={"backend": f"{__name__}.Slow", "default_sender": "shop@example.com"}):
        assert (await late(ENOUGH)).uncertain


async def test_loading_attachments_counts(smtpd: SmtpServer) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(PATIENCE)

    error = await late(attachments=[("a.bin", never())])
    assert not error.uncertain
    receipt = await submit_email(
        "a@example.com", "Hello", text="Hi", timeout=SHORT, attachments=[("a.bin", never())], fail_silently=True
    )
    assert not receipt
    assert isinstance(receipt.error, DeliveryTimeout)
    assert receipt.message_id == ""
    assert smtpd.verbs == []


async def test_a_silent_failure_is_told_by_the_receipt(smtpd: SmtpServer) -> None:
    smtpd.capabilities = ()
    gate = smtpd.hold("MAIL")
    receipt = await submit_email("a@example.com", "Hello", text="Hi", timeout=SHORT, fail_silently=True)
    gate.release()
    assert not receipt
    assert isinstance(receipt.error, DeliveryTimeout)
    assert (receipt.mode, receipt.error.uncertain) == (DeliveryMode.INLINE, False)


async def test_a_deadline_before_mail_is_open_is_silent_as_well(smtpd: SmtpServer) -> None:
    receipt = await submit_email("a@example.com", "Hello", text="Hi", timeout=1e-9, fail_silently=True)
    assert isinstance(receipt.error, DeliveryTimeout)
    assert (receipt.message_id, receipt.error.uncertain, smtpd.connections) == ("", False, 0)
    with pytest.raises(DeliveryTimeout):
        await submit_email("a@example.com", "Hello", text="Hi", timeout=1e-9)


async def test_a_deadline_before_mail_is_open_follows_the_setting(smtpd: SmtpServer) -> None:
    email = smtpd.settings(default_sender="shop@example.com", fail_silently=True)
    with override(EMAIL=email):
        receipt = await submit_email("a@example.com", "Hello", text="Hi", timeout=1e-9)
        assert isinstance(receipt.error, DeliveryTimeout)
        with pytest.raises(DeliveryTimeout):
            await submit_email("a@example.com", "Hello", text="Hi", timeout=1e-9, fail_silently=False)
    assert smtpd.connections == 0


async def test_a_late_message_ends_as_failed_for_listeners(smtpd: SmtpServer) -> None:
    events: list[MessageEvent] = []
    unsubscribe = subscribe(events.append)
    gate = smtpd.hold("EHLO")
    try:
        await late()
    finally:
        unsubscribe()
        gate.release()
    assert [event.kind for event in events] == ["sending", "failed"]


async def test_deferred_mail_is_accepted_at_once_whatever_the_server_does(smtpd: SmtpServer) -> None:
    gate = smtpd.hold("EHLO")
    outbox = RequestOutbox()
    with collecting(outbox):
        receipt = await submit_email("a@example.com", "Hello", text="Hi", timeout=SHORT)
    assert receipt.mode is DeliveryMode.DEFERRED
    gate.release()
    outbox.flush()
    assert len(await smtpd.arrive(1)) == 1


def test_the_sync_twin_is_limited_as_well(smtpd: SmtpServer) -> None:
    gate = smtpd.hold("EHLO")
    with pytest.raises(DeliveryTimeout, match="nothing was sent"):
        send_email_sync("a@example.com", "Hello", text="Hi", timeout=SHORT)
    gate.release()


@pytest.mark.parametrize("timeout", [0, -1, True, "5", float("nan"), float("inf"), timedelta(0), []])
async def test_what_is_no_duration_is_refused(timeout: Any) -> None:
    with pytest.raises(InvalidMessage, match=r"^timeout: .* is not a duration; give seconds above 0, or a timedelta$"):
        await send_email("a@example.com", "Hello", text="Hi", timeout=timeout)


async def test_a_message_of_many_has_no_deadline_of_its_own(smtpd: SmtpServer) -> None:
    message = {"recipients": "a@example.com", "subject": "Hello", "text": "Hi", "timeout": 1}
    receipts = [receipt async for receipt in send_many([message])]
    assert [str(receipt.error) for receipt in receipts] == [
        "timeout: send_many() waits for its connections as long as needed; use send_email()"
    ]
    assert smtpd.verbs == []
