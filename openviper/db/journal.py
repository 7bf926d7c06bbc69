"""Keep the journal: a table with the final answer to each recipient of each message, whose address is a keyed hash."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import (
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    delete,
    func,
    inspect,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from openviper.db.engines import ONLY_READS

__all__ = ["JournalRow", "JournalStats", "JournalStore", "create_journal", "journal_table", "missing_columns"]

_NAME = "email_journal"
_MOST_VALUES = 500  # hashes in one statement: databases limit the parameters


class JournalRow(NamedTuple):
    """What became of one message for one recipient; ``time`` is Unix seconds by the clock of the process that sent it.

    ``entry``: a random id of the row, so that it is there once although it was written twice. ``recipient``: the keyed
    hash of the address. ``code``: the server's reply code; None where there was none.
    """

    entry: str
    id: str
    ref: str | None
    recipient: str
    stream: str | None
    outcome: str
    code: int | None
    time: float


class JournalStats(NamedTuple):
    """The journal's rows, and the newest one's time (Unix seconds); None without any."""

    rows: int
    newest: float | None


def journal_table(metadata: MetaData) -> Table:
    """Return the table ``email_journal``, and add it to ``metadata`` for your migrations if it is missing there."""
    known = metadata.tables.get(_NAME)
    if known is not None:
        return known
    table = Table(
        _NAME,
        metadata,
        Column("entry", String(32), primary_key=True),
        Column("id", Text, nullable=False),  # the Message-ID
        Column("ref", Text),
        Column("recipient", String(64), nullable=False),
        Column("stream", Text),
        Column("outcome", String(16), nullable=False),
        Column("code", Integer),
        Column("time", Double, nullable=False),
    )
    for name in ("id", "ref", "recipient", "time"):
        Index(f"{_NAME}_{name}", table.c[name])
    return table


_metadata = MetaData()
_table = journal_table(_metadata)


async def create_journal(engine: AsyncEngine) -> bool:
    """Create the table on ``engine`` unless it exists; True if it did not."""
    missing = await missing_columns(engine)
    async with engine.begin() as connection:
        await connection.run_sync(_metadata.create_all)
    return missing == [_NAME]


async def missing_columns(engine: AsyncEngine) -> list[str]:
    """Return the columns that the table on ``engine`` lacks, or the table's name if there is none."""
    async with engine.connect() as connection:
        reading = await connection.execution_options(**{ONLY_READS: True})
        inspected = await reading.run_sync(
            lambda sync: (
                [column["name"] for column in inspect(sync).get_columns(_NAME)]
                if inspect(sync).has_table(_NAME)
                else None
            )
        )
    if inspected is None:
        return [_NAME]
    return [f"{_NAME}.{column.name}" for column in _table.columns if column.name not in inspected]


class JournalStore:
    """Reads and writes the journal of one database. Each method is a transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._on_sqlite = engine.dialect.name == "sqlite"

    async def insert(self, rows: Sequence[JournalRow]) -> None:
        """Insert rows; those that are there already stay."""
        build = sqlite.insert if self._on_sqlite else postgresql.insert
        # Not engine.begin(), an async generator: the last rows are written when the loop has closed those.
        async with self.engine.connect() as connection, connection.begin():
            await connection.execute(build(_table).on_conflict_do_nothing(), [row._asdict() for row in rows])

    async def find(
        self, *, message_id: str | None = None, ref: str | None = None, recipient: str | None = None, limit: int
    ) -> list[JournalRow]:
        """Return the newest rows that fit everything given, at most ``limit``, oldest first."""
        wanted = {"id": message_id, "ref": ref, "recipient": recipient}
        conditions = [_table.c[name] == value for name, value in wanted.items() if value is not None]
        query = select(_table).where(*conditions).order_by(_table.c.time.desc(), _table.c.entry).limit(limit)
        async with self.engine.connect() as connection:
            reading = await connection.execution_options(**{ONLY_READS: True})
            rows = [JournalRow(*row) for row in await reading.execute(query)]
        return rows[::-1]

    async def stats(self) -> JournalStats:
        """Count the rows."""
        async with self.engine.connect() as connection:
            reading = await connection.execution_options(**{ONLY_READS: True})
            return JournalStats(*(await reading.execute(select(func.count(), func.max(_table.c.time)))).one())

    async def purge(self, keep: float, *, most: int) -> int:
        """Delete at most ``most`` of the rows that are older than ``keep`` seconds; return how many."""
        old = select(_table.c.entry).where(_table.c.time < time.time() - keep).order_by(_table.c.time).limit(most)
        async with self.engine.connect() as connection:
            reading = await connection.execution_options(**{ONLY_READS: True})
            entries = list((await reading.execute(old)).scalars())
        if not entries:
            return 0
        async with self.engine.begin() as connection:
            for start in range(0, len(entries), _MOST_VALUES):
                some = entries[start : start + _MOST_VALUES]
                await connection.execute(delete(_table).where(_table.c.entry.in_(some)))
        return len(entries)

    async def erase(self, recipient: str, address: str) -> int:
        """Delete the rows of a keyed hash, and return how many; other rows lose a ref with the address, in any case."""
        named = func.lower(_table.c.ref).contains(address.lower(), autoescape=True)
        async with self.engine.begin() as connection:
            await connection.execute(update(_table).where(named).values(ref=None))
            return (await connection.execute(delete(_table).where(_table.c.recipient == recipient))).rowcount
