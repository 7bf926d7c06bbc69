"""A worker's threads are shared: messages of one queue leave threads to the others."""

from queue import Empty
from threading import Thread
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from support.patience import PATIENCE

from openviper.tasks.shares import SharedWorkQueue, ThreadShares, thread_limits


class Item:
    """A message of a queue, in the order of their numbers."""

    def __init__(self, queue: str, number: int) -> None:
        self.message = self
        self.queue_name = queue
        self.number = number

    def __lt__(self, other: "Item") -> bool:
        return self.number < other.number


def taken_by_threads(queue: SharedWorkQueue, threads: int) -> list[str]:
    """Take with so many threads at the same time; those that get nothing count as "none"."""
    taken: list[str] = []

    def take() -> None:
        try:
            taken.append(queue.get(block=False).queue_name)
        except Empty:
            taken.append("none")

    for _ in range(threads):
        thread = Thread(target=take)
        thread.start()
        thread.join(PATIENCE)
        # The identity of a thread that has ended may be given to the next one: keep each as its own.
        queue._of_threads = {-1 - at: name for at, name in enumerate(queue._of_threads.values())}
    return taken


@pytest.mark.parametrize(
    ("queues", "threads", "limits"),
    [
        (["a", "b"], 8, {"a": 7, "b": 4}),
        (["a", "b", "c", "d"], 8, {"a": 5, "b": 2, "c": 2, "d": 2}),
        (["a", "b", "c"], 1, {"a": 1, "b": 1, "c": 1}),
    ],
)
def test_each_queue_has_its_share(queues: list[str], threads: int, limits: dict[str, int]) -> None:
    assert thread_limits(queues, threads) == limits


def test_a_full_queue_leaves_threads_to_the_others() -> None:
    queue = SharedWorkQueue({"emails": 3, "emails_bulk": 2})
    for number in range(10):
        queue.put(Item("emails_bulk", number))
    queue.put(Item("emails", 10))
    queue.put(Item("reports", 11))
    assert taken_by_threads(queue, 5) == ["emails_bulk", "emails_bulk", "emails", "reports", "none"]


def test_a_thread_that_is_done_gives_its_place_back() -> None:
    queue = SharedWorkQueue({"emails_bulk": 1})
    for number in range(3):
        queue.put(Item("emails_bulk", number))
    assert queue.get(block=False).number == 0
    queue.task_done()
    assert queue.get(block=False).number == 1
    assert queue.get(block=False).number == 2, "who takes the next one has done the last"
    with pytest.raises(Empty):
        queue.get(block=False)


def test_a_waiting_thread_takes_the_place_of_one_that_is_done() -> None:
    queue = SharedWorkQueue({"emails_bulk": 1})
    queue.put(Item("emails_bulk", 0))
    queue.put(Item("emails_bulk", 1))
    queue.get(block=False)
    taken: list[Any] = []
    thread = Thread(target=lambda: taken.append(queue.get(timeout=PATIENCE)))
    thread.start()
    queue.task_done()
    thread.join(PATIENCE)
    assert [item.number for item in taken] == [1]


def test_workers_of_one_queue_stay_as_dramatiq_makes_them() -> None:
    broker = StubBroker()
    broker.add_middleware(ThreadShares(["emails", "emails_bulk"]))
    worker = dramatiq.Worker(broker, queues={"emails"}, worker_threads=2)
    before = worker.work_queue
    worker.start()
    worker.stop()
    assert worker.work_queue is before
    both = dramatiq.Worker(broker, worker_threads=2)
    both.start()
    both.stop()
    assert type(both.work_queue) is SharedWorkQueue
