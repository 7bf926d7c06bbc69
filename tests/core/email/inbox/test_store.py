"""The store in memory: its bounds, and what it makes of events."""

import asyncio

import pytest
from support.prepared import make_outgoing

from openviper.core.email.events import MessageEvent
from openviper.core.email.inbox.entries import footprint, key_of
from openviper.core.email.inbox.store import MemoryStore
from openviper.core.email.message import OutgoingMessage


def event(message: OutgoingMessage, kind: str = "sending", at: float = 1.0) -> MessageEvent:
    return MessageEvent(kind=kind, message_id=message.message_id, message=message, at=at)  # type: ignore[arg-type]


async def test_the_oldest_go_when_there_are_too_many_bytes() -> None:
    messages = [await make_outgoing(subject=f"n{number}", text="x" * 1000) for number in range(5)]
    store = MemoryStore(max_bytes=sum(map(footprint, messages[2:])))
    for message in messages:
        store.record(event(message))
    assert [entry.prepared.subject for entry in await store.newest_first()] == ["n4", "n3", "n2"]
    await store.delete(key_of(messages[3].message_id))
    store.record(event(messages[0]))
    assert [entry.prepared.subject for entry in await store.newest_first()] == ["n0", "n4", "n2"]


async def test_the_newest_message_stays_however_large_it_is() -> None:
    store = MemoryStore(max_bytes=10)
    for subject in ("first", "second"):
        store.record(event(await make_outgoing(subject=subject)))
    assert [entry.prepared.subject for entry in await store.newest_first()] == ["second"]


async def test_a_message_that_is_tried_for_ever_keeps_its_first_and_newest_steps() -> None:
    store, message = MemoryStore(), await make_outgoing()
    store.record(event(message, "deferred", at=0.5))
    for number in range(1000):
        store.record(event(message, "retrying", at=float(number + 1)))
    (entry,) = await store.newest_first()
    assert len(entry.steps) == 200
    assert (entry.mode, entry.steps[-1].at) == ("deferred", 1000.0)


@pytest.mark.parametrize(
    ("kinds", "mode"),
    [(["sending"], "inline"), (["held", "deferred"], "held"), (["deferred"], "deferred"), (["queued"], "queued")],
)  # fmt: skip
async def test_the_first_step_says_which_mode_a_message_took(kinds: list[str], mode: str) -> None:
    store, message = MemoryStore(), await make_outgoing()
    for kind in kinds:
        store.record(event(message, kind))
    (entry,) = await store.newest_first()
    assert entry.mode == mode


async def test_a_further_try_is_for_those_who_have_not_got_it() -> None:
    store, message = MemoryStore(), await make_outgoing("a@example.test", "b@example.test")
    store.record(event(message))
    store.record(event(message.for_recipients(("b@example.test",)), "failed"))
    loaded = await store.load(key_of(message.message_id))
    assert loaded is not None
    assert loaded.envelope.recipients == ("b@example.test",)
    (entry,) = await store.newest_first()
    assert entry.envelope.recipients == ("a@example.test", "b@example.test")


async def test_events_of_several_threads_are_all_kept() -> None:
    store = MemoryStore()
    messages = [await make_outgoing(subject=str(number)) for number in range(20)]

    def happen(message: OutgoingMessage) -> None:
        for kind in ("deferred", "sending", "delivered"):
            store.record(event(message, kind))

    await asyncio.gather(*(asyncio.to_thread(happen, message) for message in messages))
    entries = await store.newest_first()
    assert len(entries) == 20
    assert {len(entry.steps) for entry in entries} == {3}
    assert await store.changed(0, 10) > 0
