"""Kills of workers and of the broker, and a mail server that misbehaves, while mail goes through the queue."""

import asyncio
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from openviper.conf import override
from openviper.core.email import EmailMessageData
from openviper.core.email.queue import enqueue_email_job
from support.patience import PATIENCE
from support.rabbitmq import RabbitmqServer
from support.redis import RedisServer
from support.smtpd import ReceivedMessage, SmtpServer, _Rule
from support.workers import NamedWorker, write_project

__all__ = ["ChaosReport", "FlakySmtpServer", "claimed_jobs", "id_of", "run_chaos"]

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

    enqueued: set[str]
    arrivals: dict[str, list[str]]  # of each message: the names of the workers that it came from, in order
    cut: set[str]  # their connection was cut after the final dot
    killed: dict[str, set[str]]  # by the name of the worker: what was then in hand, not yet written down as sent
    drained_after: float  # seconds after the last kill

    @property
    def lost(self) -> set[str]:
        return self.enqueued - set(self.arrivals)

    @property
    def duplicates(self) -> set[str]:
        return {one for one, names in self.arrivals.items() if len(names) > 1 and one in self.enqueued}

    @property
    def explained(self) -> set[str]:
        """Duplicates whose connection was cut, or whose worker was killed, after the final dot."""
        return {one for one in self.duplicates if one in self.cut or self._died_in_hand(one)}

    def _died_in_hand(self, one: str) -> bool:
        return any(one in self.killed.get(name, ()) for name in self.arrivals[one][:-1])

    def __str__(self) -> str:
        lines = [
            f"messages {len(self.enqueued)}, kills {len(self.killed)}, drained in {self.drained_after:.0f} s",
            f"lost {len(self.lost)}, duplicates {len(self.duplicates)}, of these explained {len(self.explained)}",
        ]
        lines += [f"  lost {one}" for one in sorted(self.lost)]
        for one in sorted(self.duplicates):
            why = (
                "connection cut" if one in self.cut else "worker killed" if self._died_in_hand(one) else "NOT EXPLAINED"
            )
            lines.append(f"  {one} came from {', then '.join(self.arrivals[one])}: {why}")
        return "\n".join(lines)


async def run_chaos(
    folder: Path,
    broker: RedisServer | RabbitmqServer,
    *,
    messages: int,
    kills: int,
    gap: float = 3.0,
    broker_kill: bool = True,
    drain_limit: float = 600.0,
    seed: int = 1,
) -> ChaosReport:
    """Queue ``messages`` while two runners are killed ``kills`` times at least ``gap`` seconds apart."""
    with FlakySmtpServer(drops=0.05, refusals=0.05, seed=seed) as smtp:
        email = smtp.settings(default_sender="shop@example.com", timeout=PATIENCE)
        tasks = broker.tasks(heartbeat_timeout=20)
        project = write_project(folder / "project", tasks=tasks, email=email)
        names = (f"worker-{number}.example.com" for number in count(1))
        runners = [NamedWorker(project, next(names)), NamedWorker(project, next(names))]
        killed: dict[str, set[str]] = {}
        try:
            for runner in runners:
                await asyncio.to_thread(runner.start)
            with override(TASKS=tasks, EMAIL=email):
                sending = asyncio.create_task(_send(messages, spread=kills * gap))
                for number in range(kills):
                    await asyncio.sleep(gap)
                    runner = runners[number % 2]
                    await asyncio.to_thread(runner.kill)
                    killed[runner.name] = await asyncio.to_thread(_in_hand, broker)
                    runners[number % 2] = runner = NamedWorker(project, next(names))
                    await asyncio.to_thread(runner.start)
                    if broker_kill and number == kills // 2:
                        await asyncio.to_thread(broker.kill)
                        await asyncio.to_thread(broker.start)
                ids = await sending
            last = time.monotonic()
            await _until(lambda: ids <= {id_of(message.content) for message in tuple(smtp.messages)}, drain_limit)
            drained = max((message.at for message in smtp.messages), default=last) - last
        finally:
            for runner in runners:
                await asyncio.to_thread(runner.__exit__, None, None, None)
        return ChaosReport(ids, _arrivals(smtp), smtp.cut, killed, drained)


def _in_hand(broker: RedisServer | RabbitmqServer) -> set[str]:
    """Messages that a worker has, and has not yet written down as sent. RabbitMQ knows no such state: none."""
    return set() if isinstance(broker, RabbitmqServer) else claimed_jobs(broker)


def claimed_jobs(broker: RedisServer) -> set[str]:
    """Return the Message-IDs of the jobs on Redis that workers have claimed."""
    with broker.client() as client:
        jobs = [client.hmget(key, "state", "message_id") for key in client.scan_iter("*:mail:job:*", count=1000)]
    return {message_id.decode() for state, message_id in jobs if state == b"claimed"}


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


def _arrivals(smtp: FlakySmtpServer) -> dict[str, list[str]]:
    names = {command.connection: command.line.split()[-1] for command in smtp.commands if command.verb == "EHLO"}
    arrivals: dict[str, list[str]] = {}
    for message in smtp.messages:
        arrivals.setdefault(id_of(message.content), []).append(names[message.connection])
    return arrivals
