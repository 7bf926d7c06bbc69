"""A message on its way into a delivery mode."""

import asyncio
from pathlib import Path

import pytest
from support.mailers import Refusing, memory_mailer, refusing_mailer, sent
from support.prepared import make_outgoing

from openviper.conf import override
from openviper.core.email import (
    ConnectionFailed,
    DeliveryMode,
    RecipientsRefused,
    Refusal,
)
from openviper.core.email.delivery import Mailer, submit
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.settings import EmailSettings
from openviper.db.transaction import Record, entered, hold

INLINE, DEFERRED, QUEUED = DeliveryMode.INLINE, DeliveryMode.DEFERRED, DeliveryMode.QUEUED


async def test_outside_a_request_a_message_is_delivered_before_the_call_returns() -> None:
    mailer = memory_mailer()
    message = await make_outgoing()
    receipt = await submit(mailer, message, background=None, fail_silently=False)
    assert (receipt.mode, receipt.accepted) == (INLINE, ("user@example.test",))
    assert sent(mailer) == [message]


async def test_in_a_request_a_message_waits_for_the_end_of_the_response() -> None:
    mailer = memory_mailer()
    outbox = RequestOutbox()
    with collecting(outbox):
        receipt = await submit(mailer, await make_outgoing(), background=None, fail_silently=False)
    assert receipt.mode is DEFERRED
    assert sent(mailer) == []
    outbox.flush()
    await mailer.aclose()
    assert len(sent(mailer)) == 1


async def test_a_full_dispatcher_makes_a_request_deliver_inline() -> None:
    mailer = memory_mailer(dispatcher_messages=1)
    for _ in range(2):
        mailer.dispatcher.accept(await make_outgoing(), mailer.transport)
    with collecting(RequestOutbox()):
        receipt = await submit(mailer, await make_outgoing(), background=None, fail_silently=False)
    assert receipt.mode is INLINE
    await mailer.aclose()


async def test_a_wrong_task_setting_is_no_matter_where_the_queue_is_not_used(tmp_path: Path) -> None:
    settings = EmailSettings(backend="FileBackend", file_dir=tmp_path, use_background_worker=False)
    with override(TASKS={"broker": "rabbit"}):
        mailer, record, outbox = Mailer(settings), Record(), RequestOutbox()
        with entered(record):
            held = await submit(mailer, await make_outgoing(), background=None, fail_silently=False)
        with collecting(outbox):
            deferred = await submit(mailer, await make_outgoing(), background=None, fail_silently=False)
        inline = await submit(mailer, await make_outgoing(), background=None, fail_silently=False)
        for waiting in record.commit():
            released = waiting.on_commit()
            assert released is not None
            await released
        await asyncio.gather(*(accepted.done for accepted in outbox.flush()))
    assert (held.mode, deferred.mode, inline.mode) == (DeliveryMode.HELD, DeliveryMode.DEFERRED, DeliveryMode.INLINE)
    assert len([*tmp_path.rglob("*.eml")]) == 3


async def test_a_delivery_error_is_raised_or_silent_as_asked(caplog: pytest.LogCaptureFixture) -> None:
    mailer = refusing_mailer(failures=2)
    with pytest.raises(ConnectionFailed):
        await submit(mailer, await make_outgoing(), background=None, fail_silently=False)
    message = await make_outgoing()
    receipt = await submit(mailer, message, background=None, fail_silently=True)
    assert not receipt
    assert isinstance(receipt.error, ConnectionFailed)
    assert message.message_id in caplog.text


async def test_a_silent_refusal_of_all_recipients_names_them_in_the_receipt() -> None:
    mailer = refusing_mailer(failures=0)
    refused = {"user@example.test": Refusal(550, "no such user")}
    assert isinstance(mailer.backend, Refusing)
    mailer.backend.error = RecipientsRefused("all refused", accepted=(), refused=refused)
    receipt = await submit(mailer, await make_outgoing(), background=None, fail_silently=True)
    assert not receipt
    assert receipt.refused == refused


async def test_the_receipt_of_an_accepted_message_is_true() -> None:
    assert await submit(memory_mailer(), await make_outgoing(), background=False, fail_silently=False)


async def test_a_child_task_without_a_transaction_is_not_held() -> None:
    assert hold(lambda: None) is False
