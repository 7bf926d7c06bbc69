"""Actors on each broker, and what our brokers add to Dramatiq's."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
from support.forked import in_child
from support.patience import PATIENCE
from support.redis import RedisServer

from openviper.conf import override
from openviper.exceptions import ImproperlyConfigured, MissingDependency
from openviper.tasks import actor, get_broker
from openviper.tasks.encoder import BytesEncoder, Sealed


@contextmanager
def working(broker: Any) -> Iterator[dramatiq.Worker]:
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=2)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()
        if hasattr(broker, "client"):
            broker.client.close()


def test_the_broker_is_made_once_and_follows_the_settings() -> None:
    with override(TASKS={"broker": "stub"}):
        broker = get_broker()
        assert get_broker() is broker
        assert dramatiq.get_broker() is broker
    with override(TASKS={"broker": "stub", "namespace": "other"}):
        assert get_broker() is not broker


def test_without_tasks_there_is_no_broker_and_actors_can_only_be_called() -> None:
    with pytest.raises(ImproperlyConfigured, match=r'TASKS\["enabled"\]'):
        get_broker()

    @actor
    def double(number: int) -> int:
        return 2 * number

    assert double(4) == 8
    with pytest.raises(ImproperlyConfigured, match="double"):
        double.send(4)


def test_async_and_sync_actors_run_on_the_stub_broker() -> None:
    done = []
    with override(TASKS={"broker": "stub", "namespace": "actors"}):
        broker = get_broker()

        @actor(queue_name="reports")
        async def report(number: int) -> None:
            done.append(("async", number))

        @actor
        def note(number: int) -> None:
            done.append(("sync", number))

        with working(broker) as worker:
            report.send(1)
            note.send(2)
            for queue in ("reports", "default"):
                broker.join(queue, timeout=int(PATIENCE * 1000))
            worker.join()
    assert sorted(done) == [("async", 1), ("sync", 2)]


def test_a_workers_loop_closes_what_waits_for_its_end() -> None:
    closed = threading.Event()
    with override(TASKS={"broker": "stub", "namespace": "loop"}):
        broker = get_broker()

        @actor
        async def opens() -> None:
            from openviper.loops import at_loop_end

            async def close() -> None:
                closed.set()

            at_loop_end(close)

        with working(broker) as worker:
            opens.send()
            broker.join("default", timeout=int(PATIENCE * 1000))
            worker.join()
            assert not closed.is_set()
    assert closed.is_set()


@pytest.mark.parametrize(("kind", "library"), [("redis", "redis"), ("rabbitmq", "pika")])
def test_a_missing_client_library_is_told_with_its_extra(kind: str, library: str) -> None:
    code = (
        f"import sys; sys.modules['{library}'] = None\n"
        "from openviper.conf import settings\n"
        f"settings.configure(TASKS={{'broker': '{kind}'}})\n"
        "from openviper.tasks import get_broker\n"
        "get_broker()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert MissingDependency.__name__ in done.stderr
    assert f"openviper-email[{kind}]" in done.stderr


def test_messages_whose_fetch_was_not_answered_are_not_stranded(redis_server: RedisServer) -> None:
    """Dramatiq counts them as in the hands of a worker that never had them, for as long as it lives."""
    done = threading.Event()
    with override(TASKS=redis_server.tasks()):
        broker: Any = get_broker()

        @actor
        def note() -> None:
            done.set()

        note.send()
        assert broker.do_fetch("default", 10), "fetched, and the answer was lost"
        with working(broker):
            assert done.wait(PATIENCE)


def test_what_is_no_message_goes_to_the_dead_ones_and_the_next_is_done(redis_server: RedisServer) -> None:
    done = threading.Event()
    with override(TASKS=redis_server.tasks()):
        broker: Any = get_broker()

        @actor
        def note() -> None:
            done.set()

        broker.do_enqueue("default", "poison", b"{")
        note.send()
        with working(broker):
            assert done.wait(PATIENCE)
            broker.join("default", timeout=int(PATIENCE * 1000))
        assert redis_server.client().hget("dramatiq:default.XQ.msgs", "poison") == b"{"


def test_a_child_process_is_another_worker(redis_server: RedisServer) -> None:
    """Two with the same name would take each other's messages for their own."""
    with override(TASKS=redis_server.tasks()):
        broker: Any = get_broker()
        assert in_child(lambda: str(broker.broker_id)) != broker.broker_id


def test_sealed_bytes_travel_as_they_are_and_show_nothing() -> None:
    encoder = BytesEncoder()
    secret = b"\x00\xffsecret" * 10
    message: dict[str, Any] = {"queue_name": "q", "actor_name": "a", "args": ("x", Sealed(secret)), "kwargs": {}}
    message |= {"options": {}, "message_id": "m", "message_timestamp": 1}
    encoded = encoder.encode(message)
    assert secret in encoded
    decoded = encoder.decode(encoded)
    assert decoded["args"] == ["x", secret]
    assert repr(decoded["args"][1]) == str(decoded["args"][1]) == f"<{len(secret)} bytes>"


def test_messages_without_bytes_are_dramatiqs_own_json() -> None:
    message = {"queue_name": "q", "actor_name": "a", "args": [1], "kwargs": {}, "options": {}}
    assert dramatiq.JSONEncoder().decode(BytesEncoder().encode(message)) == message


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x00OV1", b"\x00OV1\x00\x00\x00\x02{}", b'{"secret'])
def test_what_is_no_message_is_refused_without_being_shown(data: bytes) -> None:
    with pytest.raises(dramatiq.DecodeError) as caught:
        BytesEncoder().decode(data)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("redis", "redis://:very-secret@localhost/0?socket_timeout=soon"),
        ("rabbitmq", "amqp://shop:very-secret@localhost/%2F?heartbeat=soon"),
    ],
)
def test_a_value_in_the_url_that_cannot_be_read_is_a_wrong_setting(kind: str, url: str) -> None:
    with (
        override(TASKS={"broker": kind, "broker_url": url}),
        pytest.raises(ImproperlyConfigured, match="broker_url") as caught,
    ):
        get_broker()
    assert "very-secret" not in str(caught.value)
