"""Decide which senders get which connections, and which connections to open and to close. Nothing here does I/O."""

from collections.abc import Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from openviper.core.email.backends.smtp.connection import Connection

if TYPE_CHECKING:
    import asyncio

__all__ = ["Capacity", "MessageLimit", "Plan", "Slot", "State", "assign", "has_reached_limit", "is_fit"]


class State(Enum):
    """State of a slot. An open connection is idle or in use; a closing one still counts at the server."""

    OPENING = auto()
    IDLE = auto()
    IN_USE = auto()
    CLOSING = auto()


class Slot:
    """A place in the pool: one connection from the first attempt to open it to its end.

    ``connection`` is None while it is being opened; ``task`` opens or closes it.
    """

    __slots__ = ("connection", "state", "task")

    def __init__(self) -> None:
        self.state = State.OPENING
        self.connection: Connection | None = None
        self.task: asyncio.Task[None] | None = None


class Plan(NamedTuple):
    """Decisions of ``assign``: what to do with connections and waiting senders, in the order of the fields.

    ``close``: idle connections that have reached a limit; ``serve``: idle connections, one for each of the first
    waiting senders; ``open``: how many connections to open; ``fail``: True if the waiting senders should get the last
    error, because nothing is open, being opened, or to be opened now.
    """

    close: list[Slot]
    serve: list[Slot]
    open: int
    fail: bool


def assign(slots: Sequence[Slot], waiting: int, *, allowed: int, at_once: int, paused: bool, now: float) -> Plan:
    """Assign connections to the first of ``waiting`` senders, and decide how many to open for the others.

    ``slots`` lists the connections, the longest idle one before those idle for less; the latest is used first, so that
    the others can expire. At most ``allowed`` connections may exist, closing ones included, and at most ``at_once`` of
    them may be being opened. While ``paused`` none is opened. ``now`` is loop time.
    """
    opening = in_use = 0
    close: list[Slot] = []
    serve: list[Slot] = []
    for slot in reversed(slots):
        if slot.state is State.OPENING:
            opening += 1
        elif slot.state is State.IN_USE:
            in_use += 1
        elif slot.state is State.IDLE:
            assert slot.connection is not None
            if not is_fit(slot.connection, now):
                close.append(slot)
            elif len(serve) < waiting:
                serve.append(slot)
    left = waiting - len(serve)
    wanted = 0 if paused else min(left - opening, allowed - len(slots), at_once - opening)
    none_open = not (opening or in_use or serve)
    return Plan(close, serve, max(0, wanted), fail=left > 0 and paused and none_open)


def is_fit(connection: Connection, now: float) -> bool:
    """True if a further transaction may begin on ``connection``; ``now`` is loop time."""
    return connection.usable and not has_reached_limit(connection, now)


def has_reached_limit(connection: Connection, now: float) -> bool:
    """True if ``connection`` is to be closed even if it is usable; ``now`` is loop time."""
    return connection.messages >= connection.max_messages or now >= connection.expires_at


class Capacity:
    """How many connections the server is taken to allow: ``size``, or fewer for a while after it refused one.

    ``grow_after`` seconds after a refusal one more is allowed, and another with each that opens, so that a server whose
    limit is permanent refuses one connection in each such period.
    """

    def __init__(self, size: int, *, grow_after: float) -> None:
        self._size = self._limit = size
        self._grow_after = grow_after
        self._grow_at = 0.0

    def allowed(self, now: float) -> int:
        """Return how many connections may exist at ``now`` (loop time)."""
        return self._limit + 1 if self._limit < self._size and now >= self._grow_at else self._limit

    def grows_at(self, now: float) -> float | None:
        """Return the loop time at which one more is allowed; None if that is so already, or all are."""
        return self._grow_at if self._limit < self._size and now < self._grow_at else None

    def record_refusal(self, others: int, now: float) -> None:
        """Allow no more than the ``others`` that are open or being opened, but always one."""
        self._limit = max(1, min(others, self._size))
        self._grow_at = now + self._grow_after

    def record_opened(self, count: int) -> None:
        """Allow at least ``count`` connections, because so many are open."""
        self._limit = min(self._size, max(self._limit, count))

    def reset(self) -> None:
        """Allow all connections: a server that is down has refused none of them because of their number."""
        self._limit = self._size


class MessageLimit:
    """After how many messages the server closes connections, found out by watching it; None while unknown.

    A message that is sent at the moment of the close is uncertain, so it is better to close first. A server is taken to
    have a limit, for ``keep`` seconds, if it closes a connection after as many messages as one before, shortly after
    the last one each time. The later connection must have been opened after the earlier close, since a server that
    restarts closes all at once.
    """

    def __init__(self, *, keep: float) -> None:
        self._keep = keep
        self._seen: dict[int, float] = {}
        self._limit: int | None = None
        self._until = 0.0

    def current(self, now: float) -> int | None:
        """Return the limit at ``now`` (loop time)."""
        return self._limit if now < self._until else None

    def record_close(self, messages: int, *, opened_at: float, now: float) -> bool:
        """Note that the server closed a connection after ``messages``; True if that makes them the limit."""
        if opened_at < self._seen.setdefault(messages, now):
            return False
        self._seen.clear()
        self._limit, self._until = messages, now + self._keep
        return True
