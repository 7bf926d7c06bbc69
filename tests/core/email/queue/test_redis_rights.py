"""A Redis user with exactly the rights of docs/queue.md: keys below the namespace's prefix, and the commands listed."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.brokers import until_available
from support.documents import ROOT
from support.redis import RedisServer
from support.smtpd import SmtpServer
from support.workers import Worker, viperctl, write_project

from openviper.conf import override
from openviper.core.email import AttachmentData, DeliveryMode, QueueUnavailable, submit_email
from openviper.core.email.queue import close_queue, queue_service

BIG = AttachmentData("big.bin", b"x" * 200_000)


def documented() -> list[str]:
    """Return the words of the command in the documentation, for the user ``shop``."""
    block = re.search(r"```console\n(ACL SETUSER.*?)```", (ROOT / "docs" / "queue.md").read_text(), re.DOTALL)
    assert block is not None
    words = block[1].split()
    assert words[:3] == ["ACL", "SETUSER", "shop"]
    return words[3:]


class Restricted:
    """A Redis where the project's user has such rights."""

    def __init__(self, folder: Path, server: RedisServer, smtp: SmtpServer, rights: list[str]) -> None:
        self.admin = server.client()
        self.admin.execute_command("ACL", "SETUSER", "shop", *rights)
        self.smtp = smtp
        self.tasks = {"broker": "redis", "broker_url": f"redis://shop:password@127.0.0.1:{server.port}/0"}
        self.email = smtp.settings(default_sender="shop@example.com")
        self.project = write_project(folder / "project", tasks=self.tasks, email=self.email)


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def restricted(tmp_path: Path, redis_server: RedisServer, smtp: SmtpServer) -> Iterator[Restricted]:
    made = Restricted(tmp_path, redis_server, smtp, documented())
    with override(TASKS=made.tasks, EMAIL=made.email):
        until_available()
        yield made
        close_queue()


def failed_ids(restricted: Restricted) -> str:
    return viperctl("email", "failed", "list", "--project", restricted.project).stdout


async def test_the_documented_rights_suffice_for_all_that_the_queue_does(restricted: Restricted) -> None:
    """Sending at once and later, large attachments, retries, failures and their commands, status, a worker's death."""
    restricted.admin.execute_command("ACL", "LOG", "RESET")
    restricted.smtp.refuse("gone@example.com", 550)
    restricted.smtp.fault("MAIL", 451, nth=1)
    gate = restricted.smtp.hold("body", nth=1)
    for name, more in [("a", {}), ("b", {"attachments": [BIG]}), ("c", {"delay": 1}), ("gone", {})]:
        receipt = await submit_email(f"{name}@example.com", "Order", text="x", **more)  # type: ignore[arg-type]
        assert receipt.mode is DeliveryMode.QUEUED
    first = Worker(restricted.project, threads=1)
    await asyncio.to_thread(first.start)
    await gate.reached()
    await asyncio.to_thread(first.kill)
    gate.release()
    with Worker(restricted.project, threads=2):
        await restricted.smtp.until(lambda: len({m.recipients[0] for m in restricted.smtp.messages}) == 3)
        while receipt.message_id not in await asyncio.to_thread(failed_ids, restricted):
            await asyncio.sleep(0.1)
        status = await asyncio.to_thread(viperctl, "email", "status", "--project", restricted.project)
        assert status.returncode == 0, status.stderr
        retried = await asyncio.to_thread(
            viperctl, "email", "failed", "retry", "--all", "--project", restricted.project
        )
        assert "1 queued again" in retried.stdout
        while receipt.message_id not in await asyncio.to_thread(failed_ids, restricted):
            await asyncio.sleep(0.1)
        purged = await asyncio.to_thread(viperctl, "email", "failed", "purge", "--all", "--project", restricted.project)
        assert "1 deleted" in purged.stdout
    refused = [entry[b"object"] for entry in map(_pairs, restricted.admin.execute_command("ACL", "LOG"))]
    assert set(refused) <= {b"client|setinfo", b"client", b"client|maint_notifications"}, refused


def _pairs(entry: Any) -> dict[bytes, Any]:
    return entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True))


def test_every_key_is_below_the_prefix(restricted: Restricted) -> None:
    """A user who may use another prefix alone is refused, and told."""
    restricted.admin.execute_command("ACL", "SETUSER", "shop", "resetkeys", "~other:*")
    service = queue_service()
    assert service is not None
    with pytest.raises(QueueUnavailable, match="permission"):
        service.store.probe()


@pytest.mark.parametrize("command", ["zadd", "hset", "rpush", "pexpire"])
def test_a_missing_right_to_one_command_is_told_with_its_name(restricted: Restricted, command: str) -> None:
    restricted.admin.execute_command("ACL", "SETUSER", "shop", f"-{command}")
    service = queue_service()
    assert service is not None
    with pytest.raises(QueueUnavailable, match=f"run the {command.upper()} command"):
        service.store.probe()


@pytest.mark.parametrize("namespace", ["shop", "shop:live"])
async def test_a_namespace_of_its_own_is_such_a_prefix(
    tmp_path: Path, redis_server: RedisServer, smtp: SmtpServer, namespace: str
) -> None:
    rights = [word.replace("~dramatiq:", f"~{namespace}:") for word in documented()]
    made = Restricted(tmp_path, redis_server, smtp, rights)
    tasks = {**made.tasks, "namespace": namespace}
    project = write_project(tmp_path / "other", tasks=tasks, email=made.email)
    with override(TASKS=tasks, EMAIL=made.email):
        await asyncio.to_thread(until_available)
        receipt = await submit_email("a@example.com", "Order", text="x", attachments=[BIG])
        assert receipt.mode is DeliveryMode.QUEUED
        with Worker(project, threads=1):
            await made.smtp.arrive(1)
        await asyncio.to_thread(close_queue)
