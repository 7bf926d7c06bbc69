"""Errors about the use of transactions and hooks. Errors of the database itself stay SQLAlchemy's.

::

    DatabaseMisuse(RuntimeError)
    ├─ NoTransaction              on_commit() without a transaction to commit
    ├─ ForbiddenInHook            flush(), commit() and the like inside a lifecycle hook
    ├─ AsyncSessionRequired       a synchronous Session where hooks or callbacks are awaited
    ├─ SessionInUse               two tasks nest transactions on one session
    ├─ OutboxNotCreated           the database lacks the tables of the outbox
    ├─ OutboxMisplaced            a session is on another database than the outbox
    └─ SuppressionNotCreated      the database lacks the table of suppressed addresses

    CommitUnanswered(TimeoutError)   the database did not answer; the rows may be there
"""

from openviper.exceptions import OpenViperError

__all__ = [
    "AsyncSessionRequired",
    "CommitUnanswered",
    "DatabaseMisuse",
    "ForbiddenInHook",
    "NoTransaction",
    "OutboxMisplaced",
    "OutboxNotCreated",
    "SessionInUse",
    "SuppressionNotCreated",
]


class DatabaseMisuse(OpenViperError, RuntimeError):
    """Base of errors in the calling code; repeating the call does not help."""


class NoTransaction(DatabaseMisuse):
    """No transaction is open that could be committed."""


class ForbiddenInHook(DatabaseMisuse):
    """A lifecycle hook tried to end, divide or repeat the flush that runs it."""


class AsyncSessionRequired(DatabaseMisuse, TypeError):
    """Hooks and held callbacks are awaited, which a synchronous Session cannot do."""


class SessionInUse(DatabaseMisuse):
    """A session serves one task at a time; another one has a savepoint open on it."""


class OutboxNotCreated(DatabaseMisuse):
    """The tables of ``EMAIL["outbox"]`` are missing, so a transaction with mail cannot be committed."""


class OutboxMisplaced(DatabaseMisuse):
    """Mail was sent in a transaction of another database than that of ``EMAIL["outbox"]``, or of two phases."""


class SuppressionNotCreated(DatabaseMisuse):
    """The table of suppressed addresses is missing on ``DATABASE_URL``."""


class CommitUnanswered(OpenViperError, TimeoutError):
    """The database did not answer COMMIT within ``DATABASE_TIMEOUT``.

    The rows may be there or not; callbacks and mail that were held for the commit are dropped. Look for the rows before
    you repeat the work.
    """
