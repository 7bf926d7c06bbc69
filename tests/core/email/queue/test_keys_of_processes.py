"""One idempotency key in several real processes that share a Redis, some of which are killed."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import support
from support.patience import PATIENCE

SENDER = Path(support.__file__).parent / "key_sender.py"


class Process:
    """A sender that waits for ``go``."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def wait_until_ready(self) -> None:
        assert self._line() == "ready"

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def answers(self) -> list[str]:
        answers: list[str] = json.loads(self._line())
        return answers

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def sender(
    scene: Any, *, key: str = "order-7", count: int = 1, background: bool | None = False, inside: str = ""
) -> Iterator[Process]:
    given = {"TASKS": scene.tasks, "EMAIL": scene.email, "key": key}
    given |= {"count": count, "background": background, "inside": inside}
    with subprocess.Popen(
        [sys.executable, "-P", SENDER, json.dumps(given)],  # without its folder, where there is another redis.py
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Process(process)
        finally:
            process.kill()


def send(scene: Any, **options: Any) -> list[str]:
    """What a process is told that sends once."""
    with sender(scene, **options) as process:
        process.wait_until_ready()
        process.go()
        return process.answers()


def end_lease(scene: Any) -> None:
    """Let the lease of a claim end that nobody renews, as it does after a minute."""
    with scene.broker.client() as client:
        name = "dramatiq:mail:key:order-7"
        if client.hget(name, "state") == b"sending":
            client.hset(name, "until", 0)
        else:
            assert 0 < client.pttl(name) <= 60_000
            client.delete(name)


@pytest.mark.parametrize("background", [False, None])
def test_fifty_sends_of_four_processes_deliver_exactly_one(redis_scene: Any, background: bool | None) -> None:
    with ExitStack() as stack:
        counts = (13, 13, 12, 12)
        processes = [stack.enter_context(sender(redis_scene, count=count, background=background)) for count in counts]
        for process in processes:
            process.wait_until_ready()
        for process in processes:
            process.go()
        told = Counter(answer for process in processes for answer in process.answers())
    if background is None:
        assert told == {"accepted": 1, "duplicate accepted": 49}
        with redis_scene.worker():
            redis_scene.smtp.wait_for(1)
    else:
        assert told.pop("delivered", 0) == 1, told
        assert told.keys() <= {"duplicate in_flight", "duplicate delivered"}
        assert told.total() == 49
    assert len(redis_scene.smtp.messages) == 1


def test_process_that_is_killed_during_an_attempt_leaves_an_uncertain_key(redis_scene: Any) -> None:
    gate = redis_scene.smtp.hold("body")
    with sender(redis_scene) as process:
        process.wait_until_ready()
        process.go()
        gate.wait()
        process.kill()
    gate.release()
    assert send(redis_scene) == ["duplicate in_flight"]
    end_lease(redis_scene)
    assert send(redis_scene, count=2) == ["uncertain", "uncertain"]
    assert len(redis_scene.smtp.messages) <= 1


def test_process_that_is_killed_after_the_answer_has_sent_it(redis_scene: Any) -> None:
    with sender(redis_scene) as process:
        process.wait_until_ready()
        process.go()
        assert process.answers() == ["delivered"]
        process.kill()
    assert send(redis_scene) == ["duplicate delivered"]
    assert len(redis_scene.smtp.messages) == 1


def test_process_that_is_killed_before_its_response_has_ended_frees_the_key(redis_scene: Any) -> None:
    redis_scene.email["use_background_worker"] = False
    with sender(redis_scene, background=None, inside="request") as process:
        process.wait_until_ready()
        process.go()
        assert process.answers() == ["accepted"]
        process.kill()
    assert send(redis_scene) == ["duplicate in_flight"]
    end_lease(redis_scene)
    assert send(redis_scene) == ["delivered"]
    assert len(redis_scene.smtp.messages) == 1


def test_process_that_is_killed_before_its_commit_has_claimed_nothing(redis_scene: Any) -> None:
    with sender(redis_scene, background=None, inside="transaction") as process:
        process.wait_until_ready()
        process.go()
        assert process.answers() == ["held"]
        process.kill()
    assert send(redis_scene) == ["delivered"]
    assert len(redis_scene.smtp.messages) == 1


def test_process_that_is_killed_after_queueing_has_queued_one(redis_scene: Any) -> None:
    with sender(redis_scene, background=None) as process:
        process.wait_until_ready()
        process.go()
        assert process.answers() == ["accepted"]
        process.kill()
    assert send(redis_scene, background=None) == ["duplicate accepted"]
    with redis_scene.worker():
        redis_scene.smtp.wait_for(1)
    assert send(redis_scene, background=None) == ["duplicate accepted"]
    assert len(redis_scene.smtp.messages) == 1
