"""Open and end transactions, and register callbacks for their commit."""

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import SessionTransaction, SessionTransactionOrigin
from sqlalchemy.util.concurrency import greenlet_spawn

from openviper.db.completion import Unanswered, time_limit, to_completion
from openviper.db.engines import new_session
from openviper.db.errors import AsyncSessionRequired, CommitUnanswered, NoTransaction, SessionInUse
from openviper.db.guard import is_in_hook
from openviper.db.records import finish, innermost, record_of
from openviper.db.transaction import HeldSend, Record, current_record, entered

__all__ = ["on_commit", "transaction"]

logger = logging.getLogger("openviper.db")

# SQLAlchemy's commit() flushes as many times before it refuses hooks that keep adding objects.
_FLUSHES = 100


@asynccontextmanager
async def transaction(session: AsyncSession | None = None) -> AsyncIterator[AsyncSession]:
    """Implement :func:`openviper.db.transaction`."""
    if session is None and (record := current_record()) is not None:
        session = record.scope
    if session is not None:
        _require_async(session, "transaction()")
        async with _on(session):
            yield session
        return
    limit = time_limit()
    session = await new_session()
    try:
        async with _on(session):
            yield session
    finally:
        try:
            await to_completion(session.close(), limit=limit)
        except Unanswered:
            logger.warning("the database did not answer while a session was closed; its connection is given up")


def on_commit(callback: Callable[[], Awaitable[None] | None], session: AsyncSession | None = None) -> None:
    """Call ``callback`` after the current transaction has been committed, and await the result if it is awaitable.

    Synchronous code may call this, too. If ``session`` is None, the current transaction is the one open in this
    context: the transaction of :func:`transaction`, or of the object whose hook runs. With ``session``, it is the
    transaction that this session commits next, for code that uses a plain AsyncSession. In a savepoint, the callback
    waits for the outermost commit. It is dropped if the transaction, or the savepoint in which this was called, is
    rolled back or closed instead.

    Callbacks run in the order given, after the transaction has ended and outside any other one, so mail that they send
    is not held. A callback that needs the database must open its own transaction; read the values of objects before the
    commit, because a plain AsyncSession then expires them. A callback that fails is logged with its traceback; it
    neither stops the next one nor raises, because the commit stands. ``commit()``, or the exit of ``transaction()``,
    returns after the callbacks. If a plain ``commit()`` is cancelled before the database has answered, the callbacks
    are dropped, even if the database has committed; ``transaction()`` waits for the answer.

    Raises:
        NoTransaction: no transaction is open. Calling the callback at once, as Django does, would hide a forgotten
            transaction, and a plain function could not await the result.
        AsyncSessionRequired: ``session`` is a synchronous Session.
        TypeError: ``callback`` is not a function.
    """
    given: object = callback
    if not callable(given):
        if inspect.iscoroutine(given):
            given.close()
        raise TypeError(
            f"on_commit(): the callback is a {type(given).__name__}, not a function; write "
            "on_commit(lambda: send_email(...)), or await the call inside transaction(), which holds its mail"
        )
    if session is None:
        record = current_record()
        if record is None:
            raise NoTransaction(
                "on_commit(): no transaction() is open here; open one, pass session=, or call the callback yourself"
            )
    else:
        _require_async(session, "on_commit()")
        current = innermost(session.sync_session)
        if current is None:
            raise NoTransaction(
                "on_commit(): the session has not begun a transaction; call it after add(), execute() or begin()"
            )
        record = record_of(current)
    if not record.hold(HeldSend(callback)):
        raise NoTransaction("on_commit(): the transaction has just ended")


def _require_async(session: object, caller: str) -> None:
    if not isinstance(session, AsyncSession):
        raise AsyncSessionRequired(f"{caller}: session must be an AsyncSession, not {type(session).__name__}")


@asynccontextmanager
async def _on(session: AsyncSession) -> AsyncIterator[None]:
    if is_in_hook(session.sync_session):
        # A flush cannot be divided, so the hook's work belongs to the transaction that is being flushed.
        yield
        return
    limit = time_limit()
    begun = await _begin(session)
    record = record_of(begun)
    record.claim()
    begun.__enter__()
    try:
        with entered(record):
            yield
            await _flush(session, begun, record)
    except BaseException as error:
        with suppress(Unanswered):  # logged; the block's own error says more
            await _end_within(limit, begun, record, error)
        raise
    else:
        try:
            await _end_within(limit, begun, record, None)
        except Unanswered:
            raise CommitUnanswered(_unanswered(limit)) from None


async def _begin(session: AsyncSession) -> SessionTransaction:
    sync = session.sync_session
    record = current_record()
    current = innermost(sync)
    if record is not None and record.scope is session and current and record_of(current) is not record.innermost:
        raise SessionInUse(
            "transaction(): another task has a savepoint open on this session; give each task a session of its own: "
            "async with AsyncSession(await engine()) as own, transaction(own)"
        )
    root = sync.get_transaction()
    if root is None:
        return await greenlet_spawn(sync.begin)
    if (
        root.origin is SessionTransactionOrigin.AUTOBEGIN
        and not sync.in_nested_transaction()
        and not record_of(root).claimed
    ):
        # SQLAlchemy began it by itself, say for a SELECT before this block, so no other code will commit it.
        return root
    return await greenlet_spawn(sync.begin_nested)


async def _flush(session: AsyncSession, begun: SessionTransaction, record: Record) -> None:
    """Flush while the caller can still be cancelled, so that only the commit itself cannot be."""
    if not record.is_open:
        return  # the block has committed or rolled back by itself
    _refuse_unfinished(session, record)
    if not begun.is_active:
        # The block caught a failed flush, which has rolled the transaction back: raise instead of ending normally.
        await greenlet_spawn(begun.commit)
    for _ in range(_FLUSHES):
        await session.flush()
        if not (session.new or session.dirty or session.deleted):
            break


def _refuse_unfinished(session: AsyncSession, record: Record) -> None:
    # The commit would include the unfinished savepoint of a task that is still running.
    current = innermost(session.sync_session)
    inner = None if current is None else record_of(current)
    while inner is not None and inner is not record:
        if inner.claimed:
            raise SessionInUse(
                "transaction(): the block ends while a task is still inside a nested transaction(); await the task"
            )
        inner = inner.parent


async def _end_within(limit: float, begun: SessionTransaction, record: Record, error: BaseException | None) -> None:
    """Do as ``_end``, but wait ``limit`` seconds at most for the database; the held sends have limits of their own.

    Raises:
        Unanswered: the database did not answer. Whatever it does later, the held sends are dropped.
    """

    def give_up() -> bool:
        if not record.is_open:
            return False  # it has answered, and the held sends are running
        logger.error("%s", _unanswered(limit) if error is None else f"ROLLBACK was not answered within {limit:g} s")
        record.discard()
        return True

    await to_completion(_end(begun, record, error), limit=limit, give_up=give_up)


def _unanswered(limit: float) -> str:
    return (
        f"the database did not answer COMMIT within {limit:g} s (DATABASE_TIMEOUT): the rows may be there; "
        "mail and callbacks that were held for the commit are dropped"
    )


async def _end(begun: SessionTransaction, record: Record, error: BaseException | None) -> None:
    try:
        await greenlet_spawn(begun.__exit__, None if error is None else type(error), error, None)
    finally:
        await finish(begun)
        record.discard()  # if the connection broke so badly that SQLAlchemy reported no end
