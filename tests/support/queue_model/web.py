"""The web process of a run, seen from outside."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from support.patience import PATIENCE
from support.queue_model.records import Sent

__all__ = ["WebProcess"]

_PROGRAM = Path(__file__).with_name("sender.py")


class WebProcess:
    """Sends messages, and records each receipt when it comes. ``settings``: those of the project."""

    def __init__(self, name: str, settings: Mapping[str, Any], log: Path) -> None:
        self.name = name
        self._log = log
        self._answered = threading.Condition()
        self._open: dict[int, Sent] = {}
        self._ready = self._ended = False
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, _PROGRAM, json.dumps(settings)],
                env={**os.environ, "EMAIL_LOCAL_HOSTNAME": name},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name="receipts", daemon=True)
        self._reader.start()
        self._wait(lambda: self._ready)

    @property
    def session(self) -> int:
        """Its process group."""
        return self._process.pid

    @property
    def output(self) -> str:
        """What it has logged."""
        return self._log.read_text()

    def send(self, messages: Iterable[Sent]) -> None:
        """Have it send these at the same time, and wait until each has its answer."""
        messages = list(messages)
        self._open |= {sent.planned.number: sent for sent in messages}
        orders = [
            {
                "number": sent.planned.number,
                "to": sent.planned.addresses,
                "delay": sent.planned.delay,
                "attachment": sent.planned.attachment,
                "mailer": sent.planned.mailer,
                "held": sent.planned.held,
            }
            for sent in messages
        ]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(orders).encode() + b"\n")
        self._process.stdin.flush()
        self._wait(lambda: not self._open)

    def kill_during(self, messages: Iterable[Sent], delay: float) -> None:
        """SIGKILL it ``delay`` seconds after it got messages to send; some may have a receipt."""
        timer = threading.Timer(delay, self._process.kill)
        timer.start()
        try:
            self.send(messages)
        except (AssertionError, BrokenPipeError):
            if self._process.poll() is None and not timer.finished.is_set():
                raise
        timer.join(PATIENCE)
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def close(self) -> int:
        """Let it end by itself, and return how it ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            return self._process.wait(PATIENCE)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait(PATIENCE)
            self._reader.join(PATIENCE)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                answer = json.loads(line)
                with self._answered:
                    if "ready" in answer:
                        self._ready = True
                    else:
                        sent = self._open.pop(answer["number"])
                        sent.answered, sent.answer = time.monotonic(), answer
                    self._answered.notify_all()
        with self._answered:
            self._ended = True
            self._answered.notify_all()

    def _wait(self, condition: Callable[[], bool]) -> None:
        with self._answered:
            done = self._answered.wait_for(lambda: condition() or self._ended, PATIENCE)
        assert done, f"{self.name} gave no answer in time:\n{self.output[-3000:]}"
        assert condition(), f"{self.name} has ended:\n{self.output[-3000:]}"
