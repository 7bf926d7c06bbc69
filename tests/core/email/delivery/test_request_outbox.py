"""The outbox of a request."""

import asyncio

import pytest
from support.deliveries import Deliveries, finished, make_dispatcher, temporary
from support.prepared import make_outgoing

from openviper.core.email.backends.base import DeliveryReport
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting, current_outbox
from openviper.core.email.events import MessageEvent, subscribe
from openviper.core.email.message import OutgoingMessage


async def test_the_outbox_keeps_until_handed_over_then_passes_straight_on() -> None:
    deliveries = Deliveries()
    dispatcher = make_dispatcher(deliveries, concurrency=1)
    outbox = RequestOutbox()
    first, late = await make_outgoing(), await make_outgoing()
    outbox.add(dispatcher, first, dispatcher.transport)
    await asyncio.sleep(0)
    assert deliveries.attempts == []
    await finished(outbox.flush())
    outbox.add(dispatcher, late, dispatcher.transport)
    await dispatcher.drain(10)
    assert deliveries.attempts == [first, late]


async def test_a_discarded_outbox_sends_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    deliveries = Deliveries()
    dispatcher = make_dispatcher(deliveries)
    outbox = RequestOutbox()
    message = await make_outgoing()
    outbox.add(dispatcher, message, dispatcher.transport)
    events: list[MessageEvent] = []
    unsubscribe = subscribe(events.append)
    outbox.discard("the request failed")
    unsubscribe()
    await dispatcher.drain(1)
    assert deliveries.attempts == []
    assert message.message_id in caplog.text
    assert [event.kind for event in events] == ["discarded"]


async def test_attempts_do_not_see_the_context_of_the_request() -> None:
    seen: list[RequestOutbox | None] = []

    async def deliver(message: OutgoingMessage) -> DeliveryReport:
        seen.append(current_outbox())
        if len(seen) == 1:
            raise temporary()
        return DeliveryReport(message.envelope.recipients)

    dispatcher = make_dispatcher(deliver)
    outbox = RequestOutbox()
    with collecting(outbox):
        outbox.add(dispatcher, await make_outgoing(), dispatcher.transport)
        accepted = outbox.flush()
    await finished(accepted)
    assert seen == [None, None]
