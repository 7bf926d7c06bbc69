"""The dispatcher: its order, its bounds, its retries, its end."""

import asyncio
import logging
import time

import pytest
from support.deliveries import Deliveries, finished, make_dispatcher, temporary
from support.patience import PATIENCE
from support.prepared import make_outgoing
from support.smtpd import SmtpServer

from openviper.core.email.backends.base import DeliveryReport
from openviper.core.email.backends.smtp import SMTPBackend
from openviper.core.email.delivery import Mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox
from openviper.core.email.errors import MessageRefused, RecipientsRefused, Refusal
from openviper.core.email.events import MessageEvent, subscribe
from openviper.core.email.settings import EmailSettings
from openviper.loops import at_loop_end


async def test_messages_are_delivered_in_the_order_handed_over() -> None:
    deliveries = Deliveries()
    messages = [await make_outgoing(subject=str(number)) for number in range(5)]
    await finished(make_dispatcher(deliveries, concurrency=1).accept_all(messages))
    assert deliveries.attempts == messages


async def test_no_more_than_concurrency_are_delivered_at_once() -> None:
    deliveries = Deliveries()
    deliveries.gate.clear()
    dispatcher = make_dispatcher(deliveries, concurrency=3)
    accepted = dispatcher.accept_all([await make_outgoing() for _ in range(8)])
    while deliveries.at_once < 3:
        await asyncio.sleep(0)
    deliveries.gate.set()
    await finished(accepted)
    assert deliveries.most_at_once == 3
    assert dispatcher.pending == 0


async def test_a_temporary_failure_is_tried_again() -> None:
    deliveries = Deliveries()
    deliveries.outcomes = [temporary(), temporary()]
    await finished(make_dispatcher(deliveries).accept_all([await make_outgoing()]))
    assert len(deliveries.attempts) == 3


async def test_a_failure_after_the_last_retry_is_logged_once_with_its_id(caplog: pytest.LogCaptureFixture) -> None:
    deliveries = Deliveries()
    deliveries.outcomes = [temporary(), temporary(), temporary()]
    message = await make_outgoing()
    await finished(make_dispatcher(deliveries).accept_all([message]))
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert message.message_id in errors[0].getMessage()
    assert "3 attempts" in errors[0].getMessage()


