"""The table of delivery modes, and a mailer taking messages in each of them."""

import asyncio
import gc
import logging
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

import pytest
from support.prepared import make_outgoing
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import (
    ConnectionFailed,
    DeliveryError,
    DeliveryMode,
    MessageEvent,
    RecipientsRefused,
    Refusal,
    send_email,
    submit_email,
    subscribe,
)
from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.backends.memory import MemoryBackend
from openviper.core.email.delivery import Mailer, choose_mode, current_mailer, serving_loop, submit, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings
from openviper.db.transaction import Record, entered, hold

INLINE, DEFERRED, QUEUED = DeliveryMode.INLINE, DeliveryMode.DEFERRED, DeliveryMode.QUEUED


class Broker(NamedTuple):
    """A transport with a queue, or without."""

    queue: object | None


def mode_of(
    background: bool | None,
    setting: bool | None,
    *,
    broker: bool,
    can_defer: bool,
    in_transaction: bool = False,
) -> DeliveryMode:
    transport = Broker(object() if broker else None)
    return choose_mode(background, setting, in_transaction=in_transaction, transport=transport, can_defer=can_defer)


@pytest.mark.parametrize("use_background_worker", [None, True, False])
@pytest.mark.parametrize("broker", [True, False])
@pytest.mark.parametrize("in_request", [True, False])
def test_background_false_is_inline_whatever_else_holds(
    use_background_worker: bool | None, broker: bool, in_request: bool
) -> None:
    mode = mode_of(False, use_background_worker, broker=broker, can_defer=in_request)
    assert mode is INLINE


@pytest.mark.parametrize(
    ("background", "setting", "broker", "in_request_mode", "elsewhere_mode"),
    [
        (None, None, True, QUEUED, QUEUED),
        (None, True, True, QUEUED, QUEUED),
        (None, False, True, DEFERRED, INLINE),
        (None, None, False, DEFERRED, INLINE),
        (None, True, False, DEFERRED, INLINE),
        (None, False, False, DEFERRED, INLINE),
        (True, None, True, QUEUED, QUEUED),
        (True, True, True, QUEUED, QUEUED),
        (True, False, True, QUEUED, QUEUED),
        (True, None, False, DEFERRED, INLINE),
        (True, True, False, DEFERRED, INLINE),
        (True, False, False, DEFERRED, INLINE),
    ],
)
def test_the_table_of_modes(
    background: bool | None,
    setting: bool | None,
    broker: bool,
    in_request_mode: DeliveryMode,
    elsewhere_mode: DeliveryMode,
) -> None:
    for in_request, expected in ((True, in_request_mode), (False, elsewhere_mode)):
        mode = mode_of(background, setting, broker=broker, can_defer=in_request)
        assert mode is expected


def test_without_room_a_request_delivers_inline() -> None:
    mode = mode_of(None, None, broker=False, can_defer=False)
    assert mode is INLINE


class Refusing(EmailBackend):
    """Fails ``failures`` times, then accepts."""

    failures = 0
    error: DeliveryError | None = None

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        if self.error is not None:
            raise self.error
        if self.failures:
            self.failures -= 1
            raise ConnectionFailed("mail.test:25: connection refused", temporary=True)
        return DeliveryReport(message.envelope.recipients, response="250 ok")


def memory_mailer(**settings: object) -> Mailer:
    return Mailer(EmailSettings(backend="MemoryBackend", default_sender="shop@example.test", **settings))


def refusing_mailer(failures: int, **settings: object) -> Mailer:
    mailer = Mailer(EmailSettings(backend=f"{__name__}.Refusing", default_sender="shop@example.test", **settings))
    assert isinstance(mailer.backend, Refusing)
    mailer.backend.failures = failures
    return mailer


def sent(mailer: Mailer) -> list[OutgoingMessage]:
    assert isinstance(mailer.backend, MemoryBackend)
    return list(mailer.backend.messages)


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


def test_a_loop_that_has_ended_is_not_kept() -> None:
    """Also where several tasks have opened the mailer at once, which binds its lock to the loop."""
    loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

    async def send_some() -> None:
        loops.add(asyncio.get_running_loop())
        await asyncio.gather(*(current_mailer() for _ in range(5)))

    with override(EMAIL={"backend": "MemoryBackend"}):
        for _ in range(5):
            asyncio.run(send_some())
    gc.collect()
    assert len(loops) == 0


async def test_the_receipt_of_an_accepted_message_is_true() -> None:
    assert await submit(memory_mailer(), await make_outgoing(), background=False, fail_silently=False)


async def test_a_child_task_without_a_transaction_is_not_held() -> None:
    assert hold(lambda: None) is False


async def test_the_loop_gets_one_mailer_until_the_settings_change() -> None:
    email = {"backend": "MemoryBackend", "default_sender": "a@example.test"}
    with override(EMAIL=email):
        first = await current_mailer()
        assert await current_mailer() is first
    with override(EMAIL={**email, "default_sender": "b@example.test"}):
        second = await current_mailer()
    assert second is not first
    assert second.settings.default_sender == "b@example.test"


async def test_a_request_uses_its_own_applications_mailer() -> None:
    of_loop, of_request = memory_mailer(), memory_mailer()
    with serving_loop(of_loop):
        assert await current_mailer() is of_loop
        with using_mailer(of_request):
            assert await current_mailer() is of_request
            assert await asyncio.create_task(current_mailer()) is of_request
        assert await current_mailer() is of_loop


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


async def test_a_mailer_that_changed_settings_have_replaced_closes_its_connections() -> None:
    with SmtpServer() as server:
        for number in range(20):
            email = {**server.settings(), "default_sender": "shop@example.test", "local_hostname": f"n{number}.test"}
            with override(EMAIL=email):
                await send_email("user@example.test", f"{number}", text="Hi")
        gc.collect()
        await server.until(lambda: server.open_connections <= 1)
        assert len(server.messages) == 20


async def test_a_replaced_mailer_delivers_what_it_accepted() -> None:
    with SmtpServer() as server:
        email = {**server.settings(), "default_sender": "shop@example.test"}
        outbox = RequestOutbox()
        with override(EMAIL=email), collecting(outbox):
            assert (await submit_email("user@example.test", "deferred", text="Hi")).mode is DEFERRED
        with override(EMAIL={**email, "local_hostname": "other.test"}):
            await send_email("user@example.test", "inline", text="Hi")
            gc.collect()
            await asyncio.gather(*(delivery.done for delivery in outbox.flush()))
        assert sorted(message.parse()["Subject"] for message in server.messages) == ["deferred", "inline"]
