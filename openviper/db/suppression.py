"""Keep a table of addresses that must not be mailed: bounces, complaints, and readers who opted out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Column, DateTime, MetaData, String, Table, delete, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from openviper.db.engines import create_tables, engine, lacks_table
from openviper.db.errors import SuppressionNotCreated
from openviper.db.hashing import keyed_hash
from openviper.network import mail_key
from openviper.text import shown

__all__ = [
    "SuppressedAddress",
    "add_suppression",
    "create_suppression_table",
    "find_suppressed",
    "hash_suppression",
    "list_suppressions",
    "remove_suppression",
    "suppression_table",
]

_NAME = "email_suppression"
_HASHED = "hash:"  # before the keyed hash of an address that was erased
_MOST_VALUES = 500  # addresses in one statement: SQLite and others limit the parameters


class SuppressedAddress(NamedTuple):
    """A row of the table; ``stream`` None concerns every stream."""

    address: str
    stream: str | None
    reason: str
    since: datetime


def suppression_table(metadata: MetaData) -> Table:
    """Return the table ``email_suppression``, and add it to ``metadata`` for your migrations if it is missing there."""
    known = metadata.tables.get(_NAME)
    if known is not None:
        return known
    return Table(
        _NAME,
        metadata,
        # As mail_key returns it; 64 + 1 + 255 octets (RFC 5321 section 4.5.3.1).
        Column("address", String(320), primary_key=True),
        Column("stream", String(100), primary_key=True),  # empty: every stream
        Column("reason", String(200), nullable=False),
        Column("since", DateTime(timezone=True), nullable=False),
    )


def _hash(address: str) -> str | None:
    """Return how an erased address is stored; None where nothing can be."""
    found = keyed_hash(address)
    return None if found is None else f"{_HASHED}{found}"


_metadata = MetaData()
_table = suppression_table(_metadata)


async def create_suppression_table() -> None:
    """Create the table on ``DATABASE_URL`` unless it exists."""
    await create_tables(_metadata)


async def add_suppression(address: str, reason: str, stream: str | None = None) -> None:
    """Suppress ``address``, for one stream or, with None, for all streams; a second call replaces the reason.

    Raises:
        SuppressionNotCreated: there is no table.
        ValueError: ``address`` is not a bare address, so it would never be found.
    """
    if "@" not in address or address.rstrip().endswith(">"):
        raise ValueError(
            f"add_suppression(): {shown(address)} is not an address; give user@example.com, without a name"
        )
    values = {"address": mail_key(address), "stream": stream or "", "reason": reason[:200], "since": datetime.now(UTC)}
    try:
        await _write(values)
    except IntegrityError:  # the same report came twice, at the same moment; its row is there now
        await _write(values)


async def remove_suppression(address: str, stream: str | None = None) -> bool:
    """Allow mail to ``address`` again; return True if it was suppressed for this very ``stream`` (None: for all).

    Also works for an erased address, of which only the keyed hash is left.
    """
    with _table_required():
        async with (await engine()).begin() as connection:
            return await _delete(connection, address, stream or "")


async def hash_suppression(address: str) -> int:
    """Replace ``address`` by its keyed hash, which still suppresses it; return in how many rows.

    The reasons, which may name the address, become "erased".

    Raises:
        ValueError: the address is suppressed, and the settings have no key.
    """
    key, hashed = mail_key(address), _hash(address)
    with _table_required():
        async with (await engine()).begin() as connection:
            found = (await connection.execute(select(_table).where(_table.c.address == key))).all()
            if found and hashed is None:
                raise ValueError("the address is suppressed, and its hash can be kept only with a key")
            for row in found:
                where = (_table.c.address == hashed, _table.c.stream == row.stream)
                await connection.execute(delete(_table).where(*where))
                values = {"address": hashed, "reason": "erased"}
                same = (_table.c.address == key, _table.c.stream == row.stream)
                await connection.execute(update(_table).where(*same).values(values))
    return len(found)


async def list_suppressions() -> list[SuppressedAddress]:
    """Return every row, oldest first; that of an erased address has ``hash:`` and its keyed hash."""
    with _table_required():
        async with (await engine()).connect() as connection:
            rows = (await connection.execute(select(_table).order_by(_table.c.since))).all()
    return [SuppressedAddress(row.address, row.stream or None, row.reason, row.since) for row in rows]


async def find_suppressed(addresses: Sequence[str], stream: str | None) -> dict[str, str | None]:
    """Return the suppressed ones among ``addresses``, each with the stream of its row: None means all streams.

    Made for ``EMAIL["suppress"]``. If an address has rows for this stream and for all streams, the stream's own row is
    returned. An erased address is found by its keyed hash.
    """
    found: dict[str, str | None] = {}
    stored = {mail_key(address): mail_key(address) for address in addresses}
    stored |= {hashed: address for address in stored if (hashed := _hash(address)) is not None}
    wanted = list(stored)
    with _table_required():
        async with (await engine()).connect() as connection:
            for start in range(0, len(wanted), _MOST_VALUES):
                part = wanted[start : start + _MOST_VALUES]
                query = select(_table.c.address, _table.c.stream).where(
                    _table.c.address.in_(part), _table.c.stream.in_(["", stream or ""])
                )
                for row in await connection.execute(query):
                    address = stored[row.address]
                    found[address] = row.stream or found.get(address)
    return found


@contextmanager
def _table_required() -> Iterator[None]:
    """Raise SuppressionNotCreated where a statement of the block finds no table."""
    try:
        yield
    except DBAPIError as error:
        error.hide_parameters = True  # they are addresses
        if not lacks_table(error):
            raise
        raise SuppressionNotCreated(
            f"there is no table {_NAME} on DATABASE_URL; create it with `await create_suppression_table()`, or "
            "`viperctl email suppressed add`"
        ) from None


async def _write(values: dict[str, Any]) -> None:
    with _table_required():
        async with (await engine()).begin() as connection:
            same = (_table.c.address == values["address"], _table.c.stream == values["stream"])
            if not (await connection.execute(update(_table).where(*same).values(values))).rowcount:
                await connection.execute(insert(_table).values(values))


async def _delete(connection: AsyncConnection, address: str, stream: str) -> bool:
    stored = [each for each in (mail_key(address), _hash(address)) if each is not None]
    where = (_table.c.address.in_(stored), _table.c.stream == stream)
    return bool((await connection.execute(delete(_table).where(*where))).rowcount)
