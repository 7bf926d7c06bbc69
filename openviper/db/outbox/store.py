"""Read and write the outbox: insert, claim, extend leases, record answers. Times are the database's own."""

import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Engine,
    Select,
    String,
    Text,
    Update,
    and_,
    any_,
    bindparam,
    case,
    cast,
    delete,
    false,
    func,
    insert,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from openviper.db.engines import ONE_STATEMENT, ONLY_READS, read_committed
from openviper.db.outbox.clock import Clock, Now
from openviper.db.outbox.rows import LEASE, MARKING, Answer, ClaimedRow, FailedRow, NewRow, OutboxStats
from openviper.db.outbox.statements import Statement
from openviper.db.outbox.tables import DATABASE_ID
from openviper.db.outbox.tables import key_table as _key
from openviper.db.outbox.tables import meta_table as _meta
from openviper.db.outbox.tables import outbox_table as _outbox
from openviper.db.outbox.tables import part_table as _part

__all__ = ["OutboxStore", "delete_rows", "insert_rows", "new_row_id"]

_RELAY = "relay:"  # of the names in the table of values
_INLINE_BYTES = 16 * 1024  # parts up to this size are in the row itself: one INSERT and one DELETE for most messages
_MOST_VALUES = 500  # ids in one statement: databases limit the parameters


def new_row_id() -> str:
    """Return a new id; later ones sort after earlier ones, so that an index grows at its end."""
    return f"{int(time.time() * 1000):012x}{secrets.token_hex(10)}"


_GIVEN = ("id", "message_id", "mailer", "claim", "progress", "head", "parts")
_INSERT = Statement(
    insert(_outbox).values(
        **{name: bindparam(name) for name in _GIVEN},
        state=literal_column("'open'"),
        repeated=false(),
        created=Clock(),
        due=Clock() + bindparam("due_in", type_=Double()),
        lease=Clock() + bindparam("lease_for", type_=Double()),
    )
)


def insert_rows(connection: Connection, rows: Sequence[tuple[str, NewRow]], *, token: str | None) -> None:
    """Insert rows under these ids in the transaction of ``connection``.

    ``token``: of the process that has them, for as long as a lease lasts; None: the relay takes them when they are due.
    A row that is due later is never leased.
    """
    now = time.time()
    values = []
    parts = []
    for row_id, row in rows:
        inline = _is_inline(row)
        leased = token is not None and row.due_at is None
        values.append(
            {
                "id": row_id,
                "message_id": row.message_id,
                "mailer": row.mailer,
                "claim": token if leased else None,
                "lease_for": LEASE if leased else None,
                # Relative: the clocks of this process and of the database may differ.
                "due_in": 0.0 if row.due_at is None else max(0.0, row.due_at - now),
                "progress": row.progress,
                "head": row.head,
                "parts": b"".join(row.parts) if inline else None,
            }
        )
        if not inline:
            parts += [{"outbox_id": row_id, "number": n, "content": content} for n, content in enumerate(row.parts)]
    if len(values) == 1:
        _INSERT.run(connection, values[0])
    else:
        _INSERT.run_many(connection, values)
    if parts:
        connection.execute(insert(_part), parts)


def _is_inline(row: NewRow) -> bool:
    return sum(map(len, row.parts)) <= _INLINE_BYTES


