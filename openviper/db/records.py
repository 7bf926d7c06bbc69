"""Tie the records of held sends to SQLAlchemy's transactions: open them, follow savepoints, end them."""

import asyncio
import inspect
import logging
from collections.abc import Sequence
from contextlib import suppress

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_session
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util.concurrency import await_only

from openviper.db.completion import to_completion
from openviper.db.errors import AsyncSessionRequired
from openviper.db.transaction import HeldSend, Record, outside

__all__ = ["async_session_of", "finish", "innermost", "open_record_of", "record_of"]

logger = logging.getLogger("openviper.db")

# The key in Session.info, so that the records of an abandoned session go with it.
_RECORDS = "openviper.db.records"

# Between the commit and the end of the transaction its connection is returned. If that is cancelled, SQLAlchemy never
# reports the end, and the held sends must be run all the same.
_SECONDS_TO_RETURN_CONNECTION = 1.0

# A caller that is cancelled while held sends run waits this long for them; they go on without it.
_SECONDS_AFTER_CANCELLATION = 30.0


def record_of(transaction: SessionTransaction) -> Record:
    """Return the record of ``transaction``, a root or a savepoint; make it, and those around it, if there is none.

    Raises:
        AsyncSessionRequired: it belongs to a synchronous Session.
    """
    records: dict[SessionTransaction, Record] = transaction.session.info.setdefault(_RECORDS, {})
    if transaction not in records:
        parent = _boundary(transaction.parent)
        session = async_session_of(transaction.session, "hold anything until its commit")
        records[transaction] = Record(record_of(parent) if parent else None, scope=session)
    return records[transaction]


def open_record_of(session: Session) -> Record | None:
    """Return the record of the session's innermost transaction or savepoint, if anything has asked for one."""
    record: Record | None = session.info.get(_RECORDS, {}).get(innermost(session))
    return record


def async_session_of(session: Session, purpose: str) -> AsyncSession:
    """Return the AsyncSession that wraps ``session``; ``purpose`` completes "a synchronous Session cannot ...".

    Raises:
        AsyncSessionRequired: there is none.
    """
    found = async_session(session)
    if found is None:
        raise AsyncSessionRequired(f"a synchronous Session cannot {purpose}; use sqlalchemy.ext.asyncio.AsyncSession")
    return found


def innermost(session: Session) -> SessionTransaction | None:
    """Return the session's innermost savepoint, or else its transaction; None without one."""
    return session.get_nested_transaction() or session.get_transaction()


def _boundary(transaction: SessionTransaction | None) -> SessionTransaction | None:
    # Flushes open subtransactions, which are markers without a savepoint behind them.
    while transaction is not None and transaction.parent is not None and not transaction.nested:
        transaction = transaction.parent
    return transaction


class _Finisher:
    """A task that runs the held sends after the transaction has ended, even if the committing task is cancelled."""

    def __init__(self, held: Sequence[HeldSend]) -> None:
        self._held = held
        self.ended = asyncio.Event()
        self.task = asyncio.create_task(self._run(), context=outside())

    async def _run(self) -> None:
        # Cancelled only when the loop is being closed: then do not wait any longer.
        with suppress(TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(self.ended.wait(), _SECONDS_TO_RETURN_CONNECTION)
        for held in self._held:
            try:
                result = held.on_commit()
                if inspect.isawaitable(result):
                    await result
            except (Exception, asyncio.CancelledError):  # the commit stands, and the next one must still run
                logger.exception("on_commit %r failed; the transaction is committed all the same", held.on_commit)


_finishers: dict[SessionTransaction, _Finisher] = {}


async def finish(transaction: SessionTransaction) -> None:
    """Await the held sends of a committed ``transaction`` whose end was never reported."""
    finisher = _finishers.get(transaction)
    if finisher is not None:
        finisher.ended.set()
        await to_completion(finisher.task, limit=_SECONDS_AFTER_CANCELLATION, give_up=lambda: False)


@event.listens_for(Session, "after_transaction_create")
def _follow_savepoint(session: Session, transaction: SessionTransaction) -> None:
    parent = _boundary(transaction.parent)
    if transaction.nested and parent in session.info.get(_RECORDS, ()):
        record_of(transaction)


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    # SQLAlchemy sends this event for a released savepoint as well as for the commit of the root.
    transaction = innermost(session)
    record: Record | None = session.info.get(_RECORDS, {}).get(transaction)
    if record is None or transaction is None:
        return
    if record.parent is not None:
        record.release()
    elif held := record.commit():
        for each in held:
            if each.stored is not None:
                each.stored.committed()
        finisher = _finishers[transaction] = _Finisher(held)
        finisher.task.add_done_callback(lambda _: _finishers.pop(transaction, None))


@event.listens_for(Session, "after_transaction_end")
def _after_end(session: Session, transaction: SessionTransaction) -> None:
    record: Record | None = session.info.get(_RECORDS, {}).pop(transaction, None)
    if record is None:
        return
    if transaction in _finishers:
        await_only(finish(transaction))
    # A transaction that is not committed or released by now never will be: close() without commit reports no rollback.
    record.discard()
