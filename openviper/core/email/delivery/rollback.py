"""Run code whose changes and mail must not last, such as a preview."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from openviper.core.email.settings import has_database
from openviper.db.transaction import Record, entered

__all__ = ["rolled_back"]


class _RollBack(Exception):
    pass


@asynccontextmanager
async def rolled_back() -> AsyncIterator[None]:
    """Run a block in a transaction that is rolled back at its end; mail sent in the block is discarded.

    Without the setting ``DATABASE_URL`` there is no transaction, and mail is discarded all the same. Mail with
    ``background=False`` leaves at once, as in every transaction.
    """
    if not has_database():
        record = Record()
        try:
            with entered(record):
                yield
        finally:
            record.discard()
        return
    from openviper.db.session import transaction  # needs SQLAlchemy

    try:
        async with transaction():
            yield
            raise _RollBack
    except _RollBack:
        pass