class OutboxStore:
    """The outbox of one database, for the event loop that ``engine`` belongs to. Each method is a transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.on_sqlite = engine.dialect.name == "sqlite"
        self.same_database: WeakSet[Engine] = WeakSet()  # further engines on this database
        self._database_id: str | None = None
        options: dict[str, Any] = {ONE_STATEMENT: True} if self.on_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._for_one_statement = engine.execution_options(**options)
        self._own = read_committed(engine)

    async def database_id(self) -> str | None:
        """Return the random id of the database; None if no process has given it one yet."""
        if self._database_id is None:
            query = select(_meta.c.value).where(_meta.c.name == DATABASE_ID)
            async with self._own.connect() as connection:
                reading = await connection.execution_options(**{ONLY_READS: True})
                self._database_id = (await reading.execute(query)).scalar()
        return self._database_id

    async def insert(self, rows: Sequence[tuple[str, NewRow]], *, token: str | None) -> None:
        """Insert rows; ``token`` as for :func:`insert_rows`."""
        alone = len(rows) == 1 and _is_inline(rows[0][1])
        # BEGIN takes a round trip more on PostgreSQL, and several steps of the driver on SQLite.
        engine = self._for_one_statement if alone else self._own
        async with engine.begin() as connection:
            await connection.run_sync(insert_rows, rows, token=token)

    async def claim(self, limit: int, *, token: str) -> list[ClaimedRow]:
        """Claim at most ``limit`` rows that are due and that no process has, for the time of a lease."""
        if self.on_sqlite and not await self._anything_due():
            return []  # without waiting for the only writer
        async with self._own.begin() as connection:
            found = await connection.run_sync(_CLAIM[self.on_sqlite].run, {"most": limit, "token": token})
            rows = [ClaimedRow(*row)._replace(repeated=bool(row[-1])) for row in found]
        return sorted(rows, key=lambda row: row.id)

    async def _anything_due(self) -> bool:
        async with self._own.connect() as connection:
            reading = await connection.execution_options(**{ONLY_READS: True})
            return (await reading.execute(_ANY_DUE)).first() is not None

    async def parts(self, row_id: str) -> tuple[bytes, ...]:
        """Return a row's parts that are in a table of their own."""
        query = select(_part.c.content).where(_part.c.outbox_id == row_id).order_by(_part.c.number)
        async with self._own.connect() as connection:
            reading = await connection.execution_options(**{ONLY_READS: True})
            return tuple(bytes(content) for content in (await reading.execute(query)).scalars())

    async def extend(self, row_ids: Iterable[str], *, token: str) -> set[str]:
        """Begin the lease of these rows again; return those that this process still has."""
        kept: set[str] = set()
        async with self._own.begin() as connection:
            for ids in _slices(row_ids):
                statement = (
                    update(_outbox)
                    .where(_outbox.c.id.in_(ids), _outbox.c.claim == token)
                    .values(lease=Now() + LEASE)
                    .returning(_outbox.c.id)
                )
                kept.update((await connection.execute(statement)).scalars())
        return kept

    async def owned(self, row_ids: Iterable[str], *, token: str) -> set[str]:
        """Return those of these rows that this process still has; waits for no lock."""
        owned: set[str] = set()
        async with self._own.connect() as connection:
            reading = await connection.execution_options(**{ONLY_READS: True})
            for ids in _slices(row_ids):
                query = select(_outbox.c.id).where(_outbox.c.id.in_(ids), _outbox.c.claim == token)
                owned.update((await reading.execute(query)).scalars())
        return owned

    async def answer(self, answers: Mapping[str, Answer], *, token: str) -> set[str]:
        """Record how attempts at these rows ended, where this process still has them; return the ids of those rows.

        A row that another transaction has locked at this moment is left out, as one is that another process has.
        """
        deleted = [row_id for row_id, answer in answers.items() if answer.retry_in is None and not answer.keep]
        kept = {row_id: answer for row_id, answer in answers.items() if answer.retry_in is not None or answer.keep}
        done: set[str] = set()
        if kept:
            async with self._own.begin() as connection:
                for row_id in sorted(kept):
                    found = (await connection.execute(_kept_statement(row_id, kept[row_id], token))).scalars().all()
                    done.update(found)
                    if found and kept[row_id].head is not None:
                        await connection.execute(delete(_part).where(_part.c.outbox_id == row_id))
        if deleted:
            # On SQLite parts are deleted by a statement of their own.
            async with (self._own if self.on_sqlite else self._for_one_statement).begin() as connection:
                done.update(await connection.run_sync(delete_rows, deleted, token=token))
        return done

    async def mark(self, row_ids: Iterable[str], *, token: str) -> set[str]:
        """Note that attempts at these rows begin, and their leases again; return those that this process still has."""
        marked: set[str] = set()
        async with self._own.begin() as connection:
            for ids in _slices(row_ids):
                own = and_(_outbox.c.id.in_(ids), _outbox.c.claim == token)
                values = {"repeated": True, "lease": Now() + LEASE}
                statement = update(_outbox).where(own).values(values).returning(_outbox.c.id)
                marked.update((await connection.execute(statement)).scalars())
        return marked

    async def release(self, row_ids: Iterable[str], *, token: str, marked: Iterable[str] = ()) -> None:
        """Let the relay take these rows, whose messages have not been attempted, nor those that this has ``marked``."""
        unmarked = case((_outbox.c.id.in_(list(marked)), False), else_=_outbox.c.repeated)
        async with self._own.begin() as connection:
            for ids in _slices(row_ids):
                await connection.execute(
                    update(_outbox)
                    .where(_outbox.c.id.in_(ids), _outbox.c.claim == token)
                    .values(lease=None, claim=None, repeated=unmarked)
                )

    async def stats(self, mailer: str | None = None) -> OutboxStats:
        """Count the rows of ``mailer`` by their state; None: of all."""
        due, free = _outbox.c.due <= Now(), or_(_outbox.c.lease.is_(None), _outbox.c.lease <= Now())
        counts = (
            _count(and_(due, free)),
            _count(_outbox.c.due > Now()),
            _count(and_(due, _outbox.c.lease > Now())),
        )
        concerned = true() if mailer is None else _outbox.c.mailer == mailer
        first_due = func.min(case((and_(due, free), _outbox.c.due)))
        opened = select(*counts, Now() - func.min(_outbox.c.created), Now() - first_due).where(
            _outbox.c.state == "open", concerned
        )
        failed = select(func.count()).select_from(_outbox).where(_outbox.c.state == "failed", concerned)
        async with self._own.connect() as connection:
            reading = await connection.execution_options(**{ONLY_READS: True})
            waiting, later, in_hand, oldest, overdue = (await reading.execute(opened)).one()
            return OutboxStats(waiting, later, in_hand, (await reading.execute(failed)).scalar_one(), oldest, overdue)

    async def announce(self, token: str) -> None:
        """Note that the relay of ``token`` works, for the time of a lease."""
        name, value = f"{_RELAY}{token}", cast(Now() + LEASE, Text)
        async with self._own.begin() as connection:
            noted = await connection.execute(update(_meta).where(_meta.c.name == name).values(value=value))
            if not noted.rowcount:
                await connection.execute(insert(_meta).values(name=name, value=value))

    async def withdraw(self, token: str) -> None:
        """Note that the relay of ``token`` has ended, and forget those that died."""
        over = case((_meta.c.name.startswith(_RELAY), cast(_meta.c.value, Double)), else_=Now() + 1.0) <= Now()
        async with self._own.begin() as connection:
            await connection.execute(delete(_meta).where(or_(_meta.c.name == f"{_RELAY}{token}", over)))

    async def relays(self) -> int:
        """Count the relays that work."""
        # Only values that are times are cast: PostgreSQL may evaluate the conditions in any order.
        times = case((_meta.c.name.startswith(_RELAY), cast(_meta.c.value, Double)), else_=0.0)
        async with self._own.connect() as connection:
            reading = await connection.execution_options(**{ONLY_READS: True})
            query = select(func.count()).select_from(_meta).where(times > Now())
            return int((await reading.execute(query)).scalar_one())

    async def failed(self, limit: int | None = None) -> list[FailedRow]:
        """Return the failed rows, oldest first."""
        columns = (_outbox.c.id, _outbox.c.message_id, _outbox.c.head, _outbox.c.progress, _outbox.c.reason)
        query = (
            select(*columns, _outbox.c.failed_at, _outbox.c.mailer)
            .where(_outbox.c.state == "failed", _outbox.c.due > Now())
            .order_by(_outbox.c.failed_at, _outbox.c.id)
            .limit(limit)
        )
        async with self._own.connect() as connection:
            reading = await connection.execution_options(**{ONLY_READS: True})
            return [FailedRow(*row) for row in await reading.execute(query)]

    async def retry_failed(self, row_id: str, progress: str) -> bool:
        """Make a failed row due at once; False when it is failed no more."""
        statement = (
            update(_outbox)
            .where(_outbox.c.id == row_id, _outbox.c.state == "failed")
            .values(state="open", due=Now(), lease=None, claim=None, failed_at=None, reason=None, progress=progress)
        )
        async with self._own.begin() as connection:
            return bool((await connection.execute(statement)).rowcount)

    async def purge_failed(self, row_id: str) -> bool:
        """Delete a failed row; False when it is failed no more."""
        async with self._own.begin() as connection:
            return bool(await _delete(connection, and_(_outbox.c.id == row_id, _outbox.c.state == "failed")))

    async def drop_expired(self) -> int:
        """Delete failed rows, and keys, that have been kept for long enough; return how many rows."""
        expired = and_(_outbox.c.state == "failed", _outbox.c.due <= Now())
        async with self._own.connect() as connection:
            reading = await connection.execution_options(**{ONLY_READS: True})
            rows = (await reading.execute(select(_outbox.c.id).where(expired).limit(1))).first()
            keys = (await reading.execute(select(_key.c.key).where(_key.c.expires <= Now()).limit(1))).first()
        if rows is None and keys is None:
            return 0
        async with self._own.begin() as connection:
            await connection.execute(delete(_key).where(_key.c.expires <= Now()))
            return await _delete(connection, expired)


