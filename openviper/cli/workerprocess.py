"""Start-up of each process of ``viperctl runworker``; Dramatiq's runner imports it by name."""

import importlib
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from openviper.core.email.delivery.worker import declare
from openviper.core.email.inbox import start_recording
from openviper.core.email.settings import EmailSettings, debug
from openviper.tasks import TaskSettings, get_broker

__all__ = ["QUEUES_VARIABLE", "boot", "task_modules"]

QUEUES_VARIABLE = "OPENVIPER_WORKER_QUEUES"

logger = logging.getLogger("openviper.tasks")

_SAME_SIGNAL = 2.5  # seconds after the first signal within which another one is taken for the same


def boot() -> None:
    """Create the broker, declare the project's actors and mail's own on it, and start recording for the inbox page."""
    _merge_signals()
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


def _merge_signals() -> None:
    """Take signals in quick succession for one: at the second Dramatiq's handler ends the process at once.

    A signal to the whole process group (systemd's default, a terminal) arrives twice, since the runner passes it on,
    and an impatient Ctrl+C four times.
    """
    first: float | None = None

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None or now - first > _SAME_SIGNAL:
            first = now if first is None else first
            handlers[number](number, frame)

    handlers = {}
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        if (number := getattr(signal, name, None)) is not None and callable(handler := signal.getsignal(number)):
            handlers[number] = handler
            signal.signal(number, receive)


def task_modules(folder: Path) -> list[str]:
    """Return ``TASKS["modules"]``, then each tasks.py in ``folder`` and in its packages."""
    return list(dict.fromkeys((*TaskSettings.from_settings().modules, *_found(folder))))


def _found(folder: Path) -> Iterator[str]:
    if (folder / "tasks.py").is_file():
        yield "tasks"
    for file in sorted(folder.glob("*/tasks.py")):
        if file.parent.name.isidentifier():
            yield f"{file.parent.name}.tasks"
