"""Read every row of the outbox and of its keys, and change or delete single ones: to find and to erase."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from openviper.db.engines import ONLY_READS, read_committed
from openviper.db.outbox.clock import Now
from openviper.db.outbox.tables import key_table as _key
from openviper.db.outbox.tables import outbox_table as _outbox
from openviper.db.outbox.tables import part_table as _part

__all__ = ["KeptRow", "OutboxTraces"]

_PAGE = 200

_FREE = or_(_outbox.c.lease.is_(None), _outbox.c.lease <= Now())


class KeptRow(NamedTuple):
    """A row in any state. ``due``: Unix seconds; ``leased``: a process has it in hand."""

    id: str
    message_id: str
    mailer: str
    state: str
    due: float
    leased: bool
    later: bool
    progress: str
    reason: str | None
    head: bytes
    failed_at: float | None

    def __repr__(self) -> str:
        return f"<KeptRow {self.message_id}>"


class OutboxTraces:
    """The rows of one database, read in pages. ``limit``: seconds for each statement."""

    def __init__(self, engine: AsyncEngine, *, limit: float) -> None:
        self._limit = limit
        self._engine = read_committed(engine)

    async def rows(self) -> AsyncIterator[KeptRow]:
        """Yield every row without its parts."""
        last = ""
        columns = (_outbox.c.id, _outbox.c.message_id, _outbox.c.mailer, _outbox.c.state, _outbox.c.due)
        more = (_outbox.c.progress, _outbox.c.reason, _outbox.c.head, _outbox.c.failed_at)
        while True:
            query = (
                select(*columns, _FREE.label("free"), _outbox.c.due > Now(), *more)
                .where(_outbox.c.id > last)
                .order_by(_outbox.c.id)
                .limit(_PAGE)
            )
            found = await self._read(query)
            for row in found:
                values: list[Any] = list(row)
                values[5], values[6] = not row[5], bool(row[6])
                yield KeptRow(*values)
            if len(found) < _PAGE:
                return
            last = found[-1][0]

    async def remove(self, row: KeptRow) -> bool:
        """Delete a row that no process has in hand."""
        own = select(_outbox.c.id).where(_outbox.c.id == row.id, _FREE)
        async with asyncio.timeout(self._limit), self._engine.begin() as connection:
            await connection.execute(delete(_part).where(_part.c.outbox_id.in_(own)))
            return bool((await connection.execute(delete(_outbox).where(_outbox.c.id == row.id, _FREE))).rowcount)

    async def change(self, row: KeptRow, *, head: bytes, progress: str, reason: str | None) -> bool:
        """Replace a row's texts if they are as they were read, and no process has it in hand."""
        same = and_(_outbox.c.id == row.id, _outbox.c.head == row.head, _outbox.c.progress == row.progress, _FREE)
        statement = update(_outbox).where(same).values(head=head, progress=progress, reason=reason)
        async with asyncio.timeout(self._limit), self._engine.begin() as connection:
            return bool((await connection.execute(statement)).rowcount)

    async def keys(self) -> list[tuple[str, str | None]]:
        """Return every idempotency key with the stored receipt; None where there is none yet."""
        return [(row[0], row[1]) for row in await self._read(select(_key.c.key, _key.c.result))]

    async def remove_key(self, key: str) -> None:
        """Delete a key."""
        async with asyncio.timeout(self._limit), self._engine.begin() as connection:
            await connection.execute(delete(_key).where(_key.c.key == key))

    async def change_key(self, key: str, result: str) -> None:
        """Replace a key's stored receipt."""
        async with asyncio.timeout(self._limit), self._engine.begin() as connection:
            await connection.execute(update(_key).where(_key.c.key == key).values(result=result))

    async def _read(self, query: Any) -> list[Any]:
        async with asyncio.timeout(self._limit), self._engine.connect() as connection:
            reading = await connection.execution_options(**{ONLY_READS: True})
            return list(await reading.execute(query))