_ONE_OF_OWN = select(_outbox.c.id).where(
    _outbox.c.id == any_(bindparam("ids", type_=postgresql.ARRAY(String))), _outbox.c.claim == bindparam("token")
)
_DELETE_ON_POSTGRESQL = Statement(
    delete(_outbox)
    .where(
        _outbox.c.id.in_(_ONE_OF_OWN.order_by(_outbox.c.id).with_for_update(skip_locked=True)),
        # A crash of the server may bring rows back, which are then sent twice; no other data is concerned. Here, and
        # not before in a transaction around it, which takes three more round trips.
        select(func.set_config(*map(literal_column, ("'synchronous_commit'", "'off'", "true")))).scalar_subquery()
        == literal_column("'off'"),
    )
    .returning(_outbox.c.id, literal_column("false"))
)
_IDS = func.json_each(bindparam("ids", type_=Text)).table_valued("value")
_DELETE_ON_SQLITE = Statement(
    delete(_outbox)
    .where(_outbox.c.id.in_(select(_IDS.c.value)), _outbox.c.claim == bindparam("token"))
    .returning(_outbox.c.id, _outbox.c.parts.is_(None))
)


def delete_rows(connection: Connection, row_ids: Iterable[str], *, token: str) -> set[str]:
    """Delete those of the rows that the process of ``token`` has, and return their ids.

    On PostgreSQL the transaction of ``connection`` must have no other purpose: its commit does not wait for the disk.
    """
    deleted: set[str] = set()
    on_sqlite = connection.dialect.name == "sqlite"
    for ids in _slices(row_ids):
        if on_sqlite:
            found = _DELETE_ON_SQLITE.run(connection, {"ids": json.dumps(ids), "token": token})
        else:
            found = _DELETE_ON_POSTGRESQL.run(connection, {"ids": ids, "token": token})
        deleted.update(row_id for row_id, _ in found)
        # Foreign keys are enforced only where the application has switched them on.
        if apart := [row_id for row_id, in_other_table in found if in_other_table]:
            connection.execute(delete(_part).where(_part.c.outbox_id.in_(apart)))
    return deleted


