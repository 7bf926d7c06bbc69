"""``viperctl email status`` and ``viperctl email failed``."""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.broker_server import BrokerServer
from support.brokers import rabbitmq_server, redis_server
from support.brokers import usual_broker as broker
from support.patience import PATIENCE
from support.smtpd import SmtpServer
from support.terminal import on_a_terminal
from support.workers import Worker, viperctl, write_project

from openviper.conf import override
from openviper.core.email import EmailMessageData, send_email
from openviper.core.email.message import check_message
from openviper.core.email.message.storage import encode, join
from openviper.core.email.queue import close_queue, queue_service
from openviper.core.email.queue.job import ClaimedJob, NewJob, Progress, job_key
from openviper.core.email.queue.redis_store import RedisJobStore
from openviper.tasks import get_broker
from openviper.tasks.encoder import Sealed

__all__ = ["broker", "rabbitmq_server", "redis_server"]


async def test_a_failed_message_passes_through_all_commands(tmp_path: Path, broker: BrokerServer) -> None:
    with SmtpServer() as smtp:
        smtp.refuse("gone@example.com", 550)
        email = smtp.settings(default_sender="shop@example.com")
        project = write_project(tmp_path / "shop", tasks=broker.tasks(), email=email)
        with override(TASKS=broker.tasks(), EMAIL=email):
            await send_email(["gone@example.com", "here@example.com"], "Order 7", text="reset-link")
            await asyncio.to_thread(close_queue)

        def run(*arguments: str) -> Any:
            return viperctl("email", *arguments, "--project", str(project))

        status = run("status")
        assert status.returncode == 1
        assert "Workers  none" in status.stdout
        assert "Waiting  1" in status.stdout
        with Worker(project) as worker:
            await smtp.arrive(1)
            failed_soon(run)
            status = run("status")
            assert status.returncode == 0, status.stderr
            assert "Workers  1" in status.stdout
            listed = run("failed", "list").stdout
            message_id = listed.split()[2]
            assert "example.com" in message_id
            assert "gone@" not in listed
            shown = run("failed", "show", message_id.strip("<>")).stdout
            assert "gone@example.com  550" in shown
            assert "Order 7" in shown
            assert "reset-link" not in shown
            smtp.behave()
            assert "1 queued again" in run("failed", "retry", message_id).stdout
            messages = await smtp.arrive(2)
            assert messages[-1].recipients == ["gone@example.com"]
            assert messages[-1].content == messages[0].content, "the same message, its id and date included"
        assert run("failed", "list").stdout == ""
        assert "gone@example.com" not in worker.output
        assert "reset-link" not in worker.output


async def test_purge_drops_for_good(tmp_path: Path, broker: BrokerServer) -> None:
    with SmtpServer() as smtp:
        smtp.fault("MAIL", 550)
        email = smtp.settings(default_sender="shop@example.com")
        project = write_project(tmp_path / "shop", tasks=broker.tasks(), email=email)
        with override(TASKS=broker.tasks(), EMAIL=email):
            for number in range(2):
                await send_email("a@example.com", f"Order {number}", text="")
            await asyncio.to_thread(close_queue)

        def run(*arguments: str) -> Any:
            return viperctl("email", *arguments, "--project", str(project))

        with Worker(project):
            failed_soon(run, 2)
        first = run("failed", "list").stdout.split()[2]
        assert run("failed", "purge").returncode == 2
        assert "1 deleted" in run("failed", "purge", first).stdout
        unknown = run("failed", "purge", first)
        assert unknown.returncode == 1
        assert "1 deleted" in run("failed", "purge", "--all").stdout
        assert "Failed   0" in run("status").stdout


@pytest.mark.parametrize("command", ["retry", "purge"])
def test_many_messages_move_a_bar_on_a_terminal_and_nowhere_else(
    tmp_path: Path, broker: BrokerServer, command: str
) -> None:
    project = write_project(tmp_path / "shop", tasks=broker.tasks(), email={})
    words = ("email", "failed", command, "--all", "--project", str(project))
    with override(TASKS=broker.tasks()):
        give_up(30)
        seen = on_a_terminal([str(Path(sys.executable).with_name("viperctl")), *words]).stdout
        give_up(30)
    assert "100%" in seen
    assert "30 queued again" in seen or "30 deleted" in seen
    done = viperctl(*words)
    assert (done.stdout, done.stderr) == (f"30 {'queued again' if command == 'retry' else 'deleted'}\n", "")


def give_up(count: int) -> None:
    """Put failed messages on the broker."""
    service = queue_service()
    assert service is not None
    get_broker()
    for number in range(count):
        message = check_message(
            EmailMessageData(["a@example.com"], f"Order {number}", text=""), default_sender="s@x.test"
        )
        key, progress = job_key(message.message_id, message.recipients), Progress(time.time(), 1)
        one = NewJob(key, message.message_id, encode(message), progress, keep=3600)
        if isinstance(service.store, RedisJobStore):
            service.store.add(one, deadline=time.monotonic() + PATIENCE)
            held = service.store.claim(key, 1, "ticket")
        else:
            held = ClaimedJob(key, one.message_id, progress, one.payload, token=Sealed(join(one.payload)))
        assert held is not None
        service.store.fail(held, progress, "550 no", keep=3600, uncertain=False)
    close_queue()


def test_without_a_broker_the_commands_say_so(tmp_path: Path) -> None:
    project = write_project(tmp_path / "shop", tasks={}, email={})
    done = viperctl("email", "status", "--project", str(project))
    assert done.returncode == 1
    assert "TASKS" in done.stderr


def test_a_broker_that_does_not_answer_is_named(tmp_path: Path) -> None:
    tasks = {"broker": "redis", "broker_url": "redis://:very-secret@127.0.0.1:1/0"}
    done = viperctl("email", "failed", "list", "--project", str(write_project(tmp_path / "s", tasks=tasks, email={})))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "very-secret" not in done.stderr


def failed_soon(run: Any, count: int = 1) -> None:
    deadline = time.monotonic() + PATIENCE
    while f"Failed   {count}" not in run("status").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.3)
