import asyncio
from collections.abc import Callable, Iterator

import pytest

from openviper.core.email.backends import memory
from openviper.core.email.backends.memory import KEPT_BYTES, KEPT_MESSAGES, MemoryBackend, MessageStore
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings

MakeMessage = Callable[..., OutgoingMessage]


@pytest.fixture(autouse=True)
def empty_store() -> Iterator[None]:
    memory.sent.clear()
    yield
    memory.sent.clear()


async def test_each_backend_keeps_its_own_messages(outgoing: MakeMessage) -> None:
    one, other = MemoryBackend(EmailSettings()), MemoryBackend(EmailSettings())
    await one.send(outgoing(subject="first"))
    await other.send(outgoing(subject="second"))
    assert [message.prepared.subject for message in one.messages] == ["first"]
    assert [message.prepared.subject for message in other.messages] == ["second"]


def test_sent_messages_remain_after_the_loop_has_ended(outgoing: MakeMessage) -> None:
    async def main() -> None:
        async with MemoryBackend(EmailSettings()) as backend:
            await backend.send(outgoing(subject="kept"))

    asyncio.run(main())
    assert [message.prepared.subject for message in memory.sent] == ["kept"]
    assert memory.sent[-1].prepared.subject == "kept"


def test_the_oldest_are_dropped_when_there_are_too_many(outgoing: MakeMessage) -> None:
    store, message = MessageStore(), outgoing()
    numbered = [message._replace(size=number) for number in range(KEPT_MESSAGES + 5)]
    for one in numbered:
        store.add(one)
    assert list(store) == numbered[5:]


def test_the_oldest_are_dropped_when_they_are_too_large(outgoing: MakeMessage) -> None:
    store, message = MessageStore(), outgoing()
    half = KEPT_BYTES // 2
    first, second, third = (message._replace(size=half, content=(name,)) for name in (b"1", b"2", b"3"))
    for one in (first, second, third):
        store.add(one)
    assert list(store) == [second, third]


def test_the_newest_is_kept_whatever_its_size(outgoing: MakeMessage) -> None:
    store, message = MessageStore(), outgoing()
    huge = message._replace(size=KEPT_BYTES * 2)
    store.add(message)
    store.add(huge)
    assert list(store) == [huge]
    store.add(message)
    assert list(store) == [message]


def test_a_cleared_store_is_empty_and_usable(outgoing: MakeMessage) -> None:
    store, message = MessageStore(), outgoing()
    store.add(message._replace(size=KEPT_BYTES))
    store.clear()
    assert len(store) == 0
    store.add(message)
    store.add(message)
    assert len(store) == 2


def test_a_store_may_be_read_while_messages_are_added(outgoing: MakeMessage) -> None:
    store, message = MessageStore(), outgoing()
    store.add(message)
    for _ in store:
        store.add(message)
    assert len(store) == 2
