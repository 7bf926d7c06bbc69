"""Gather what the mailers of this process hold: connections, waiting senders, messages in memory."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextvars import Context
from typing import NamedTuple, Protocol
from weakref import WeakMethod, ref

from openviper.core.email.backends.base import PoolStats
from openviper.loops import after_fork_in_child

__all__ = ["DeliveryStats", "StatsSource", "add_stats_source", "gather_stats"]


class DeliveryStats(NamedTuple):
    """The numbers of one mailer or worker. ``pools``: by the name of the mailer in ``EMAIL["mailers"]``.

    ``messages`` and ``size`` (bytes) are those that the dispatcher holds.
    """

    pools: Mapping[str, PoolStats]
    messages: int = 0
    size: int = 0


class StatsSource(Protocol):
    """Belongs to one event loop, on which its ``stats`` are asked."""

    def stats(self) -> DeliveryStats:
        """Return the numbers at this moment."""


_sources: list[tuple[WeakMethod[Callable[[], DeliveryStats]], ref[asyncio.AbstractEventLoop]]] = []
after_fork_in_child(_sources.clear)


def add_stats_source(source: StatsSource) -> None:
    """Have ``gather_stats`` ask ``source``, of the running loop, as long as it exists."""
    _sources[:] = [known for known in _sources if known[0]() is not None and known[1]() is not None]
    _sources.append((WeakMethod(source.stats), ref(asyncio.get_running_loop())))


def gather_stats(timeout: float = 2.0) -> list[DeliveryStats]:
    """Ask all sources, each on its event loop, and return what answers within ``timeout`` seconds.

    Blocks: call it in a thread without an event loop.
    """
    asked: list[Future[DeliveryStats]] = []
    for weak_method, weak_loop in tuple(_sources):
        stats, loop = weak_method(), weak_loop()
        if stats is None or loop is None or not loop.is_running():
            continue
        answer: Future[DeliveryStats] = Future()
        try:
            loop.call_soon_threadsafe(_answer, stats, answer, context=Context())
        except RuntimeError:  # the loop has ended in this moment
            continue
        asked.append(answer)
    done, _ = wait(asked, timeout)
    return [answer.result() for answer in asked if answer in done]


def _answer(stats: Callable[[], DeliveryStats], answer: Future[DeliveryStats]) -> None:
    answer.set_result(stats())
