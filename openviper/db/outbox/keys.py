"""Keep idempotency keys in the outbox's database, each claimed in a short transaction of its own."""

from typing import Any, NamedTuple

from sqlalchemy import and_, bindparam, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from openviper.db.engines import ONLY_READS, read_committed
from openviper.db.outbox.clock import Now
from openviper.db.outbox.tables import key_table as _key

__all__ = ["KeyRow", "KeyRows"]

_ROUNDS = 3


class KeyRow(NamedTuple):
    """A key that a send has. ``result`` None: that send goes on, unless its ``lease`` has ended."""

    fingerprint: str
    message_id: str
    result: str | None
    leased: bool


class KeyRows:
    """The keys of one database. A key is free once its row has expired."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = read_committed(engine)

    async def claim(self, values: dict[str, Any], *, lease: float, expires: float) -> KeyRow | None:
        """Claim a key if it is free, in one statement; return the row of the send that has it, or None.

        ``values``: key, fingerprint, message_id, owner, sending. ``lease`` and ``expires`` are seconds from now.
        """
        for _ in range(_ROUNDS):  # a key may become free between the two statements
            if await self._write({**values, "result": None}, lease, expires, taken_by=None):
                return None
            query = select(_key.c.fingerprint, _key.c.message_id, _key.c.result, _key.c.until > Now()).where(
                _key.c.key == values["key"], _key.c.expires > Now()
            )
            async with self._engine.connect() as connection:
                reading = await connection.execution_options(**{ONLY_READS: True})
                found = (await reading.execute(query)).first()
            if found is not None:
                return KeyRow(found[0], found[1], found[2], bool(found[3]))
        return KeyRow(values["fingerprint"], values["message_id"], None, leased=True)

    async def renew(self, key: str, owner: str, *, sending: bool, lease: float, expires: float) -> bool:
        """Begin a lease anew; False if the key is another send's, or done."""
        statement = (
            update(_key)
            .where(_key.c.key == key, _key.c.owner == owner, _key.c.result.is_(None))
            .values(sending=sending, until=Now() + lease, expires=Now() + expires)
        )
        async with self._engine.begin() as connection:
            return bool((await connection.execute(statement)).rowcount)

    async def finish(self, values: dict[str, Any], *, expires: float) -> None:
        """Record ``values["result"]`` for ``expires`` seconds, unless another send has the key by now."""
        await self._write(values, 0.0, expires, taken_by=values["owner"])

    async def release(self, key: str, owner: str) -> None:
        """Free the key, unless another send has it by now or it is done."""
        own = and_(_key.c.key == key, _key.c.owner == owner, _key.c.result.is_(None))
        async with self._engine.begin() as connection:
            await connection.execute(delete(_key).where(own))

    async def _write(self, values: dict[str, Any], lease: float, expires: float, *, taken_by: str | None) -> bool:
        """Insert the row, or replace one that has expired or is an unfinished one of ``taken_by``; True if it did."""
        insert = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
        written = {**values, "until": Now() + lease, "expires": Now() + expires}
        own = and_(_key.c.owner == bindparam("taken_by", taken_by), _key.c.result.is_(None))
        statement = (
            insert(_key)
            .values(written)
            .on_conflict_do_update(index_elements=[_key.c.key], set_=written, where=or_(_key.c.expires <= Now(), own))
            .returning(_key.c.key)
        )
        async with self._engine.begin() as connection:
            return (await connection.execute(statement)).first() is not None
