import asyncio

from alembic import context
from database import Base
from openviper.db import dispose, engine
from sqlalchemy import Connection


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


async def main() -> None:
    async with (await engine()).begin() as connection:
        await connection.run_sync(migrate)
    await dispose()


asyncio.run(main())
