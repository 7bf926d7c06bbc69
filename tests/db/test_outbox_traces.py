"""Finding mail in the outbox, and erasing an address from its rows, on SQLite and PostgreSQL."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from sqlalchemy import insert, select
from support.prepared import make_outgoing

from openviper import db
from openviper.core.email.message.storage import encode
from openviper.core.email.queue.found import Erased, Wanted
from openviper.core.email.queue.job import NewJob, Progress, job_key
from openviper.core.email.queue.outbox_store import OutboxJobStore
from openviper.db.outbox import create_outbox_tables
from openviper.db.outbox.tables import key_table, outbox_table, part_table

pytestmark = pytest.mark.usefixtures("database")

ANN, BEN = "Ann.Erased@example.test", "ben@example.test"
ERASED = ANN.lower()

T = TypeVar("T")


async def call(function: Callable[..., T], *arguments: Any, **more: Any) -> T:
    """In a thread: the store blocks."""
    return await asyncio.to_thread(function, *arguments, **more)


@pytest.fixture
async def store(database: None) -> OutboxJobStore:
    await create_outbox_tables(await db.engine())
    return OutboxJobStore("database")


async def add(store: OutboxJobStore, *to: str, ref: str, due_in: float = 0) -> str:
    """Store a message that names its first recipient everywhere; return its Message-ID."""
    message = await make_outgoing(*to, subject=f"For {to[0]}", text="Hello")
    prepared = message.prepared._replace(extra={"ref": ref, "metadata": {"customer": to[0]}})
    key = job_key(message.message_id, message.envelope.recipients)
    progress, due_at = Progress(since=time.time()), time.time() + due_in
    new = NewJob(key, message.message_id, encode(prepared), progress, 600.0, due_at if due_in else None)
    await call(store.add, new, deadline=time.monotonic() + 1)
    return message.message_id


async def fail(store: OutboxJobStore, *, refused: str) -> None:
    job = await call(store.claim)
    assert job is not None
    progress = Progress(since=1.0, attempts=1, refused={refused: f"550 {refused} unknown"})
    await call(store.fail, job, progress, f"550 {refused} unknown", keep=600.0, uncertain=False)


async def texts() -> str:
    """Return the values of all rows."""
    found = []
    async with (await db.engine()).connect() as connection:
        for table in (outbox_table, part_table, key_table):
            for row in await connection.execute(select(table)):
                found += [each.decode(errors="replace") if isinstance(each, bytes) else str(each) for each in row]
    return "\n".join(found)


async def test_mail_is_found_in_each_state(store: OutboxJobStore) -> None:
    failed = await add(store, ANN, BEN, ref="order-1")
    await fail(store, refused=ANN)
    waiting = await add(store, ANN, ref="order-2")
    assert await call(store.claim) is not None
    later = await add(store, BEN, ref="order-1", due_in=600.0)
    by_address = await call(store.find, Wanted(address=ERASED))
    assert {(mail.message_id, mail.state, mail.ref) for mail in by_address} == {
        (failed, "failed", "order-1"),
        (waiting, "sending", "order-2"),
    }
    by_ref = await call(store.find, Wanted(ref="order-1"))
    assert {(mail.message_id, mail.state) for mail in by_ref} == {(failed, "failed"), (later, "later")}
    (mail,) = await call(store.find, Wanted(message_id=later))
    assert (mail.recipients, mail.attempts, mail.reason) == ((BEN,), 0, "")
    assert mail.due is not None
    assert 500 < mail.due - time.time() < 700
    (refused,) = await call(store.find, Wanted(message_id=failed))
    assert (refused.recipients, refused.attempts, refused.reason) == ((ANN,), 1, f"550 {ANN} unknown")


async def test_an_address_is_erased_but_from_what_a_process_has_in_hand(store: OutboxJobStore) -> None:
    await add(store, ANN, BEN, ref="order-1")
    await fail(store, refused=BEN)
    await add(store, ANN, ref="order-2")
    job = await call(store.claim)
    assert job is not None
    await add(store, ANN, ref="order-3", due_in=600.0)
    shared = await add(store, ANN, BEN, ref="order-4", due_in=600.0)
    receipt = json.dumps({"mode": "inline", "accepted": [ANN, BEN], "response": f"250 {ANN}"})
    end = time.time() + 600
    same = {"owner": "o", "fingerprint": "f", "message_id": "<1@example.test>", "sending": False}
    same |= {"until": end, "expires": end}
    rows: list[dict[str, Any]] = [{"key": f"{ANN}-key", "result": None}, {"key": "order-1", "result": receipt}]
    async with (await db.engine()).begin() as connection:
        await connection.execute(insert(key_table), [{**same, **row} for row in rows])
    assert await call(store.erase, ERASED) == Erased(removed=1, changed=2, busy=1, keys=2)
    assert [mail.ref for mail in await call(store.find, Wanted(address=ERASED))] == ["order-2"]
    await call(store.finish, job, remember=0.0)
    assert await call(store.erase, ERASED) == Erased()
    kept = await texts()
    assert ERASED not in kept.lower()
    assert "(erased)" in kept
    assert {(mail.message_id, mail.recipients) for mail in await call(store.find, Wanted(ref="order-4"))} == {
        (shared, (BEN,))
    }


async def test_a_message_that_others_have_goes_with_the_address_that_lacks_it(store: OutboxJobStore) -> None:
    """Kept without that address, it would be for all who are left, and a retry would send it to them again."""
    await add(store, ANN, BEN, ref="order-1")
    await fail(store, refused=ANN)
    assert await call(store.erase, ERASED) == Erased(removed=1)
    assert await call(store.retry_failed, None) == 0
    assert await texts() == ""


async def test_an_address_that_has_the_message_is_erased_and_the_others_still_get_it(store: OutboxJobStore) -> None:
    await add(store, ANN, BEN, ref="order-1")
    await fail(store, refused=BEN)
    assert await call(store.erase, ERASED) == Erased(changed=1)
    assert await call(store.retry_failed, None) == 1
    (mail,) = await call(store.find, Wanted(ref="order-1"))
    assert mail.recipients == (BEN,)
