"""Overwrite what deleted rows have left in a database's files."""

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["compact"]


async def compact(engine: AsyncEngine) -> str | None:
    """Rewrite a SQLite database without its free pages, and empty its write-ahead log; None if that was done.

    Otherwise return what to do: SQLite does not allow it while others use the database.
    """
    try:
        async with engine.connect() as connection:
            outside = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await outside.exec_driver_sql("VACUUM")
            busy = (await outside.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")).one()[0]
    except DBAPIError as error:
        name = type(error.orig).__name__
        return f"the database was not rewritten ({name}): repeat the command when fewer connections use it"
    if busy:
        return "others use the database, so its write-ahead log was not emptied: repeat the command"
    return None
