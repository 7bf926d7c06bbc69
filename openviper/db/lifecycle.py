"""Run lifecycle hooks: collect the rows that a flush writes, and await the hooks inside SQLAlchemy's greenlet."""

from collections.abc import Callable, Coroutine, Iterator
from typing import Any, ClassVar, Protocol, TypeGuard

from sqlalchemy import event, inspect, select
from sqlalchemy.engine import Connection
from sqlalchemy.orm import InstanceState, Mapper, Session, UOWTransaction, object_session
from sqlalchemy.orm.attributes import has_parent
from sqlalchemy.util.concurrency import await_only

from openviper.db.guard import in_hook
from openviper.db.records import async_session_of, innermost, record_of
from openviper.db.transaction import Record, entered

__all__ = ["Hooked", "watch"]

_FLUSH = "openviper.db.flush"  # the key in Session.info


class Hooked(Protocol):
    """An object with lifecycle hooks; ``_lifecycle_hooks`` names those that its class defines."""

    _lifecycle_hooks: ClassVar[frozenset[str]]


class _Flush:
    """The hooks of one flush: objects whose ``before_`` hook has run, and hooks to run after the SQL."""

    def __init__(self) -> None:
        self.prepared: dict[int, Hooked] = {}  # by id: mapped classes may be unhashable
        self.replaced: dict[int, dict[str, Any]] = {}  # old values that had not been loaded
        self.after: list[tuple[Hooked, str, tuple[Any, ...]]] = []


@event.listens_for(Session, "before_flush")
def _before_flush(session: Session, _context: UOWTransaction, _instances: object) -> None:
    flush = session.info[_FLUSH] = _Flush()
    # A hook may add or change further objects of this flush, so repeat until every object's hook has run.
    while pending := [change for change in _changes(session) if id(change[0]) not in flush.prepared]:
        for target, hook in pending:
            _prepare(session, flush, target, hook)


@event.listens_for(Session, "after_flush_postexec")
def _after_flush(session: Session, _context: UOWTransaction) -> None:
    flush: _Flush = session.info.pop(_FLUSH)
    for target, hook, arguments in flush.after:
        _run(session, target, hook, *arguments)


def _is_hooked(target: object) -> TypeGuard[Hooked]:
    return hasattr(target, "_lifecycle_hooks")


def _changes(session: Session) -> Iterator[tuple[Hooked, str]]:
    for target in session.new:
        if _is_hooked(target):
            yield target, "before_insert"
    for target in [*session.deleted, *_orphans(session)]:
        if _is_hooked(target):
            yield target, "before_delete"
    for target in session.dirty:
        if _is_hooked(target) and session.is_modified(target, include_collections=False):
            yield target, "before_update"


def _orphans(session: Session) -> Iterator[object]:
    """Yield orphans that the flush will delete; cascades from them show only during the flush."""
    for parent in session.dirty:
        for relationship in inspect(parent).mapper.relationships:
            if relationship.cascade.delete_orphan:
                removed = inspect(parent).attrs[relationship.key].history.deleted
                yield from (
                    child
                    for child in removed
                    if child in session and not has_parent(type(parent), child, relationship.key)
                )


def _prepare(session: Session, flush: _Flush, target: Hooked, hook: str) -> None:
    if id(target) not in flush.prepared:
        flush.prepared[id(target)] = target
        _run(session, target, hook)


def _run(session: Session, target: Hooked, hook: str, *arguments: Any) -> None:
    if hook not in target._lifecycle_hooks:
        return
    name = f"{type(target).__name__}.{hook}"
    async_session_of(session, f"run {name}()")
    transaction = innermost(session)
    assert transaction is not None, "whatever can be flushed has begun one"
    with in_hook(session, name):
        await_only(_in_record(record_of(transaction), getattr(target, hook), arguments))


async def _in_record(
    record: Record, hook: Callable[..., Coroutine[Any, Any, None]], arguments: tuple[Any, ...]
) -> None:
    with entered(record):
        await hook(*arguments)


def _unloaded(session: Session, target: Hooked) -> dict[str, Any]:
    """Read the old values of changed columns that were never loaded, before the update overwrites them."""
    state: InstanceState[Any] = _state(target)
    missing = [key for key, history in _changed(state) if not history.deleted]
    if not missing:
        return {}
    cls, mapper = type(target), state.mapper
    keys = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    statement = select(*(getattr(cls, key) for key in missing))
    for key, value in zip(keys, state.identity or (), strict=True):
        statement = statement.where(getattr(cls, key) == value)
    row = session.execute(statement).one_or_none()
    return {} if row is None else dict(zip(missing, row, strict=True))


def _previous(flush: _Flush, target: Hooked) -> dict[str, Any] | None:
    """Return the old values of the columns whose value has changed; None if the row was not updated."""
    state = _state(target)
    changed = dict(_changed(state))
    if not changed:
        return None
    seen = {key: history.deleted[0] for key, history in changed.items() if history.deleted}
    read = flush.replaced.get(id(target), {}).items()
    return seen | {key: old for key, old in read if key in changed and old != state.dict.get(key)}


def _changed(state: InstanceState[Any]) -> Iterator[tuple[str, Any]]:
    for column in state.mapper.column_attrs:
        history = state.attrs[column.key].history
        if history.has_changes():
            yield column.key, history


def _state(target: Hooked) -> InstanceState[Any]:
    state: InstanceState[Any] = inspect(target)
    return state


def _flush_of(target: Hooked) -> tuple[Session, _Flush]:
    session = object_session(target)
    assert session is not None
    return session, session.info[_FLUSH]


def _inserting(_mapper: Mapper[Any], _connection: Connection, target: Hooked) -> None:
    _prepare(*_flush_of(target), target, "before_insert")


def _updating(_mapper: Mapper[Any], _connection: Connection, target: Hooked) -> None:
    if not any(_changed(_state(target))):
        return  # the event is also sent for objects without a change of their own
    session, flush = _flush_of(target)
    _prepare(session, flush, target, "before_update")
    if "on_change" in target._lifecycle_hooks:
        # Foreign keys that the flush itself sets are known only now.
        flush.replaced[id(target)] = _unloaded(session, target)


def _deleting(_mapper: Mapper[Any], _connection: Connection, target: Hooked) -> None:
    _prepare(*_flush_of(target), target, "before_delete")


def _inserted(_mapper: Mapper[Any], _connection: Connection, target: Hooked) -> None:
    _, flush = _flush_of(target)
    flush.after.append((target, "after_insert", ()))


def _updated(_mapper: Mapper[Any], _connection: Connection, target: Hooked) -> None:
    _, flush = _flush_of(target)
    previous = _previous(flush, target)
    if previous is not None:
        flush.after.append((target, "after_update", ()))
    if previous:
        flush.after.append((target, "on_change", (previous,)))


def _deleted(_mapper: Mapper[Any], _connection: Connection, target: Hooked) -> None:
    _, flush = _flush_of(target)
    flush.after.append((target, "after_delete", ()))


def watch(base: type[Hooked]) -> None:
    """Run the hooks of every class mapped under ``base`` from now on."""
    # Mapper events cover exactly the rows that are written, cascades and orphans included; the session's lists do not.
    for name, listener in {
        "before_insert": _inserting,
        "before_update": _updating,
        "before_delete": _deleting,
        "after_insert": _inserted,
        "after_update": _updated,
        "after_delete": _deleted,
    }.items():
        event.listen(base, name, listener, propagate=True)
