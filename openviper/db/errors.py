"""What can be done wrong with transactions and hooks. Errors of the database itself stay SQLAlchemy's.

::

    DatabaseMisuse(RuntimeError)
    ├─ NoTransaction              on_commit() where nothing will be committed
    ├─ ForbiddenInHook            flush(), commit() and the like inside a lifecycle hook
    ├─ AsyncSessionRequired       a synchronous Session where something has to be awaited
    └─ SessionInUse               two tasks nest transactions in one session
"""

from openviper.exceptions import OpenViperError

__all__ = ["AsyncSessionRequired", "DatabaseMisuse", "ForbiddenInHook", "NoTransaction", "SessionInUse"]


class DatabaseMisuse(OpenViperError, RuntimeError):
    """Base of the errors that only a change of the calling code can mend."""


class NoTransaction(DatabaseMisuse):
    """Nothing is open that could be committed."""


class ForbiddenInHook(DatabaseMisuse):
    """A lifecycle hook tried to end, divide or repeat the flush in which it runs."""


class AsyncSessionRequired(DatabaseMisuse, TypeError):
    """Hooks and held callbacks are awaited, which a synchronous Session cannot do."""


class SessionInUse(DatabaseMisuse):
    """A session serves one task at a time; another one has a savepoint open on it."""
