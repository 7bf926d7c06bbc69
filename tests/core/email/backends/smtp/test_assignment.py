"""The decisions of the connection pool, without any connection: who is served, what is opened and closed."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.smtpd import SmtpServer

from openviper.core.email.backends.smtp.assignment import Capacity, MessageLimit, Plan, Slot, State, assign
from openviper.core.email.backends.smtp.connection import Connection
from openviper.core.email.backends.smtp.handshake import connect
from openviper.core.email.settings import EmailSettings


@pytest.fixture
async def connections() -> AsyncIterator[list[Connection]]:
    with SmtpServer() as server:
        settings = EmailSettings(**server.settings())
        opened = [await connect(settings) for _ in range(3)]
        yield opened
        for connection in opened:
            connection.abort()


def slots_of(*contents: Connection | State) -> list[Slot]:
    """Return slots: an idle one for each connection, and others in the given states."""
    slots = []
    for content in contents:
        slot = Slot()
        slot.state = content if isinstance(content, State) else State.IDLE
        slot.connection = None if isinstance(content, State) else content
        slots.append(slot)
    return slots


def plan(slots: list[Slot], waiting: int, *, allowed: int = 5, at_once: int = 5, paused: bool = False) -> Plan:
    return assign(
        slots, waiting, allowed=allowed, at_once=at_once, paused=paused, now=asyncio.get_running_loop().time()
    )


async def test_the_latest_idle_connection_serves_the_first_sender(connections: list[Connection]) -> None:
    slots = slots_of(*connections)
    assert plan(slots, 2) == Plan(close=[], serve=[slots[2], slots[1]], open=0, fail=False)


async def test_connections_that_reached_a_limit_are_closed_and_still_count(connections: list[Connection]) -> None:
    old, full, fit = connections
    old.expires_at = 0.0
    full.messages = full.max_messages = 3
    slots = slots_of(old, full, fit)
    assert plan(slots, 3, allowed=3) == Plan(close=[slots[1], slots[0]], serve=[slots[2]], open=0, fail=False)
    assert plan(slots, 3, allowed=4).open == 1


@pytest.mark.parametrize(
    ("states", "waiting", "allowed", "at_once", "opened"),
    [
        ([], 3, 5, 5, 3),
        ([], 9, 5, 5, 5),
        ([], 9, 2, 5, 2),
        ([], 9, 5, 1, 1),
        ([State.OPENING], 1, 5, 5, 0),
        ([State.OPENING], 9, 5, 1, 0),
        ([State.OPENING, State.IN_USE], 9, 5, 5, 3),
        ([State.CLOSING] * 5, 2, 5, 5, 0),
        ([State.IN_USE] * 5, 2, 1, 5, 0),
        ([State.OPENING] * 3, 0, 5, 5, 0),
    ],
)
async def test_connections_are_opened_for_senders_that_no_other_will_serve(
    states: list[State], waiting: int, allowed: int, at_once: int, opened: int
) -> None:
    decided = plan(slots_of(*states), waiting, allowed=allowed, at_once=at_once)
    assert (decided.open, decided.fail) == (opened, False)


@pytest.mark.parametrize(
    ("states", "fail"),
    [([], True), ([State.CLOSING], True), ([State.OPENING], False), ([State.IN_USE], False)],
)
async def test_senders_fail_in_a_pause_only_if_no_connection_can_serve_them(states: list[State], fail: bool) -> None:
    decided = plan(slots_of(*states), 4, paused=True)
    assert (decided.open, decided.fail) == (0, fail)


async def test_a_pause_fails_nobody_whom_an_idle_connection_serves(connections: list[Connection]) -> None:
    slots = slots_of(connections[0])
    assert plan(slots, 2, paused=True) == Plan(close=[], serve=slots, open=0, fail=False)


def test_a_refused_connection_shrinks_the_pool_until_it_is_time_to_ask_for_one_more() -> None:
    capacity = Capacity(5, grow_after=60.0)
    assert capacity.allowed(0.0) == 5
    capacity.record_refusal(2, now=100.0)
    assert [capacity.allowed(now) for now in (100.0, 159.9, 160.0)] == [2, 2, 3]
    capacity.record_refusal(2, now=161.0)
    assert [capacity.allowed(now) for now in (161.0, 220.9, 221.0)] == [2, 2, 3]


def test_the_pool_grows_by_one_with_each_connection_that_opens() -> None:
    capacity = Capacity(5, grow_after=60.0)
    capacity.record_refusal(1, now=0.0)
    grown = []
    for count in (2, 3, 4, 5):
        grown.append(capacity.allowed(60.0))
        capacity.record_opened(count)
    assert [*grown, capacity.allowed(60.0)] == [2, 3, 4, 5, 5]


def test_a_pool_never_shrinks_to_nothing() -> None:
    capacity = Capacity(3, grow_after=60.0)
    capacity.record_refusal(0, now=0.0)
    assert capacity.allowed(1.0) == 1
    capacity.reset()
    assert capacity.allowed(1.0) == 3


def test_a_limit_of_messages_is_found_by_two_closes_one_after_the_other() -> None:
    limit = MessageLimit(keep=600.0)
    assert not limit.record_close(5, opened_at=0.0, now=10.0)
    assert not limit.record_close(5, opened_at=1.0, now=10.0)  # a restart closes all at once
    assert not limit.record_close(3, opened_at=11.0, now=12.0)
    assert limit.current(12.0) is None
    assert limit.record_close(5, opened_at=11.0, now=20.0)
    assert limit.current(20.0) == 5
    assert limit.current(620.0) is None  # servers change


def test_a_pool_that_was_shrunk_says_when_it_grows() -> None:
    capacity = Capacity(5, grow_after=60.0)
    assert capacity.grows_at(0.0) is None
    capacity.record_refusal(1, 0.0)
    assert capacity.grows_at(0.0) == 60.0
    assert capacity.grows_at(60.0) is None
