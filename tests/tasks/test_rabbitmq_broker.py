"""What our broker adds to Dramatiq's on a real RabbitMQ."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import SkipMessage
from support.patience import PATIENCE
from support.rabbitmq import RabbitmqServer

from openviper.tasks.rabbitmq_broker import make_rabbitmq_broker
from openviper.tasks.settings import TaskSettings


@pytest.fixture
def broker(rabbitmq_server: RabbitmqServer) -> Iterator[Any]:
    """With an empty queue of its own."""
    broker = make_rabbitmq_broker(TaskSettings(**rabbitmq_server.tasks()))
    broker.declare_queue("parcels", ensure=True)
    yield broker
    with rabbitmq_server.connect() as connection:
        for name in ("parcels", "parcels.DQ", "parcels.XQ"):
            connection.channel().queue_delete(name)
    broker.close()


def send(broker: Any, *names: str) -> None:
    for name in names:
        message: dramatiq.Message[Any] = dramatiq.Message(
            queue_name="parcels", actor_name="carry", args=(name,), kwargs={}, options={}
        )
        broker.enqueue(message)


def take(consumer: Any, count: int) -> list[Any]:
    """The next ``count`` messages."""
    taken = [message for _ in range(count) if (message := next(consumer)) is not None]
    assert len(taken) == count, "the queue has no more"
    return taken


def test_what_another_connection_delivered_acknowledges_nothing_on_this_one(broker: Any) -> None:
    """Deliveries are numbered anew on each channel: the late acknowledgement of "a" has the number of "b" there."""
    send(broker, "first", "a", "b")
    before = broker.consume("parcels", prefetch=3, timeout=int(PATIENCE * 1000))
    first, a, _ = take(before, 3)
    before.ack(first)
    before.close()
    after = broker.consume("parcels", prefetch=3, timeout=int(PATIENCE * 1000))
    assert [message.args[0] for message in take(after, 2)] == ["a", "b"]
    after.ack(a)
    after.nack(a)
    after.close()
    last = broker.consume("parcels", prefetch=3, timeout=int(PATIENCE * 1000))
    assert [message.args[0] for message in take(last, 2)] == ["a", "b"]
    last.close()


def test_what_a_closed_channel_delivered_is_not_begun(broker: Any) -> None:
    """RabbitMQ closes a channel, and not the connection, of which it had no acknowledgement for half an hour."""
    send(broker, "a")
    before = broker.consume("parcels", prefetch=1, timeout=int(PATIENCE * 1000))
    (message,) = take(before, 1)
    broker.emit_before("process_message", message)
    before.channel.close()
    assert before.connection.is_open
    with pytest.raises(SkipMessage):
        broker.emit_before("process_message", message)
    before.connection.close()


def test_what_a_broken_connection_left_in_memory_is_done_once(broker: Any, rabbitmq_server: RabbitmqServer) -> None:
    done: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    @dramatiq.actor(queue_name="parcels", broker=broker, max_retries=0)
    def carry(name: str) -> None:
        done.append(name)
        begun.set()
        assert go_on.wait(PATIENCE)

    send(broker, "a", "b", "c")
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
    worker.start()
    try:
        assert begun.wait(PATIENCE)
        until(lambda: worker.work_queue.qsize() == 1)  # prefetched
        rabbitmq_server.kill()
        rabbitmq_server.start()
        until(lambda: worker.work_queue.qsize() == 3)  # and given out again, "a" among them
        go_on.set()
        until(lambda: len(done) == 4)
        worker.join()
    finally:
        worker.stop()
    assert sorted(done) == ["a", "a", "b", "c"]  # "a" was being done when the connection broke


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
