"""The outbox's tables, in an application's metadata or created by us."""

import secrets
from typing import Any

from sqlalchemy import (
    DDL,
    Boolean,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    event,
    insert,
    inspect,
    select,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import BLANK_SCHEMA

__all__ = [
    "DATABASE_ID",
    "create_outbox_tables",
    "database_id",
    "key_table",
    "meta_table",
    "missing_tables",
    "outbox_table",
    "outbox_tables",
    "part_table",
]

_OUTBOX, _PART, _KEY, _META = _NAMES = ("email_outbox", "email_outbox_part", "email_key", "email_meta")
DATABASE_ID = "database"
"""The name in ``email_meta`` of a random id of the database."""

# Rows live for milliseconds to days, so that a share of the table says nothing about the dead ones.
_AUTOVACUUM = "SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000)"


def outbox_tables(metadata: MetaData) -> tuple[Table, ...]:
    """Add the outbox's tables to ``metadata``, for your migrations, and return them; tables already in it are kept.

    ``email_outbox``: a row for each message that is not delivered yet or has failed. ``email_outbox_part``: the parts
    of large messages, so that claiming a row does not move them. ``email_key``: idempotency keys. ``email_meta``: a
    random id of this database, and the brake. The tables have no schema, even if ``metadata`` has one, because the
    outbox's statements name none. To put them into a schema, use an engine with ``schema_translate_map={None: ...}``.
    """
    if _OUTBOX in metadata.tables:
        return tuple(metadata.tables[name] for name in _NAMES)
    outbox = Table(
        _OUTBOX,
        metadata,
        Column("id", String(32), primary_key=True),
        Column("message_id", Text, nullable=False),
        Column("mailer", String(100), nullable=False),
        Column("state", String(8), nullable=False),  # open or failed
        # Unix seconds by the database's clock, as all times here. An open row may be taken once both have passed.
        Column("due", Double, nullable=False),
        Column("lease", Double),  # NULL: no process has the row
        Column("claim", String(32)),  # the token of the process that has the row
        Column("repeated", Boolean, nullable=False),  # claimed after a lease that nobody ended
        Column("created", Double, nullable=False),
        Column("failed_at", Double),  # then ``due`` is when the row is dropped
        Column("progress", Text, nullable=False),
        Column("reason", Text),
        Column("head", LargeBinary, nullable=False),
        Column("parts", LargeBinary),  # NULL: in the other table
        schema=BLANK_SCHEMA,
    )
    Index("email_outbox_due", outbox.c.state, outbox.c.due)
    part = Table(
        _PART,
        metadata,
        Column("outbox_id", String(32), ForeignKey(outbox.c.id, ondelete="CASCADE"), primary_key=True),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("content", LargeBinary, nullable=False),
        schema=BLANK_SCHEMA,
    )
    key = Table(
        _KEY,
        metadata,
        Column("key", String(200), primary_key=True),
        Column("fingerprint", String(64), nullable=False),
        Column("message_id", Text, nullable=False),
        Column("owner", String(64), nullable=False),
        Column("sending", Boolean, nullable=False),  # the message may have been sent if its process dies now
        Column("until", Double, nullable=False),  # the end of the lease
        Column("expires", Double, nullable=False),  # from when on the key is free
        Column("result", Text),  # the receipt; NULL: in flight
        schema=BLANK_SCHEMA,
    )
    Index("email_key_expires", key.c.expires)
    meta = Table(
        _META,
        metadata,
        Column("name", String(100), primary_key=True),
        Column("value", Text, nullable=False),
        schema=BLANK_SCHEMA,
    )
    tables = (outbox, part, key, meta)
    for table in (outbox, part):
        statement: Any = DDL(f"ALTER TABLE %(fullname)s {_AUTOVACUUM}")  # type: ignore[no-untyped-call]
        event.listen(table, "after_create", statement.execute_if(dialect="postgresql"))
    return tables


own_metadata = MetaData()
outbox_table, part_table, key_table, meta_table = outbox_tables(own_metadata)


async def create_outbox_tables(engine: AsyncEngine) -> list[str]:
    """Create the tables that ``engine``'s database lacks; return their names."""
    missing = await missing_tables(engine)
    async with engine.begin() as connection:
        await connection.run_sync(own_metadata.create_all)
    return missing


async def missing_tables(engine: AsyncEngine) -> list[str]:
    """Return the names of tables and columns that ``engine``'s database lacks."""
    async with engine.connect() as connection:
        return await connection.run_sync(_missing)


def _missing(connection: Connection) -> list[str]:
    found = inspect(connection)
    lacking: list[str] = []
    for table in own_metadata.sorted_tables:
        if not found.has_table(table.name):
            lacking.append(table.name)
            continue
        columns: set[Any] = {column["name"] for column in found.get_columns(table.name)}
        lacking += [f"{table.name}.{column.name}" for column in table.columns if column.name not in columns]
    return sorted(lacking)


def database_id(connection: Connection) -> str:
    """Return the random id of the database, which tells a copy under another name from another database.

    The first process that asks gives it one.
    """
    asked = select(meta_table.c.value).where(meta_table.c.name == DATABASE_ID)
    found = connection.execute(asked).scalar()
    if found is None:
        try:
            with connection.begin_nested():
                connection.execute(insert(meta_table).values(name=DATABASE_ID, value=secrets.token_hex(16)))
        except IntegrityError:  # another process was faster
            pass
        found = connection.execute(asked).scalar_one()
    return str(found)
