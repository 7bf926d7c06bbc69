"""The pause flag in the database outbox."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from openviper import db
from openviper.core.email.delivery.pause.flag import change_state, current_pauses, pause_store
from openviper.core.email.delivery.pause.outbox_flag import OutboxPauseStore
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.settings import EmailSettings
from openviper.db.outbox import create_outbox_tables

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
async def store(database: None) -> AsyncIterator[OutboxPauseStore]:
    await create_outbox_tables(await db.engine())
    store = OutboxPauseStore("database")
    yield store
    await asyncio.to_thread(store.close)


async def test_a_flag_is_written_only_over_what_was_read(store: OutboxPauseStore) -> None:
    def work() -> None:
        assert store.read().data is None
        assert abs(store.read().now - time.time()) < 5
        assert not store.write(b"x", expected=b"other")
        assert store.write(b"one", expected=b"")
        assert not store.write(b"two", expected=b"")
        assert store.write(b"two", expected=b"one")
        assert store.write(b"three", expected=None)
        assert store.read().data == b"three"

    await asyncio.to_thread(work)
    await asyncio.to_thread(work_from_another_thread, store)


def work_from_another_thread(store: OutboxPauseStore) -> None:
    assert store.read().data == b"three"


async def test_the_outbox_keeps_the_flag_where_there_is_no_redis(store: OutboxPauseStore) -> None:
    def pause() -> int:
        chosen = pause_store(EmailSettings(outbox="database", state_dir="/nowhere"))
        assert isinstance(chosen, OutboxPauseStore)
        assert chosen.identity == store.identity
        change_state(chosen, None, seconds=60.0, stop=True)
        chosen.close()
        return len(current_pauses(store)[0])

    assert await asyncio.to_thread(pause) == 1


async def test_a_database_without_the_table_is_told(database: None) -> None:
    store = OutboxPauseStore("database")
    with pytest.raises(QueueUnavailable, match=r"lacks email_key, .*; run `viperctl email outbox create`"):
        await asyncio.to_thread(store.read)
    await asyncio.to_thread(store.close)
