"""Record sends that wait for a commit. Needs no database: the code that runs transactions opens and ends records."""

import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from typing import Any, NamedTuple, Protocol

__all__ = ["HeldSend", "Record", "Stored", "current_record", "entered", "hold", "outside"]

logger = logging.getLogger("openviper.db")

_current: ContextVar["Record | None"] = ContextVar("openviper_db_record", default=None)


class Stored(Protocol):
    """A held send that the transaction itself stores."""

    def committed(self) -> None:
        """Note that the transaction is committed."""


class HeldSend(NamedTuple):
    """A send, or another callback, that waits for the commit; ``on_rollback`` is called if there will be none.

    ``stored``: the send as the database outbox keeps it; None without one.
    """

    on_commit: Callable[[], Awaitable[None] | None]
    on_rollback: Callable[[], None] | None = None
    stored: Stored | None = None


class Record:
    """The held sends of one transaction or savepoint, in order.

    ``parent`` is the enclosing transaction's record, for a savepoint. ``scope`` is any object that callers of
    :func:`current_record` need; it is dropped when the record ends. A record ends once, by :meth:`commit`,
    :meth:`release` or :meth:`discard`; ending it again does nothing.
    """

    def __init__(self, parent: "Record | None" = None, *, scope: Any = None) -> None:
        self.parent = parent
        self.scope = scope
        self.claimed = False
        # The record of a task that outlives this one: it may have been started inside another open transaction.
        self._outer = parent if parent is not None else _current.get()
        self._held: list[HeldSend] = []
        self._open = True
        self._savepoint: Record | None = None
        # Shared with the savepoints: a thread of synchronous code may hold while the loop ends the record.
        self._lock: threading.RLock = threading.RLock() if parent is None else parent._lock
        if parent is not None:
            parent._savepoint = self

    @property
    def is_open(self) -> bool:
        """True until the record ends."""
        return self._open

    def hold(self, held: HeldSend) -> bool:
        """Keep ``held`` with the innermost savepoint that shares this record's context; False if that has ended."""
        with self._lock:
            record = self.innermost
            if record._open:
                record._held.append(held)
            return record._open

    @property
    def held(self) -> tuple[HeldSend, ...]:
        """Return the sends that wait for the end of this transaction or savepoint, without those of inner ones."""
        with self._lock:
            return tuple(self._held)

    @property
    def innermost(self) -> "Record":
        """Return this record, or the innermost open savepoint without a context of its own."""
        record = self
        while record._savepoint is not None:
            record = record._savepoint
        return record

    def claim(self) -> None:
        """Mark that a block ends this record and runs in a context of its own.

        Only code in that context then holds in the savepoint, not tasks that were started with the parent's.
        """
        self.claimed = True
        self._detach()

    def commit(self) -> list[HeldSend]:
        """End a transaction whose commit succeeded, and return the held sends to run now, in order."""
        with self._lock:
            return self._end()

    def release(self) -> None:
        """End a savepoint that was released; its held sends now wait for its parent."""
        assert self.parent is not None
        with self._lock:
            self.parent._held.extend(self._end())

    def discard(self) -> None:
        """End without a commit: run no held send, and call every ``on_rollback``, even after one has failed."""
        with self._lock:
            dropped = self._end()
        for held in dropped:
            if held.on_rollback is None:
                continue
            try:
                held.on_rollback()
            except Exception:  # the next one must still be called
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


def hold(
    on_commit: Callable[[], Awaitable[None] | None],
    on_rollback: Callable[[], None] | None = None,
    stored: Stored | None = None,
) -> bool:
    """Keep ``on_commit`` until the transaction of this context has been committed.

    Returns False, and keeps nothing, if no transaction is open here: the caller then sends at once. Otherwise exactly
    one of two calls follows, or neither if the process dies: ``on_commit`` is called after the root transaction has
    ended, and its result awaited if it is awaitable; or ``on_rollback`` is called because the transaction, or the
    savepoint in which this was held, ended in any other way.

    ``stored.committed()`` is called before ``on_commit``. A task belongs to the transaction in which it was started for
    as long as that is open.
    """
    record = current_record()
    return record is not None and record.hold(HeldSend(on_commit, on_rollback, stored))


def current_record() -> Record | None:
    """Return this context's innermost open record, or None."""
    record = _current.get()
    while record is not None and not record._open:
        record = record._outer
    return record


@contextmanager
def entered(record: Record | None) -> Iterator[None]:
    """Make ``record`` this context's record for a block; None means no transaction."""
    token = _current.set(record)
    try:
        yield
    finally:
        # A generator may be finalised in another context than it began in; an ended record does no harm there.
        with suppress(ValueError):
            _current.reset(token)


def outside() -> Context:
    """Return a copy of this context without an open transaction."""
    context = copy_context()
    context.run(_current.set, None)
    return context
