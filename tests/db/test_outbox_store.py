"""The outbox's rows on SQLite and PostgreSQL: inserted, claimed once, leased, fenced, deleted."""

import asyncio
import json
import subprocess
import sys
import time

import pytest
from sqlalchemy import Connection, MetaData, event, func, insert, select, text, update
from sqlalchemy.ext.asyncio import create_async_engine
from support.patience import PATIENCE

from openviper import db
from openviper.db.outbox import create_outbox_tables, outbox_tables
from openviper.db.outbox.flags import FlagRows
from openviper.db.outbox.keys import KeyRows
from openviper.db.outbox.rows import DELETE, LEASE, MARKING, Answer, NewRow
from openviper.db.outbox.store import OutboxStore, insert_rows, new_row_id
from openviper.db.outbox.tables import database_id, missing_tables, outbox_table, part_table

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
async def store(database: None) -> OutboxStore:
    engine = await db.engine()
    await create_outbox_tables(engine)
    return OutboxStore(engine)


def row(name: str = "a", *, parts: tuple[bytes, ...] = (b"text",), due_at: float | None = None) -> NewRow:
    return NewRow(f"<{name}@example.test>", "default", b'{"head": 1}', parts, "{}", due_at)


async def insert_one(store: OutboxStore, new: NewRow | None = None, token: str | None = None) -> str:
    row_id = new_row_id()
    await store.insert([(row_id, row() if new is None else new)], token=token)
    return row_id


async def end_leases(store: OutboxStore) -> None:
    """What the passing of a minute does."""
    async with store.engine.begin() as connection:
        await connection.execute(update(outbox_table).values(lease=outbox_table.c.lease - LEASE - 1))


async def test_tables_are_created_once_and_missing_ones_are_named(database: None) -> None:
    engine = await db.engine()
    names = ["email_key", "email_meta", "email_outbox", "email_outbox_part"]
    assert await missing_tables(engine) == names
    assert await create_outbox_tables(engine) == names
    assert await create_outbox_tables(engine) == []
    assert await missing_tables(engine) == []
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE email_outbox DROP COLUMN reason"))
    assert await missing_tables(engine) == ["email_outbox.reason"]


async def test_an_applications_metadata_gets_the_tables_once() -> None:
    metadata = MetaData()
    tables = outbox_tables(metadata)
    assert outbox_tables(metadata) == tables
    assert sorted(metadata.tables) == sorted(table.name for table in tables)


async def test_the_database_has_one_id_that_stays(store: OutboxStore) -> None:
    async def ask() -> str:
        async with store.engine.begin() as connection:
            return await connection.run_sync(database_id)

    ids = await asyncio.gather(*(ask() for _ in range(4)))
    assert len(set(ids)) == 1
    assert len(ids[0]) == 32


@on_postgresql
async def test_postgresql_vacuums_by_a_count_of_dead_rows(store: OutboxStore) -> None:
    async with store.engine.connect() as connection:
        options = await connection.scalar(text("SELECT reloptions FROM pg_class WHERE relname = 'email_outbox'"))
    assert set(options) == {"autovacuum_vacuum_scale_factor=0", "autovacuum_vacuum_threshold=1000"}


async def test_a_row_is_claimed_with_all_that_its_message_needs(store: OutboxStore) -> None:
    small = await insert_one(store, row("small", parts=(b"one", b"two")))
    large = await insert_one(store, row("large", parts=(b"1" * 20_000, b"", b"3")))
    first, second = await store.claim(10, token="t")
    assert (first.id, first.message_id, first.parts) == (small, "<small@example.test>", b"onetwo")
    assert (first.head, first.progress, first.mailer, first.repeated) == (b'{"head": 1}', "{}", "default", False)
    assert (second.id, second.parts) == (large, None)
    assert await store.parts(large) == (b"1" * 20_000, b"", b"3")


async def test_a_leased_row_is_claimed_when_its_lease_ends_and_counts_as_repeated(store: OutboxStore) -> None:
    row_id = await insert_one(store, token="web")
    assert await store.claim(10, token="relay") == []
    await end_leases(store)
    (claimed,) = await store.claim(10, token="relay")
    assert (claimed.id, claimed.repeated) == (row_id, True)
    assert await store.claim(10, token="other") == []


async def test_a_row_that_may_have_been_sent_stays_one_when_it_is_given_back(store: OutboxStore) -> None:
    row_id = await insert_one(store, token="web")
    await end_leases(store)
    assert [each.repeated for each in await store.claim(1, token="relay")] == [True]
    await store.release([row_id], token="relay")
    assert [each.repeated for each in await store.claim(1, token="relay-2")] == [True]
    await store.answer({row_id: Answer("{}", retry_in=0.0, repeated=True)}, token="relay-2")
    assert [each.repeated for each in await store.claim(1, token="relay-3")] == [True]


async def test_under_a_token_that_marks_attempts_only_what_was_begun_is_repeated(store: OutboxStore) -> None:
    token = f"{MARKING}-web"
    begun, waiting, given_back = [await insert_one(store, token=token) for _ in range(3)]
    assert await store.mark([begun, given_back], token=token) == {begun, given_back}
    assert await store.mark([begun], token="another") == set()
    await store.release([given_back], token=token, marked=[given_back])
    await end_leases(store)
    claimed = {each.id: each.repeated for each in await store.claim(3, token=f"{MARKING}-relay")}
    assert claimed == {begun: True, waiting: False, given_back: False}


