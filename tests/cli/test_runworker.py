"""``viperctl runworker`` starts only where there is work to do, and ends as it should."""

import asyncio
import itertools
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.patience import PATIENCE
from support.redis import RedisServer, redis_server
from support.smtpd import SmtpServer
from support.workers import Worker, viperctl, write_project

from openviper.conf import override
from openviper.core.email import send_email, submit_email
from openviper.core.email.queue import close_queue

__all__ = ["redis_server"]

TASKS_MODULE = """
from pathlib import Path
from openviper.tasks import actor

@actor
async def note(name: str) -> None:
    Path(name).write_text("async")

@actor(queue_name="slow")
def note_slowly(name: str) -> None:
    Path(name).write_text("sync")
"""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("", "no broker is configured"),
        ("TASKS = {'enabled': False, 'broker': 'redis'}", "no broker is configured"),
        ("TASKS = {'broker': 'stub'}", "stub broker"),
        ("TASKS = {'broker': 'rabbit', 'broker_ur': 'x'}", 'TASKS["broker_ur"]'),
        (
            "TASKS = {'broker': 'redis', 'broker_url': 'redis://u:very-secret@127.0.0.1:1/0'}",
            'refused; start it, or correct TASKS["broker_url"]',
        ),
        (
            "TASKS = {'broker': 'rabbitmq', 'broker_url': 'amqp://u:very-secret@127.0.0.1:1/'}",
            '; start it, or correct TASKS["broker_url"]',
        ),
        ("TASKS = {'broker': 'redis', 'modules': ['no.such']}", "there is no module 'no.such'"),
        ("TASKS = {'broker': 'redis'}\nEMAIL = {'prot': 25}", 'EMAIL["prot"]'),
        (
            "TASKS = {'broker': 'redis'}\nEMAIL = {'dkim': {'shop.example': {'s': '/no/such/key.pem'}}}",
            'EMAIL["dkim"]["shop.example"]["s"]: ',
        ),
        ("1 / 0", "settings.py"),
    ],
)
def test_what_cannot_work_ends_at_once_with_the_reason(tmp_path: Path, settings: str, words: str) -> None:
    (tmp_path / "settings.py").write_text(settings)
    done = viperctl("runworker", tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert "very-secret" not in done.stdout + done.stderr


def test_a_wrong_path_is_a_usage_error(tmp_path: Path) -> None:
    assert viperctl("runworker", tmp_path / "nowhere").returncode == 2
    done = viperctl("runworker", tmp_path, "emails")
    assert done.returncode == 2
    assert "--queues" in done.stderr


@pytest.fixture
def project(tmp_path: Path, redis_server: RedisServer) -> Path:
    folder = write_project(tmp_path / "shop", tasks=redis_server.tasks(), email={"host": "127.0.0.1", "port": 1})
    (folder / "tasks.py").write_text(TASKS_MODULE)
    return folder


def send_note(redis_server: RedisServer, queue: str, actor: str, path: Path) -> None:
    import dramatiq

    from openviper.tasks import get_broker

    with override(TASKS=redis_server.tasks()):
        get_broker().enqueue(dramatiq.Message(queue, actor, (str(path),), {}, {}))


def appears(path: Path, text: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (path.exists() and path.read_text() == text):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_the_projects_own_actors_run_async_and_sync(project: Path, redis_server: RedisServer, tmp_path: Path) -> None:
    send_note(redis_server, "default", "note", tmp_path / "one")
    send_note(redis_server, "slow", "note_slowly", tmp_path / "two")
    with Worker(project) as worker:
        appears(tmp_path / "one", "async")
        appears(tmp_path / "two", "sync")
    assert "very-secret" not in worker.output


def test_only_the_named_queues_are_worked_on(project: Path, redis_server: RedisServer, tmp_path: Path) -> None:
    send_note(redis_server, "default", "note", tmp_path / "one")
    send_note(redis_server, "slow", "note_slowly", tmp_path / "two")
    with Worker(project, "--queues", "slow,emails"):
        appears(tmp_path / "two", "sync")
        time.sleep(1)
    assert not (tmp_path / "one").exists()


def test_the_banner_says_what_runs_without_secrets(tmp_path: Path, redis_server: RedisServer) -> None:
    tasks = redis_server.tasks(broker_url=redis_server.url.replace("redis://", "redis://default:very-secret@"))
    redis_server.client().config_set("requirepass", "very-secret")
    folder = write_project(tmp_path / "shop", tasks=tasks, email={"host": "mail.example.com"})
    with Worker(folder, "--queues", "emails", processes=2, threads=3) as worker:
        pass
    assert f"redis at 127.0.0.1:{redis_server.port}" in worker.output
    assert "Queues  emails" in worker.output
    assert "2 process(es) with 3 threads" in worker.output
    assert "mail.example.com port 25" in worker.output
    assert "very-secret" not in worker.output


async def test_a_delivery_is_a_line_of_the_log(tmp_path: Path, redis_server: RedisServer) -> None:
    with SmtpServer() as smtp:
        email = smtp.settings(default_sender="shop@example.com")
        folder = write_project(tmp_path / "shop", tasks=redis_server.tasks(), email=email)
        with override(TASKS=redis_server.tasks(), EMAIL=email):
            receipt = await submit_email("a@example.com", "Order", text="")
            await asyncio.to_thread(close_queue)
        with Worker(folder) as worker:
            while redis_server.client().zcard("dramatiq:mail:open"):
                await asyncio.sleep(0.1)
        assert worker.output.count(f"message {receipt.message_id}: delivered") == 1


async def delivering(folder: Path, broker: RedisServer, smtp: SmtpServer) -> Worker:
    """A worker that has just begun to deliver the only message."""
    email = smtp.settings(default_sender="shop@example.com")
    write_project(folder, tasks=broker.tasks(), email=email)
    with override(TASKS=broker.tasks(), EMAIL=email):
        await send_email("a@example.com", "Order", text="")
        await asyncio.to_thread(close_queue)
    worker = Worker(folder)
    worker.start()
    await smtp.seen("MAIL")
    return worker


async def test_sigterm_finishes_what_is_in_hand_and_says_quit(tmp_path: Path, redis_server: RedisServer) -> None:
    with SmtpServer() as smtp:
        gate = smtp.hold("body")
        worker = await delivering(tmp_path / "shop", redis_server, smtp)
        worker.signal_end()
        await asyncio.to_thread(worker.wait_for, "Stopping worker process")
        gate.release()
        assert await asyncio.to_thread(worker.wait) == 0
        assert len(smtp.messages) == 1
        assert smtp.verbs[-1] == "QUIT"
    assert redis_server.client().zcard("dramatiq:mail:open") == 0


def test_a_dead_process_ends_the_runner_with_a_failure(project: Path, tmp_path: Path) -> None:
    """So that a supervisor starts it again."""
    pid_file = tmp_path / "pid"
    worker = Worker(project, "--pid-file", str(pid_file))
    worker.start()
    children = subprocess.run(["pgrep", "-P", pid_file.read_text()], capture_output=True, text=True).stdout.split()
    subprocess.run(["kill", f"-{signal.SIGKILL.value}", children[0]], check=True)
    assert worker.wait() != 0
    assert not pid_file.exists()


def save(project: Path, word: str) -> None:
    (project / "tasks.py").write_text(TASKS_MODULE.replace('"async"', repr(word)))


def test_two_saves_in_quick_succession_start_the_worker_once_again(
    project: Path, redis_server: RedisServer, tmp_path: Path
) -> None:
    """A second signal would make Dramatiq kill it. Saves that are seconds apart may start it twice."""
    worker = Worker(project, "--watch")
    worker.start()
    save(project, "half")
    time.sleep(0.05)
    save(project, "changed")
    deadline = time.monotonic() + PATIENCE
    while not 1 <= worker.output.count("restarting the worker") < worker.output.count("ready for action"):
        assert time.monotonic() < deadline, worker.output
        time.sleep(0.1)
    send_note(redis_server, "default", "note", tmp_path / "one")
    appears(tmp_path / "one", "changed")
    assert worker.terminate() == 0
    assert worker.output.count("restarting the worker") <= 2
    assert "Killing" not in worker.output


def test_whenever_files_are_saved_the_last_ones_run_in_the_end(
    project: Path, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Also while the worker ends, and while it starts."""
    with Worker(project, "--watch") as worker:
        for number in range(12):
            save(project, f"version {number}")
            time.sleep(0.2 + 0.1 * number)
        deadline = time.monotonic() + PATIENCE
        for attempt in itertools.count():
            note = tmp_path / f"note {attempt}"
            send_note(redis_server, "default", "note", note)
            while not note.exists():
                assert time.monotonic() < deadline, worker.output
                time.sleep(0.1)
            if note.read_text() == "version 11":
                break
        # Not after the end, whose signal may come while the worker starts once more.
        assert "Killing" not in worker.output


def test_a_module_with_a_fault_ends_the_worker(project: Path) -> None:
    (project / "tasks.py").write_text("import no_such_module\n")
    worker = Worker(project)
    worker.start(ready=False)
    assert worker.wait() == 2
    assert "no_such_module" in worker.output
