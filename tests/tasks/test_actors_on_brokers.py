"""A project's own actors on either broker, run by the command as the documentation has it."""

import subprocess
import sys
import time
from pathlib import Path

import dramatiq
from support.broker_server import BrokerServer
from support.brokers import broker, rabbitmq_server, redis_server
from support.patience import PATIENCE
from support.workers import write_project

from openviper.conf import override
from openviper.tasks import get_broker

__all__ = ["broker", "rabbitmq_server", "redis_server"]

TASKS_MODULE = """
from pathlib import Path
from openviper.tasks import actor

@actor
async def note(name: str) -> None:
    Path(name).write_text("async")

@actor(queue_name="slow", max_retries=1, min_backoff=10)
def note_at_the_second_try(name: str) -> None:
    if not Path("tried").exists():
        Path("tried").touch()
        raise RuntimeError("try again")
    Path(name).write_text("sync")
"""


def test_async_and_sync_actors_run_and_are_tried_again(tmp_path: Path, broker: BrokerServer) -> None:
    folder = write_project(tmp_path / "shop", tasks=broker.tasks(), email={})
    (folder / "tasks.py").write_text(TASKS_MODULE)
    with override(TASKS=broker.tasks()):
        for queue, actor, name in (("default", "note", "one"), ("slow", "note_at_the_second_try", "two")):
            get_broker().declare_queue(queue)
            get_broker().enqueue(dramatiq.Message(queue, actor, (name,), {}, {}))
    command = [str(Path(sys.executable).with_name("openviper")), "viperctl", "runworker", "."]
    command += ["--queues", "default", "slow", "--processes", "1", "--threads", "2"]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while not all((folder / name).exists() for name in ("one", "two")):
            assert worker.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
    finally:
        worker.terminate()
        assert worker.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