async def _delete(connection: AsyncConnection, where: ColumnElement[bool]) -> int:
    await connection.execute(delete(_part).where(_part.c.outbox_id.in_(select(_outbox.c.id).where(where))))
    return (await connection.execute(delete(_outbox).where(where))).rowcount


_DUE: Select[Any] = select(_outbox.c.id).where(
    _outbox.c.state == "open",
    _outbox.c.due <= Now(),
    or_(_outbox.c.lease.is_(None), _outbox.c.lease <= Now()),
)


_ANY_DUE = _DUE.limit(1)


_MARKS = func.coalesce(_outbox.c.claim, "").startswith(MARKING)


def _claim(picked: ColumnElement[bool]) -> Update:
    return (
        update(_outbox)
        .where(picked)
        .values(
            claim=bindparam("token"),
            lease=Now() + LEASE,
            # Of the row as it was: a lease that nobody ended was left by a process that died, or was stopped. Under a
            # token that marks attempts, only what it marked may have been sent.
            repeated=or_(_outbox.c.repeated, and_(_outbox.c.lease.is_not(None), not_(_MARKS))),
        )
    )


def _claim_statement(on_sqlite: bool) -> Any:
    picked = _DUE.order_by(_outbox.c.due).limit(bindparam("most"))
    if on_sqlite:
        statement = _claim(_outbox.c.id.in_(picked))
    else:
        # Without SKIP LOCKED two claims at a time return the same rows; materialised, so that LIMIT is applied once.
        locked = picked.with_for_update(skip_locked=True).cte("picked").prefix_with("MATERIALIZED")
        statement = _claim(_outbox.c.id == locked.c.id)
    columns = (_outbox.c.id, _outbox.c.message_id, _outbox.c.mailer, _outbox.c.head, _outbox.c.parts)
    return statement.returning(*columns, _outbox.c.progress, _outbox.c.repeated)


_CLAIM = {on_sqlite: Statement(_claim_statement(on_sqlite)) for on_sqlite in (True, False)}


def _kept_statement(row_id: str, answer: Answer, token: str) -> Any:
    values: dict[str, Any] = {"claim": None, "lease": None, "progress": answer.progress}
    values |= {"repeated": answer.repeated}
    if answer.retry_in is not None:
        values |= {"due": Now() + answer.retry_in}
    else:
        values |= {"state": "failed", "failed_at": Now(), "due": Now() + answer.keep, "reason": answer.reason}
        if answer.head is not None:
            values |= {"head": answer.head, "parts": b""}
    return (
        update(_outbox).where(_outbox.c.id == row_id, _outbox.c.claim == token).values(values).returning(_outbox.c.id)
    )


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.count(case((condition, 1), else_=null()))


def _slices(row_ids: Iterable[str]) -> Iterable[list[str]]:
    ids = sorted(row_ids)
    return [ids[start : start + _MOST_VALUES] for start in range(0, len(ids), _MOST_VALUES)]
