"""Lifecycle hooks: ``async def`` methods of mapped classes that run when their rows are written."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import DeclarativeBase

from openviper.db.lifecycle import watch

__all__ = ["LifecycleHooks", "Model"]

_HOOKS = (
    "before_insert",
    "after_insert",
    "before_update",
    "after_update",
    "on_change",
    "before_delete",
    "after_delete",
)


class LifecycleHooks:
    """Mixin for any declarative class or base; override the methods that you need, as ``async def``.

    Hooks run inside the flush, in the transaction, once for each row that the session writes. They may read and change
    their object, query (``async with transaction() as session`` yields the object's own session) and add objects, which
    are written at the commit at the latest, with their own hooks. A query does not see objects that are not flushed
    yet. ``flush()``, ``commit()``, ``rollback()``, ``close()`` and savepoints of that session are refused with
    :class:`~openviper.db.ForbiddenInHook`.

    An exception in a hook aborts the flush and propagates to the code that flushed or committed, so the transaction
    rolls back. Mail sent in a hook and callbacks given to ``on_commit()`` there wait for the commit, even if the
    surrounding code uses a plain AsyncSession and no ``transaction()``.

    A synchronous Session is refused with :class:`~openviper.db.AsyncSessionRequired` if there is a hook to run.
    No hook runs for ``insert()``, ``update()`` or ``delete()`` passed to ``execute()``, for the session's ``bulk_``
    methods, or for changes that the database itself makes (``ON DELETE CASCADE``, triggers).
    """

    _lifecycle_hooks: ClassVar[frozenset[str]] = frozenset()

    async def before_insert(self) -> None:
        """Run before any SQL of the flush that inserts the object; changes to the object are inserted with it.

        The primary key is not set yet, unless the application gave it.
        """

    async def after_insert(self) -> None:
        """Run after all SQL of the flush that inserted the object, before the commit. The primary key is set."""

    async def before_update(self) -> None:
        """Run before any SQL of the flush that updates the object; changes to the object are part of the update.

        Not run for an object whose attributes were only set to the values that they already had.
        """

    async def after_update(self) -> None:
        """Run after all SQL of the flush that updated the object's row, before the commit."""

    async def on_change(self, previous_state: Mapping[str, Any]) -> None:
        """Run directly after :meth:`after_update`, if the flush has changed the value of a column.

        ``previous_state`` maps attribute names of the changed columns to their values before the flush. A value that
        was not loaded when it was replaced is read from the database first. Columns that SQLAlchemy or the database
        fills by itself (``onupdate``, version counters) are not included.
        """

    async def before_delete(self) -> None:
        """Run before any SQL of the flush that deletes the object.

        This includes an orphan (cascade ``delete-orphan``). If an object is deleted only because an orphan is deleted,
        its hook runs directly before its own ``DELETE``, too late to add objects.
        """

    async def after_delete(self) -> None:
        """Run after all SQL of the flush that deleted the object, before the commit.

        The loaded attributes are still readable.
        """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls._lifecycle_hooks = frozenset(
            name for name in _HOOKS if getattr(cls, name) is not getattr(LifecycleHooks, name)
        )
        for name in _HOOKS:
            hook = getattr(cls, name)
            if inspect.isfunction(hook) and not inspect.iscoroutinefunction(inspect.unwrap(hook)):
                raise TypeError(f"{cls.__qualname__}.{name} is a lifecycle hook and must be written 'async def'")
        super().__init_subclass__(**kwargs)


watch(LifecycleHooks)


class Model(AsyncAttrs, LifecycleHooks, DeclarativeBase):
    """Declarative base with lifecycle hooks, for applications that have no base yet.

    ``await order.awaitable_attrs.lines`` loads a relationship. Values that the database generates are fetched by the
    INSERT or UPDATE itself, because reading an attribute cannot await them later.
    """

    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012  # SQLAlchemy types it as an instance variable
