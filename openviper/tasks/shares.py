"""Share a worker's threads among queues, so that the slow messages of one leave threads to the others."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from queue import PriorityQueue
from threading import get_ident
from typing import TYPE_CHECKING, Any

from dramatiq import Broker, Middleware

if TYPE_CHECKING:
    from dramatiq.worker import Worker

    _Base = PriorityQueue[Any]
else:
    _Base = PriorityQueue

__all__ = ["SharedWorkQueue", "ThreadShares", "thread_limits"]


class ThreadShares(Middleware):
    """Limits how many threads of a worker each of ``queues`` may have at a time; the first of them comes first.

    Messages of any other queue have no limit. Without several of ``queues`` in a worker nothing changes.
    """

    def __init__(self, queues: Sequence[str]) -> None:
        self._queues = queues

    def before_worker_boot(self, _broker: Broker, worker: "Worker") -> None:
        """Replace the queue from which the worker's threads take messages."""
        consumed = [name for name in self._queues if not worker.consumer_whitelist or name in worker.consumer_whitelist]
        if len(consumed) > 1:
            worker.work_queue = SharedWorkQueue(thread_limits(consumed, worker.worker_threads))


def thread_limits(queues: Sequence[str], threads: int) -> dict[str, int]:
    """Return the most threads that each of ``queues`` has at a time.

    The first leaves one thread to each other queue, and the others an equal share of the threads to each.
    """
    first, *others = queues
    limits = {first: max(1, threads - len(others))}
    return limits | dict.fromkeys(others, max(1, threads // len(queues)))


class SharedWorkQueue(_Base):
    """Gives a thread the first message whose queue has fewer threads than its limit.

    A thread has its message until ``task_done``, or until it takes the next one.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = limits
        self._waiting: dict[str, list[Any]] = defaultdict(list)
        self._of_threads: dict[int, str] = {}
        super().__init__()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        self._release()
        return super().get(block, timeout)

    def task_done(self) -> None:
        self._release()
        super().task_done()

    def _release(self) -> None:
        with self.mutex:
            if self._of_threads.pop(get_ident(), None) is not None:
                self.not_empty.notify()

    def _init(self, maxsize: int) -> None:
        pass

    def _qsize(self) -> int:
        """Return how many queues have a message that may be taken now."""
        return len(self._allowed())

    def _put(self, item: Any) -> None:
        heapq.heappush(self._waiting[item.message.queue_name], item)

    def _get(self) -> Any:
        name = min(self._allowed(), key=lambda name: self._waiting[name][0])
        self._of_threads[get_ident()] = name
        return heapq.heappop(self._waiting[name])

    def _allowed(self) -> list[str]:
        taken = Counter(self._of_threads.values())
        return [
            name
            for name, items in self._waiting.items()
            if items and (name not in self._limits or taken[name] < self._limits[name])
        ]