async def test_the_end_of_a_message_tells_that_an_earlier_attempt_may_have_delivered_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with SmtpServer() as server:
        server.fault("body", "drop", nth=1)
        server.fault("MAIL", 550, nth=2)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            await finished(make_dispatcher(backend.send).accept_all([await make_outgoing()]))
    (error,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert error.getMessage().endswith("; an earlier attempt may have delivered it")
    assert "may have been delivered after 2 attempts" in error.getMessage()


async def test_of_several_envelopes_only_those_who_may_lack_it_get_another_attempt() -> None:
    """Deferred mail is tried again where nobody knows, whatever ``on_uncertain`` says: that is the queue's."""
    people = [f"r{number}@example.com" for number in range(6)]
    with SmtpServer() as server:
        server.fault("body", "drop", nth=2)
        settings = EmailSettings(**server.settings(max_recipients_per_message=2, on_uncertain="hold"))
        async with SMTPBackend(settings) as backend:
            await finished(make_dispatcher(backend.send).accept_all([await make_outgoing(*people)]))
    assert [message.recipients for message in server.messages] == [people[:2], people[2:4], people[4:]]
    assert server.verbs.count("body") == 4


async def test_recipients_who_are_refused_for_now_to_the_end_are_counted_and_reported_as_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each attempt delivers to some, so none of them ends with an error."""
    deliveries = Deliveries()
    later = Refusal(451, "later")
    deliveries.outcomes = [
        DeliveryReport(("a@x.test",), {"b@x.test": later, "c@x.test": later, "d@x.test": later}),
        DeliveryReport(("b@x.test",), {"c@x.test": later, "d@x.test": later}),
        DeliveryReport(("c@x.test",), {"d@x.test": later}),
    ]
    message = await make_outgoing("a@x.test", "b@x.test", "c@x.test", "d@x.test")
    events: list[tuple[str, tuple[str, ...]]] = []
    unsubscribe = subscribe(lambda event: events.append((event.kind, event.message.envelope.recipients)))
    await finished(make_dispatcher(deliveries).accept_all([message]))
    unsubscribe()
    assert events[-2:] == [("delivered", ("c@x.test", "d@x.test")), ("failed", ("d@x.test",))]
    (error,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert error.getMessage() == (
        f"message {message.message_id} was not delivered to 1 recipient after 3 attempts: "
        "given up after 3 attempts: 1 recipient temporarily refused: 451 later"
    )


async def test_a_message_that_has_expired_is_given_up_at_its_retry(caplog: pytest.LogCaptureFixture) -> None:
    deliveries = Deliveries()
    deliveries.outcomes = [temporary(), temporary()]
    dispatcher = make_dispatcher(deliveries, retry_delays=(0.5, 0.0))
    message = await make_outgoing()
    events: list[tuple[str, str]] = []
    unsubscribe = subscribe(lambda event: events.append((event.kind, event.detail)))
    outbox = RequestOutbox()
    outbox.add(dispatcher, message, dispatcher.transport, expires_at=time.time() + 0.3)
    await finished(outbox.flush())
    unsubscribe()
    assert deliveries.attempts == [message]
    assert events[-1] == ("failed", "expired before it could be delivered")
    assert f"message {message.message_id} was not delivered after 1 attempt: expired" in caplog.text


async def test_without_allow_partial_nobody_gets_what_one_recipient_is_refused_for_good() -> None:
    """A retry for those who were refused temporarily, or were not refused, would leave that recipient out."""
    with SmtpServer() as server:
        server.fault("RCPT", 450, nth=1)
        server.fault("RCPT", 550, nth=2)
        settings = EmailSettings(**server.settings(allow_partial=False))
        mailer = Mailer(settings)
        await mailer.open()
        delivery = mailer.dispatcher.accept(await make_outgoing("a@x.test", "b@x.test", "c@x.test"), mailer.transport)
        await mailer.aclose()
    assert delivery.done.done()
    assert server.messages == []
    assert server.verbs.count("MAIL") == 1


async def test_a_shutdown_tells_that_an_attempt_before_it_may_have_delivered(caplog: pytest.LogCaptureFixture) -> None:
    with SmtpServer() as server:
        server.fault("body", "drop", nth=1)
        gate = server.hold("greeting", nth=2)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            dispatcher = make_dispatcher(backend.send)
            dispatcher.accept_all([await make_outgoing()])
            await gate.reached()
            await dispatcher.drain(0.1)
            gate.release()
    (error,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert error.getMessage().endswith("it was not sent again; an earlier attempt may have delivered it")


async def test_a_permanent_failure_is_not_tried_again_and_does_not_stop_the_next() -> None:
    deliveries = Deliveries()
    deliveries.outcomes = [MessageRefused("mail.test:25: refused the message: 550 no", code=550)]
    first, second = await make_outgoing(), await make_outgoing()
    await finished(make_dispatcher(deliveries, concurrency=1).accept_all([first, second]))
    assert deliveries.attempts == [first, second]


async def test_an_unexpected_error_is_logged_with_its_traceback_and_does_not_stop_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deliveries = Deliveries()
    deliveries.outcomes = [KeyError("a bug")]
    first, second = await make_outgoing(), await make_outgoing()
    details: list[str] = []
    unsubscribe = subscribe(lambda event: details.extend([event.detail] * (event.kind == "failed")))
    await finished(make_dispatcher(deliveries, concurrency=1).accept_all([first, second]))
    unsubscribe()
    assert deliveries.attempts == [first, second]
    assert "unexpected KeyError\n  File " in caplog.text
    assert details == ["KeyError: 'a bug'"]


async def test_only_the_temporarily_refused_recipients_are_tried_again() -> None:
    deliveries = Deliveries()
    message = await make_outgoing("a@x.test", "b@x.test", "c@x.test")
    deliveries.outcomes = [
        DeliveryReport(("a@x.test",), {"b@x.test": Refusal(451, "greylisted"), "c@x.test": Refusal(550, "unknown")})
    ]
    await finished(make_dispatcher(deliveries).accept_all([message]))
    assert [attempt.envelope.recipients for attempt in deliveries.attempts] == [
        ("a@x.test", "b@x.test", "c@x.test"),
        ("b@x.test",),
    ]
    assert deliveries.attempts[1].message_id == message.message_id


async def test_recipients_refused_by_an_attempt_that_nobody_received_are_reported_in_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deliveries = Deliveries()
    refused = {"a@x.test": Refusal(450, "busy"), "b@x.test": Refusal(550, "unknown")}
    deliveries.outcomes = [RecipientsRefused("all refused", accepted=(), refused=refused)]
    delivered: list[tuple[tuple[str, ...], tuple[str, ...], str]] = []

    def note(event: MessageEvent) -> None:
        if event.kind == "delivered":
            delivered.append((event.message.envelope.recipients, event.refused, event.detail))

    unsubscribe = subscribe(note)
    await finished(make_dispatcher(deliveries).accept_all([await make_outgoing("a@x.test", "b@x.test")]))
    unsubscribe()
    assert delivered == [(("a@x.test",), ("b@x.test",), "; refused before: b@x.test (550 unknown)")]
    _, warning = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.getMessage().endswith("1 recipient refused by an earlier attempt (550 unknown)")


async def test_a_shutdown_reports_also_whom_an_attempt_before_it_refused() -> None:
    deliveries = Deliveries()
    refused = {"a@x.test": Refusal(450, "busy"), "b@x.test": Refusal(550, "unknown")}
    deliveries.outcomes = [RecipientsRefused("all refused", accepted=(), refused=refused)]
    failed: list[tuple[str, ...]] = []

    def note(event: MessageEvent) -> None:
        if event.kind == "failed":
            failed.append(event.message.envelope.recipients)

    unsubscribe = subscribe(note)
    dispatcher = make_dispatcher(deliveries, retry_delays=(3600.0,))
    (accepted,) = dispatcher.accept_all([await make_outgoing("a@x.test", "b@x.test")])
    while accepted.timer is None:
        await asyncio.sleep(0)
    deliveries.gate.clear()
    await dispatcher.drain(0.05)
    unsubscribe()
    assert failed == [("a@x.test", "b@x.test")]


async def test_what_is_over_the_bound_waits_for_room_and_is_delivered() -> None:
    deliveries = Deliveries()
    deliveries.gate.clear()
    dispatcher = make_dispatcher(deliveries, max_messages=2)
    accepted = dispatcher.accept_all([await make_outgoing() for _ in range(5)])
    await asyncio.sleep(0)
    assert dispatcher.full
    assert [one.admitted.done() for one in accepted] == [True, True, False, False, False]
    deliveries.gate.set()
    await finished(accepted)
    assert len(deliveries.attempts) == 5
    assert not dispatcher.full


async def test_a_message_larger_than_the_byte_bound_passes_alone() -> None:
    deliveries = Deliveries()
    dispatcher = make_dispatcher(deliveries, max_bytes=10)
    await finished(dispatcher.accept_all([await make_outgoing(), await make_outgoing()]))
    assert len(deliveries.attempts) == 2
    assert deliveries.most_at_once == 1


async def test_retry_now_does_not_wait_for_the_delay_and_uses_up_no_try() -> None:
    deliveries = Deliveries()
    deliveries.outcomes = [temporary(), temporary(), temporary()]
    dispatcher = make_dispatcher(deliveries, retry_delays=(60.0,))
    message = await make_outgoing()
    (accepted,) = dispatcher.accept_all([message])
    for tries in (1, 2, 3):
        async with asyncio.timeout(PATIENCE):
            while len(deliveries.attempts) < tries or deliveries.at_once or accepted.timer is None:
                await asyncio.sleep(0)
        assert dispatcher.retry_now(message.message_id)
    await finished([accepted])
    assert len(deliveries.attempts) == 4
    assert not dispatcher.retry_now(message.message_id)


async def test_draining_delivers_what_is_left_and_gives_a_waiting_retry_one_attempt() -> None:
    deliveries = Deliveries()
    deliveries.outcomes = [temporary()]
    dispatcher = make_dispatcher(deliveries, retry_delays=(3600.0,))
    accepted = dispatcher.accept_all([await make_outgoing()])
    while not deliveries.attempts or deliveries.at_once:
        await asyncio.sleep(0)
    dispatcher.accept_all([await make_outgoing()])
    await dispatcher.drain(10)
    assert len(deliveries.attempts) == 3
    assert all(one.done.done() for one in accepted)
    assert dispatcher.closed


async def test_what_cannot_be_drained_in_time_is_logged_message_by_message(caplog: pytest.LogCaptureFixture) -> None:
    deliveries = Deliveries()
    deliveries.gate.clear()
    dispatcher = make_dispatcher(deliveries, concurrency=1, max_messages=2)
    messages = [await make_outgoing() for _ in range(3)]
    accepted = dispatcher.accept_all(messages)
    await dispatcher.drain(0.05)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(lines) == 3
    assert all(message.message_id in line for message, line in zip(messages, lines, strict=True))
    assert "after 1 attempt" in lines[0]
    assert "may have been delivered" in lines[0]
    assert "after 0 attempts" in lines[1]
    assert "was not sent" in lines[1]
    assert all(one.done.done() and one.admitted.done() for one in accepted)
    assert deliveries.at_once == 0


@pytest.mark.parametrize(("step", "becomes"), [("greeting", "was not sent"), ("body", "may have been delivered")])
async def test_what_only_waited_for_a_connection_is_known_not_to_be_sent(
    step: str, becomes: str, caplog: pytest.LogCaptureFixture
) -> None:
    with SmtpServer() as server:
        gate = server.hold(step)
        async with SMTPBackend(EmailSettings(**server.settings())) as backend:
            dispatcher = make_dispatcher(backend.send)
            dispatcher.accept_all([await make_outgoing()])
            await gate.reached()
            await dispatcher.drain(0.05)
            gate.release()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert becomes in line


async def test_what_is_handed_over_after_closing_is_logged_as_failed(caplog: pytest.LogCaptureFixture) -> None:
    deliveries = Deliveries()
    dispatcher = make_dispatcher(deliveries)
    await dispatcher.drain(1)
    message = await make_outgoing()
    (accepted,) = dispatcher.accept_all([message])
    assert accepted.done.done()
    assert message.message_id in caplog.text


async def test_the_events_tell_the_story_of_a_retry() -> None:
    deliveries = Deliveries()
    deliveries.outcomes = [temporary(), MessageRefused("no", code=550)]
    kinds: list[str] = []
    unsubscribe = subscribe(lambda event: kinds.append(event.kind))
    await finished(make_dispatcher(deliveries).accept_all([await make_outgoing()]))
    unsubscribe()
    assert kinds == ["sending", "retrying", "sending", "failed"]


@pytest.mark.parametrize("step", ["MAIL", "body"])
def test_what_the_end_of_its_event_loop_interrupts_is_attempted_again_or_reported(
    step: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As where uvicorn gets Ctrl+C twice, and leaves out the application's shutdown."""
    sent: list[str] = []
    with SmtpServer() as server:
        server.capabilities = ()  # so that nothing is sent before the reply to MAIL
        gate = server.hold(step)

        async def main() -> None:
            backend = SMTPBackend(EmailSettings(**server.settings()))
            await backend.open()
            dispatcher = make_dispatcher(backend.send, concurrency=1)
            messages = [await make_outgoing(subject=subject) for subject in ("first", "second")]
            sent.extend(message.message_id for message in messages)
            dispatcher.accept_all(messages)

            async def end() -> None:
                gate.release()
                await dispatcher.drain(PATIENCE)
                await backend.aclose()

            at_loop_end(end)
            while step not in server.verbs:
                await asyncio.sleep(0.01)

        asyncio.run(main())
        arrived = [str(message.parse()["Subject"]) for message in server.messages]
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    if step == "MAIL":
        assert (sorted(arrived), errors) == (["first", "second"], [])
    else:
        assert arrived.count("second") == 1
        (error,) = errors
        reason = "the event loop ended while it was being sent; it may have been delivered"
        assert error == f"message {sent[0]} was not delivered after 1 attempt: {reason}"
