"""Refuse operations on a session that is being flushed, while a lifecycle hook runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.orm import Session

from openviper.db.errors import ForbiddenInHook

__all__ = ["in_hook", "is_in_hook"]

# Each of these would end, divide or repeat the flush that runs the hook, and leave SQLAlchemy's state inconsistent.
_FORBIDDEN = ("flush", "commit", "rollback", "begin_nested", "close", "reset", "invalidate")

_in_hook: WeakSet[Session] = WeakSet()


def is_in_hook(session: Session) -> bool:
    """True while a lifecycle hook runs for an object of ``session``."""
    return session in _in_hook


@contextmanager
def in_hook(session: Session, hook: str) -> Iterator[None]:
    """Refuse forbidden methods of ``session`` for a block; ``hook`` names the culprit in the error."""
    # Shadow the methods on this one session: no event comes early enough, and flush() while flushing has no event.
    attributes = vars(session)
    before = {name: attributes[name] for name in _FORBIDDEN if name in attributes}
    attributes.update({name: _refusal(name, hook) for name in _FORBIDDEN})
    _in_hook.add(session)
    try:
        yield
    finally:
        _in_hook.discard(session)
        for name in _FORBIDDEN:
            attributes.pop(name, None)
        attributes.update(before)


def _refusal(method: str, hook: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ForbiddenInHook(
            f"{hook}: {method}() is not possible inside a hook, which runs in the middle of a flush. "
            "Objects that the hook adds are flushed at the commit; to stop the transaction, raise an exception."
        )

    return refuse


@event.listens_for(Session, "before_commit")
def _refuse_commit_of_the_transaction_object(session: Session) -> None:
    if is_in_hook(session):
        _refusal("commit", "a hook")()
