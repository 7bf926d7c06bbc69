"""Values that belong to one event loop of one process."""

import asyncio
import gc
import weakref

from support.forked import in_child

from openviper.loops import PerLoop


class Thing:
    """Something that can be referred to weakly."""


def test_each_loop_has_a_value_of_its_own() -> None:
    values: PerLoop[str] = PerLoop()

    async def exchange(value: str | None) -> str | None:
        before = values.get()
        if value is None:
            values.discard()
        else:
            values.set(value)
        return before

    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert first.run(exchange("one")) is None
        assert second.run(exchange("two")) is None
        assert first.run(exchange("three")) == "one"
        assert second.run(exchange(None)) == "two"
        assert second.run(exchange("four")) is None
        assert first.run(exchange(None)) == "three"


def test_a_value_goes_with_its_loop() -> None:
    values: PerLoop[Thing] = PerLoop()

    async def keep() -> "weakref.ref[Thing]":
        thing = Thing()
        values.set(thing)
        return weakref.ref(thing)

    for _ in range(10):  # later loops may get the ids of earlier ones
        kept = asyncio.run(keep())
        gc.collect()
        assert kept() is None

        async def look() -> Thing | None:
            return values.get()

        assert asyncio.run(look()) is None


def test_a_forked_child_starts_with_no_value() -> None:
    values: PerLoop[str] = PerLoop()

    async def keep() -> None:
        values.set("the parent's")

    async def look() -> str | None:
        return values.get()

    with asyncio.Runner() as runner:
        runner.run(keep())
        assert in_child(lambda: str(runner.run(look()))) == "None"
        assert runner.run(look()) == "the parent's"
