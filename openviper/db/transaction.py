"""The record of what waits for a commit. Knows no database: whoever runs transactions opens and ends the records."""

import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from typing import Any, NamedTuple

__all__ = ["HeldSend", "Record", "current_record", "entered", "hold", "outside"]

logger = logging.getLogger("openviper.db")

_current: ContextVar["Record | None"] = ContextVar("openviper_db_record", default=None)


class HeldSend(NamedTuple):
    """One thing that waits: what to do after the commit, and what to do when there will be none."""

    on_commit: Callable[[], Awaitable[None] | None]
    on_rollback: Callable[[], None] | None = None


class Record:
    """What one transaction or one savepoint holds, in the order in which it was held.

    ``parent`` is the record of the enclosing transaction, for a savepoint. ``scope`` is whatever the opener wants to
    find again through :func:`current_record`; it is dropped when the record ends. A record ends once, by
    :meth:`commit`, :meth:`release` or :meth:`discard`; ending it again does nothing.
    """

    def __init__(self, parent: "Record | None" = None, *, scope: Any = None) -> None:
        self.parent = parent
        self.scope = scope
        self.claimed = False
        # Where a task that outlives this record looks next: it may have been started inside another open transaction.
        self._outer = parent if parent is not None else _current.get()
        self._held: list[HeldSend] = []
        self._open = True
        self._savepoint: Record | None = None
        # Shared with the savepoints: synchronous code holds from a thread while the loop may be ending the record.
        self._lock: threading.RLock = threading.RLock() if parent is None else parent._lock
        if parent is not None:
            parent._savepoint = self

    @property
    def is_open(self) -> bool:
        return self._open

    def hold(self, held: HeldSend) -> bool:
        """Keep ``held`` with the innermost savepoint that shares this record's context. False when ended."""
        with self._lock:
            record = self.innermost
            if record._open:
                record._held.append(held)
            return record._open

    @property
    def innermost(self) -> "Record":
        """This record, or the innermost open savepoint that was not given a context of its own."""
        record = self
        while record._savepoint is not None:
            record = record._savepoint
        return record

    def claim(self) -> None:
        """Note that a block has promised to end this record, and runs in a context of its own.

        In a savepoint then hold only those that run in that context, not tasks that knew the parent before.
        """
        self.claimed = True
        self._detach()

    def commit(self) -> list[HeldSend]:
        """End a transaction whose commit succeeded. Returns what is to be done now, in order."""
        with self._lock:
            return self._end()

    def release(self) -> None:
        """End a savepoint that was released: what it holds now waits for its parent."""
        assert self.parent is not None
        with self._lock:
            self.parent._held.extend(self._end())

    def discard(self) -> None:
        """End without a commit: nothing held here is done; every ``on_rollback`` is called, also after one failed."""
        with self._lock:
            dropped = self._end()
        for held in dropped:
            if held.on_rollback is None:
                continue
            try:
                held.on_rollback()
            except Exception:  # the next one must still hear of the rollback
                logger.exception("on_rollback %r failed", held.on_rollback)

    def _detach(self) -> None:
        if self.parent is not None and self.parent._savepoint is self:
            self.parent._savepoint = None

    def _end(self) -> list[HeldSend]:
        self._detach()
        self._open = False
        self.scope = None
        held, self._held = self._held, []
        return held


def hold(on_commit: Callable[[], Awaitable[None] | None], on_rollback: Callable[[], None] | None = None) -> bool:
    """Keep ``on_commit`` until the transaction of this context has been committed.

    Returns False, and keeps nothing, when no transaction is open here: the caller then acts at once. Otherwise exactly
    one of two things happens, or neither when the process dies: ``on_commit`` is called, and awaited when it returns an
    awaitable, after the root transaction has ended; or ``on_rollback`` is called because the transaction, or the
    savepoint in which this was held, ended in any other way.

    A task belongs to the transaction in which it was started for as long as that is open.
    """
    record = current_record()
    return record is not None and record.hold(HeldSend(on_commit, on_rollback))


def current_record() -> Record | None:
    """The innermost open record of this context, or None."""
    record = _current.get()
    while record is not None and not record._open:
        record = record._outer
    return record


@contextmanager
def entered(record: Record | None) -> Iterator[None]:
    """Make ``record`` that of this context for a block; with None there is no transaction in it."""
    token = _current.set(record)
    try:
        yield
    finally:
        # A generator may be finalised in another context than it began in; an ended record there does no harm.
        with suppress(ValueError):
            _current.reset(token)


def outside() -> Context:
    """A copy of this context in which no transaction is open."""
    context = copy_context()
    context.run(_current.set, None)
    return context