async def test_a_row_that_is_due_later_has_no_lease_and_waits(store: OutboxStore) -> None:
    row_id = await insert_one(store, row(due_at=time.time() + 600), token="web")
    assert await store.claim(10, token="relay") == []
    assert await store.extend([row_id], token="web") == set()
    assert (await store.stats())[:4] == (0, 1, 0, 0)
    async with store.engine.begin() as connection:
        await connection.execute(update(outbox_table).values(due=outbox_table.c.due - 601))
    (claimed,) = await store.claim(10, token="relay")
    assert (claimed.id, claimed.repeated) == (row_id, False)


async def test_extending_begins_the_lease_again_for_rows_that_are_still_ones_own(store: OutboxStore) -> None:
    kept, lost = await insert_one(store, token="web"), await insert_one(store, token="web")
    await end_leases(store)
    assert await store.extend([kept], token="web") == {kept}
    assert [each.id for each in await store.claim(10, token="relay")] == [lost]
    assert await store.extend([kept, lost], token="web") == {kept}


async def test_late_answers_of_a_process_that_lost_its_lease_change_nothing(store: OutboxStore) -> None:
    ids = [await insert_one(store, token="web") for _ in range(3)]
    await end_leases(store)
    assert len(await store.claim(10, token="relay")) == 3
    late = dict(zip(ids, (DELETE, Answer("{}", retry_in=0), Answer("{}", reason="no", keep=60)), strict=True))
    assert await store.answer(late, token="web") == set()
    await store.release(ids, token="web")
    assert (await store.stats())[:4] == (0, 0, 3, 0)
    assert await store.answer(dict.fromkeys(ids, DELETE), token="relay") == set(ids)
    assert (await store.stats())[:4] == (0, 0, 0, 0)


async def test_a_retry_is_due_later_with_its_progress_and_is_not_repeated(store: OutboxStore) -> None:
    row_id = await insert_one(store, token="web")
    assert await store.answer({row_id: Answer('{"attempts": 1}', retry_in=0.0)}, token="web") == {row_id}
    (claimed,) = await store.claim(10, token="relay")
    assert (claimed.progress, claimed.repeated) == ('{"attempts": 1}', False)
    await store.answer({row_id: Answer("{}", retry_in=600.0)}, token="relay")
    assert await store.claim(10, token="relay") == []


async def test_failed_rows_are_kept_retried_purged_and_dropped_in_time(store: OutboxStore) -> None:
    ids = [await insert_one(store, row(name), token="web") for name in "abc"]
    failure = Answer('{"attempts": 3}', reason="550 no", keep=600.0)
    await store.answer(dict.fromkeys(ids, failure), token="web")
    found = await store.failed()
    assert [each.id for each in found] == ids
    assert (found[0].reason, found[0].progress, found[0].message_id) == (*failure[2:3], failure[0], "<a@example.test>")
    assert await store.claim(10, token="relay") == []
    assert await store.retry_failed(ids[0], "{}")
    assert not await store.retry_failed(ids[0], "{}")
    assert [each.id for each in await store.claim(10, token="relay")] == ids[:1]
    assert await store.purge_failed(ids[1])
    assert not await store.purge_failed(ids[1])
    assert await store.drop_expired() == 0
    async with store.engine.begin() as connection:
        await connection.execute(update(outbox_table).values(due=0.0))
    assert await store.failed() == []
    assert await store.drop_expired() == 1
    assert (await store.stats())[:4] == (0, 0, 1, 0)


async def test_of_a_failed_row_whose_content_is_not_kept_only_the_head_stays(store: OutboxStore) -> None:
    row_id = await insert_one(store, row(parts=(b"1" * 20_000,)), token="web")
    await store.answer({row_id: Answer("{}", reason="no", keep=600.0, head=b"left")}, token="web")
    assert [each.head for each in await store.failed()] == [b"left"]
    assert await store.parts(row_id) == ()


async def test_a_deleted_row_takes_its_parts_along(store: OutboxStore) -> None:
    row_id = await insert_one(store, row(parts=(b"1" * 20_000,)), token="web")
    await store.answer({row_id: DELETE}, token="web")
    async with store.engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(part_table)) == 0


async def test_a_row_is_part_of_the_transaction_that_inserts_it(store: OutboxStore) -> None:
    async with store.engine.begin() as connection:
        await connection.run_sync(insert_rows, [(new_row_id(), row())], token="web")
        await connection.rollback()
    assert (await store.stats())[:4] == (0, 0, 0, 0)


@on_postgresql
async def test_a_deletion_does_not_wait_for_a_row_that_is_locked(store: OutboxStore) -> None:
    locked, free = await insert_one(store, token="web"), await insert_one(store, token="web")
    async with store.engine.begin() as connection:
        await connection.execute(select(outbox_table).where(outbox_table.c.id == locked).with_for_update())
        async with asyncio.timeout(PATIENCE):
            assert await store.answer({locked: DELETE, free: DELETE}, token="web") == {free}


