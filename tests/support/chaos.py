"""Kills of workers and of the broker, and a mail server that misbehaves, while mail goes through the queue."""

import asyncio
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openviper.conf import override
from openviper.core.email import EmailMessageData
from openviper.core.email.queue import enqueue_email_job
from support.smtpd import ReceivedMessage, SmtpServer, _Rule
from support.workers import Worker, write_project

__all__ = ["ChaosReport", "FlakySmtpServer", "run_chaos"]

_MESSAGE_ID = re.compile(rb"^Message-ID: (\S+)\r$", re.MULTILINE | re.IGNORECASE)
_VERBS = ("EHLO", "MAIL", "RCPT", "DATA", "BDAT", "body")


class FlakySmtpServer(SmtpServer):
    """Hangs up at every verb, and answers 421 and 451, with these probabilities until ``calm`` is set.

    Where it hangs up at the end of a message it has taken it half of the time: then the client cannot know.
    """

    def __init__(self, *, drops: float, refusals: float, seed: int) -> None:
        super().__init__()
        self.calm = False
        self.cut: set[str] = set()  # ids of messages whose connection was cut after the final dot
        self._random = random.Random(seed)
        self._drops = drops
        self._refusals = refusals

    def _met(self, connection: int, verb: str, line: str) -> list[_Rule]:
        rules = super()._met(connection, verb, line)
        if self.calm or verb not in _VERBS:
            return rules
        if self._random.random() < self._drops:
            return [*rules, _Rule(verb, "drop", None)]
        if verb in ("MAIL", "RCPT") and self._random.random() < self._refusals:
            return [*rules, _Rule(verb, self._random.choice((421, 451)), None)]
        return rules

    def _keep(self, message: ReceivedMessage) -> None:
        super()._keep(message)
        if not self.calm and self._random.random() < self._drops / 2:
            self.cut.add(id_of(message.content))
            raise ConnectionError("the connection is cut before the answer")


def id_of(content: bytes) -> str:
    found = _MESSAGE_ID.search(content)
    assert found is not None
    return found[1].decode()


@dataclass
class ChaosReport:
    """What became of the messages, by Message-ID."""

    lost: set[str]
    duplicates: set[str]
    explained: set[str]  # duplicates whose connection was cut after the final dot, or whose worker was killed then
    enqueued: int
    drained_after: float  # seconds after the last kill
    kills: int
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"messages {self.enqueued}, kills {self.kills}, drained {self.drained_after:.0f} s after the last",
            f"lost {len(self.lost)}, duplicates {len(self.duplicates)}, of these explained {len(self.explained)}",
        ]
        lines += [f"  lost {one}" for one in sorted(self.lost)]
        lines += [
            f"  twice {one}{'' if one in self.explained else ' NOT EXPLAINED'}" for one in sorted(self.duplicates)
        ]
        return "\n".join(lines + self.notes)


async def run_chaos(
    folder: Path,
    broker: Any,
    *,
    messages: int,
    kills: int,
    gap: float = 3.0,
    broker_kill: bool = True,
    drain_limit: float = 60.0,
    seed: int = 1,
) -> ChaosReport:
    """Queue ``messages`` while two runners are killed ``kills`` times at least ``gap`` seconds apart."""
    with FlakySmtpServer(drops=0.05, refusals=0.05, seed=seed) as smtp:
        email = smtp.settings(default_sender="shop@example.com", timeout=5.0)
        tasks = broker.tasks(heartbeat_timeout=8)
        project = write_project(folder / "project", tasks=tasks, email=email)
        runners = [Worker(project), Worker(project)]
        killed_at: list[float] = []
        try:
            for runner in runners:
                await asyncio.to_thread(runner.start)
            with override(TASKS=tasks, EMAIL=email):
                sending = asyncio.create_task(_send(messages, spread=kills * gap))
                for number in range(kills):
                    await asyncio.sleep(gap)
                    runner = runners[number % 2]
                    killed_at.append(time.monotonic())
                    await asyncio.to_thread(runner.kill)
                    await asyncio.to_thread(runner.start)
                    if broker_kill and number == kills // 2:
                        await asyncio.to_thread(broker.kill)
                        await asyncio.to_thread(broker.start)
                ids = await sending
            last = time.monotonic()
            await _until(lambda: ids <= _seen(smtp), drain_limit)
            drained = max((m.at for m in smtp.messages), default=last) - last
        finally:
            for runner in runners:
                await asyncio.to_thread(runner.__exit__, None, None, None)
        return _report(smtp, ids, killed_at, drained)


async def _send(messages: int, *, spread: float) -> set[str]:
    """Queue them one after the other; what the broker does not take is tried again, as a new message."""
    ids: set[str] = set()
    for number in range(messages):
        data = EmailMessageData([f"to{number}@example.com"], f"Message {number}", text="x" * 200)
        while True:
            try:
                ids.add((await enqueue_email_job(data)).message_id)
                break
            except Exception:  # noqa: BLE001 - the broker is being killed
                await asyncio.sleep(0.2)
        await asyncio.sleep(spread / messages * 0.8)
    return ids


async def _until(condition: Callable[[], bool], limit: float) -> None:
    deadline = time.monotonic() + limit
    while not condition() and time.monotonic() < deadline:
        await asyncio.to_thread(threading.Event().wait, 0.2)


def _seen(smtp: SmtpServer) -> set[str]:
    return {id_of(message.content) for message in tuple(smtp.messages)}


def _report(smtp: FlakySmtpServer, ids: set[str], killed_at: list[float], drained: float) -> ChaosReport:
    arrivals = Counter(id_of(message.content) for message in smtp.messages)
    duplicates = {one for one, count in arrivals.items() if count > 1 and one in ids}
    explained = set()
    for one in duplicates:
        times = sorted(message.at for message in smtp.messages if id_of(message.content) == one)
        # Killed within a second after the server took it: before the worker had written that down.
        by_kill = any(0 <= kill - at < 1.0 for at in times[:-1] for kill in killed_at)
        if one in smtp.cut or by_kill:
            explained.add(one)
    return ChaosReport(ids - set(arrivals), duplicates, explained, len(ids), drained, len(killed_at))
