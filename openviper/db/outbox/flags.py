"""Keep small values that all processes read, in the table ``email_meta``."""

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from openviper.db.engines import ONLY_READS, read_committed
from openviper.db.outbox.clock import Now
from openviper.db.outbox.tables import meta_table as _meta

__all__ = ["FlagRows"]


class FlagRows:
    """The values of one database, by name."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = read_committed(engine)

    async def read(self, name: str) -> tuple[str | None, float]:
        """Return a value (None: there is none), and the database's time in Unix seconds."""
        value = select(_meta.c.value).where(_meta.c.name == name).scalar_subquery()
        async with self.engine.connect() as connection:
            reading = await connection.execution_options(**{ONLY_READS: True})
            found = (await reading.execute(select(value, Now()))).one()
        return found[0], float(found[1])

    async def write(self, name: str, value: str, *, expected: str | None) -> bool:
        """Replace a value; False if it is not ``expected`` any more. "" expects none; None expects nothing."""
        async with self.engine.begin() as connection:
            if expected:
                changed = update(_meta).where(_meta.c.name == name, _meta.c.value == expected).values(value=value)
                return bool((await connection.execute(changed)).rowcount)
            into = sqlite.insert if self.engine.dialect.name == "sqlite" else postgresql.insert
            added = into(_meta).values(name=name, value=value)
            if expected is None:
                added = added.on_conflict_do_update(index_elements=[_meta.c.name], set_={"value": value})
            else:
                added = added.on_conflict_do_nothing()
            return bool((await connection.execute(added)).rowcount)

    async def dispose(self) -> None:
        """Close the connections."""
        await self.engine.dispose()