@on_postgresql
async def test_only_the_commit_of_a_deletion_does_not_wait_for_the_disk(store: OutboxStore) -> None:
    note = "BEGIN INSERT INTO noted VALUES (TG_OP, current_setting('synchronous_commit')); RETURN NULL; END"
    async with store.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE noted (operation TEXT, setting TEXT)"))
        await connection.execute(text(f"CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $${note}$$"))
        await connection.execute(
            text("CREATE TRIGGER note AFTER INSERT OR DELETE ON email_outbox FOR EACH ROW EXECUTE FUNCTION note()")
        )
    row_id = await insert_one(store, token="web")
    assert await store.answer({row_id: DELETE}, token="web") == {row_id}
    await insert_one(store)
    async with store.engine.connect() as connection:
        noted = [tuple(each) for each in await connection.execute(text("SELECT * FROM noted"))]
    assert noted == [("INSERT", "on"), ("DELETE", "off"), ("INSERT", "on")]


@on_postgresql
async def test_an_engine_that_translates_schemas_has_its_outbox_there(database: None) -> None:
    engine = (await db.engine()).execution_options(schema_translate_map={None: "tenant"})
    async with engine.begin() as connection:
        await connection.execute(text("CREATE SCHEMA tenant"))
    await create_outbox_tables(engine)
    store = OutboxStore(engine)
    ids = [new_row_id() for _ in range(3)]
    await store.insert([(ids[0], row())], token="web")
    await store.insert([(row_id, row()) for row_id in ids[1:]], token="web")
    assert await store.answer(dict.fromkeys(ids, DELETE), token="web") == set(ids)


async def test_metadata_with_a_schema_has_the_tables_where_the_outbox_looks_for_them(database: None) -> None:
    metadata = MetaData(schema="shop")
    tables = outbox_tables(metadata)
    assert outbox_tables(metadata) == tables
    engine = await db.engine()
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    assert await missing_tables(engine) == []


@on_postgresql
async def test_own_transactions_are_at_read_committed_whatever_the_engine_says(database_url: str) -> None:
    """A claim whose snapshot is older than another claim's commit would fail at a higher level."""
    engine = create_async_engine(database_url, isolation_level="SERIALIZABLE")
    await create_outbox_tables(engine)
    levels: list[str] = []

    def note(connection: Connection, *_: object) -> None:
        reading = connection.connection.cursor()
        reading.execute("SHOW transaction_isolation")
        levels.append(reading.fetchall()[0][0])
        reading.close()

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    store, keys, flags = OutboxStore(engine), KeyRows(engine), FlagRows(engine)
    await store.insert([(new_row_id(), row()), (new_row_id(), row())], token=None)
    claimed = {each.id for each in await store.claim(10, token="relay")}
    await store.extend(claimed, token="relay")
    await store.announce("relay")
    values = {"key": "a", "fingerprint": "f", "message_id": "m", "owner": "o", "sending": False}
    await keys.claim(values, lease=1, expires=1)
    await flags.write("pause", "on", expected=None)
    await engine.dispose()
    assert (len(levels) >= 6, set(levels)) == (True, {"read committed"})


async def test_looking_for_rows_does_not_wait_for_a_writer(store: OutboxStore) -> None:
    async with store.engine.begin() as connection:
        await connection.execute(insert(outbox_table).values(_plain("held")))
        async with asyncio.timeout(PATIENCE):
            assert await store.claim(10, token="relay") == []
            assert (await store.stats()).failed == 0


def _plain(name: str) -> dict[str, object]:
    moments = {"due": time.time(), "created": time.time()}
    return {"id": name, "message_id": name, "mailer": "default", "state": "open", "repeated": False, **moments} | {
        "progress": "{}",
        "head": b"",
        "parts": b"",
    }


_CLAIMER = """
import asyncio, json, sys
from openviper import conf, db
from openviper.db.outbox.store import OutboxStore

async def main(token):
    store = OutboxStore(await db.engine())
    print("ready", flush=True)
    sys.stdin.readline()
    claimed = []
    while rows := await store.claim(7, token=token):
        claimed += [row.id for row in rows]
    print(json.dumps(claimed), flush=True)

conf.settings.configure(DATABASE_URL=sys.argv[1])
asyncio.run(main(sys.argv[2]))
"""


async def test_of_several_processes_each_row_is_claimed_by_one(store: OutboxStore, database_url: str) -> None:
    ids = [new_row_id() for _ in range(600)]
    await store.insert([(row_id, row()) for row_id in ids], token=None)

    def claim_all() -> list[list[str]]:
        command = [sys.executable, "-c", _CLAIMER, database_url]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen([*command, f"process{n}"], **pipes) for n in range(3)]  # type: ignore[call-overload]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        return [json.loads(process.communicate(timeout=PATIENCE)[0]) for process in processes]

    claimed = await asyncio.to_thread(claim_all)
    assert sorted(row_id for each in claimed for row_id in each) == sorted(ids)
    assert sum(bool(each) for each in claimed) > 1
