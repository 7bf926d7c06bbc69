"""Start-up of each process of ``viperctl runworker``; Dramatiq's runner imports it by name."""

import importlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from openviper.core.email.delivery.worker import declare
from openviper.core.email.inbox import start_recording
from openviper.core.email.settings import EmailSettings, debug
from openviper.tasks import TaskSettings, get_broker

__all__ = ["QUEUES_VARIABLE", "boot", "task_modules"]

QUEUES_VARIABLE = "OPENVIPER_WORKER_QUEUES"

logger = logging.getLogger("openviper.tasks")


def boot() -> None:
    """Create the broker, declare the project's actors and mail's own on it, and start recording for the inbox page."""
    broker = get_broker()
    declare(broker)
    start_recording(EmailSettings.from_settings(), debug=debug())
    for name in task_modules(Path.cwd()):
        importlib.import_module(name)
    wanted = json.loads(os.environ.get(QUEUES_VARIABLE, "[]"))
    for name in wanted:
        if name not in broker.get_declared_queues():
            declared = ", ".join(sorted(broker.get_declared_queues()))
            logger.warning("no actor uses the queue %r; declared queues: %s", name, declared)


def task_modules(folder: Path) -> list[str]:
    """Return ``TASKS["modules"]``, then each tasks.py in ``folder`` and in its packages."""
    return list(dict.fromkeys((*TaskSettings.from_settings().modules, *_found(folder))))


def _found(folder: Path) -> Iterator[str]:
    if (folder / "tasks.py").is_file():
        yield "tasks"
    for file in sorted(folder.glob("*/tasks.py")):
        if file.parent.name.isidentifier():
            yield f"{file.parent.name}.tasks"
