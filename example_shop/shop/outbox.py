"""The database outbox, which keeps the shop's mail until it is delivered: its tables, and what is in it."""

from typing import NamedTuple

from sqlalchemy import func, select

from openviper.conf import settings
from openviper.db import Model, outbox_tables, transaction

__all__ = ["KeptMail", "count_kept_mail"]

_messages, *_ = outbox_tables(Model.metadata)


class KeptMail(NamedTuple):
    """The number of messages that wait to be delivered, and of those that failed for good."""

    waiting: int
    failed: int


async def count_kept_mail() -> KeptMail | None:
    """Count the messages in the outbox; None where the setting does not use one."""
    if not settings.EMAIL.get("outbox"):
        return None
    async with transaction() as session:
        query = select(_messages.c.state, func.count()).group_by(_messages.c.state)
        counts = dict(map(tuple, await session.execute(query)))
    return KeptMail(counts.get("open", 0), counts.get("failed", 0))
