"""Carry out the plan of a seed, let the queue drain, and hold what came of it against the invariants."""

import contextlib
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openviper.conf import override
from openviper.core.email.queue import queue_service
from openviper.core.email.queue.outbox_store import OutboxJobStore
from support.patience import PATIENCE
from support.queue_model.brokers import BrokerUnderTest, RabbitmqUnderTest, RedisUnderTest
from support.queue_model.databases import PostgresUnderTest, SqliteUnderTest
from support.queue_model.fleet import THREADS, Fleet
from support.queue_model.mailserver import PlannedSmtpServer
from support.queue_model.plan import FIRST_FRESH, Operation, PlannedMessage, make_plan
from support.queue_model.records import Life, Records, Sent, Trouble
from support.queue_model.report import ModelReport
from support.queue_model.web import WebProcess
from support.workers import viperctl, write_project

if TYPE_CHECKING:
    from openviper.core.email.queue.job import JobStore

__all__ = ["run_model"]

_GROWTH = 80.0  # MB by which a process may grow beyond its first size
_OVER_LIMIT = 0.05
_SETTLED_WITHIN = 150.0  # seconds in which results are recorded; of a crash that undid some, after a lease
_DOWN = "mail is not queued: the broker"
_UP = "mail is queued again"
_LISTED = re.compile(r"^\S+ \S+  (<[^>]+>)  ", re.MULTILINE)


def run_model(
    folder: Path,
    broker: str,
    seed: int,
    operations: int,
    *,
    drain_limit: float = 5 * PATIENCE,
    patient: bool = True,
    say: Callable[[str], object] = lambda _line: None,
) -> ModelReport:
    """Run one seed in ``folder``, which is empty. ``say`` gets a line for each operation.

    ``patient``: let the leases of processes that were killed end by themselves, where they have some.
    """
    (folder / "broker").mkdir()
    under_test = _make_broker(broker, folder / "broker")
    plan = make_plan(broker, seed, operations)
    with contextlib.ExitStack() as stack:
        stack.callback(under_test.close)
        stack.callback(under_test.end)
        under_test.start()
        run = _Run(folder, broker, under_test, stack.enter_context(PlannedSmtpServer()), say)
        stack.callback(run.kill)
        run.start()
        for operation in plan:
            run.execute(operation)
        return run.finish(seed, operations, drain_limit, patient=patient)


def _make_broker(kind: str, folder: Path) -> BrokerUnderTest:
    if kind == "redis":
        return RedisUnderTest(folder)
    if kind == "sqlite":
        return SqliteUnderTest(folder)
    if kind == "postgresql":
        return PostgresUnderTest(folder)
    return RabbitmqUnderTest(folder, quorum=kind == "quorum")


class _Run:
    def __init__(
        self, folder: Path, kind: str, broker: BrokerUnderTest, smtp: PlannedSmtpServer, say: Callable[[str], object]
    ) -> None:
        self._folder = folder
        self._kind = kind
        self._broker = broker
        self._smtp = smtp
        self._say = say
        self._began = time.monotonic()
        self._records = Records(kind)
        email = smtp.settings(default_sender="shop@example.com", timeout=PATIENCE)
        email |= {"mailers": {"bulk": {}}, **broker.email_settings()}
        self._settings: dict[str, Any] = {"TASKS": {}, **broker.settings(), "EMAIL": email}
        more = {name: value for name, value in self._settings.items() if name not in ("TASKS", "EMAIL")}
        self._project = write_project(folder / "project", tasks=self._settings["TASKS"], email=email, **more)
        self._fleet = Fleet(self._project, broker, self._records)
        self._web_names = (f"web-{number}.example.com" for number in count(1))
        self._webs: list[WebProcess] = []
        self._trouble: Trouble | None = None
        self._trouble_steps = 0
        self._trouble_until = 0.0
        self._sizes: dict[str, dict[int, list[float]]] = {"web": {}, "worker": {}}
        self._over_limit = 0.0
        self._counts: Counter[str] = Counter()
        self._faults: list[str] = []
        self._trace: list[str] = []

    def start(self) -> None:
        """Start what the operations act on."""
        self._fleet.start()
        self._start_web()

    def kill(self) -> None:
        """End all processes, whatever has happened."""
        self._fleet.kill_all()
        for web in self._webs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(web.session, 9)

    @property
    def _web(self) -> WebProcess:
        return self._webs[-1]

    def _start_web(self) -> None:
        name = next(self._web_names)
        self._records.lives[name] = Life(name)
        self._webs.append(WebProcess(name, self._settings, self._folder / f"{name}.log"))

    # Operations

    def execute(self, operation: Operation) -> None:
        """Carry out one step, after ending a trouble whose time is over."""
        if self._trouble is not None:
            self._trouble_steps -= 1
            if self._trouble_steps < 0:
                self._end_trouble()
        self._fleet.supervise(trouble=self._trouble is not None)
        self._counts[operation.name] += 1
        begin = time.monotonic()
        outcome = _ACTIONS.get(operation.name, _Run._make_trouble)(self, operation)
        taken = time.monotonic() - begin
        self._note(f"{operation}: {outcome or 'done'} ({taken:.1f} s)")
        self._measure()

    def _note(self, text: str) -> None:
        trouble = "" if self._trouble is None else f" [{self._trouble.name}]"
        line = f"{time.monotonic() - self._began:6.1f} s{trouble} {text}"
        self._trace.append(line)
        self._say(line)

    def _send(self, operation: Operation) -> str:
        messages = self._to_send(operation.messages)
        self._web.send(messages)
        return ", ".join(f"{number} {outcome}" for outcome, number in Counter(map(_outcome, messages)).items())

    def _to_send(self, planned: tuple[PlannedMessage, ...]) -> list[Sent]:
        self._smtp.expect(planned)
        messages = [Sent(one, self._web.name, time.monotonic()) for one in planned]
        self._records.sent |= {sent.planned.number: sent for sent in messages}
        return messages

    def _wait(self, operation: Operation) -> None:
        time.sleep(operation.seconds)

    def _wait_for_broker(self, _operation: Operation) -> str:
        """Wait until the web process has found out by itself that the broker is back."""
        self._end_trouble()
        if not self._until(self._queueing, PATIENCE):
            self._faults.append(f"{self._web.name} did not find the broker again")
        return ""

    def _queueing(self) -> bool:
        return self._web.output.count(_UP) == self._web.output.count(_DOWN)

    def _kill_worker(self, operation: Operation) -> None:
        self._fleet.kill(operation.variant)

    def _end_worker(self, operation: Operation) -> str:
        return self._fleet.end(operation.variant)

    def _kill_web(self, operation: Operation) -> str:
        number = 500_000 + len(self._webs) * 100
        faultless = tuple(
            PlannedMessage(number + one, {f"k{number + one}@example.com": ()}, frozenset(), (), None, 0)
            for one in range(20)
        )
        messages = self._to_send(faultless)
        self._web.kill_during(messages, operation.fraction / 20)
        life = self._records.lives[self._web.name]
        life.killed, life.in_hand = time.monotonic(), self._broker.in_hand()
        self._start_web()
        return f"{sum(sent.answer is not None for sent in messages)} of {len(messages)} had a receipt"

    def _kill_broker(self, _operation: Operation) -> str:
        self._end_trouble()
        trouble = Trouble("kill broker", time.monotonic())
        self._records.troubles.append(trouble)
        self._broker.restart()
        trouble.end = time.monotonic()
        return ""

    def _make_trouble(self, operation: Operation) -> str:
        self._end_trouble()
        self._trouble = Trouble(operation.name, time.monotonic())
        self._trouble_steps = operation.span
        self._trouble_until = time.monotonic() + operation.seconds
        self._records.troubles.append(self._trouble)
        self._broker.begin(operation.name)
        return ""

    def _end_trouble(self) -> None:
        trouble = self._trouble
        if trouble is None:
            return
        time.sleep(max(0.0, self._trouble_until - time.monotonic()))
        self._measure()
        self._broker.end()
        trouble.end = time.monotonic()
        self._trouble = None
        self._note(f"end of {trouble.name}")

    def _move_clock(self, operation: Operation) -> str:
        now = time.monotonic()
        self._records.troubles.append(Trouble("move clock", now, now))
        self._broker.clock.shift(operation.seconds)
        return "" if self._broker.clock.movable else "no C compiler: the clock stays right"

    def _add_junk(self, operation: Operation) -> str:
        if self._trouble is not None:  # RabbitMQ with an alarm would not even close our connection
            return "left out"
        return "" if self._broker.add_junk(operation.variant) else "not accepted"

    def _list_failed(self, _operation: Operation) -> str:
        listed = self._listed()
        return "no answer" if listed is None else f"{len(listed)} failed"

    def _listed(self) -> list[str] | None:
        """List the failed mail, of which none may be missing that was there before."""
        done = self._viperctl("list")
        if done is None:
            return None
        listed = _LISTED.findall(done)
        if hidden := self._records.known_failed - set(listed):
            arrived = {arrival.message_id for arrivals in self._smtp.arrivals.values() for arrival in arrivals}
            self._faults.append(f"failed mail is not listed any more: {sorted(hidden)}, arrived: {hidden & arrived}")
        if len(set(listed)) < len(listed):
            self._faults.append(f"failed mail is listed twice: {[one for one in listed if listed.count(one) > 1]}")
        self._records.known_failed = set(listed)
        return sorted(listed)

    def _viperctl(self, *words: str) -> str | None:
        """Return what a command on failed mail printed; None if it could not, for a trouble of the broker."""
        try:
            done = viperctl("email", "failed", *words, "--project", self._project)
        except subprocess.TimeoutExpired:
            self._faults.append(f"email failed {words[0]} did not end")
            return None
        if done.returncode == 0:
            return done.stdout
        if self._trouble is None or "Traceback" in done.stderr:
            self._faults.append(f"email failed {' '.join(words)} ended with {done.returncode}: {done.stderr[-500:]}")
        return None

    def _retry_failed(self, operation: Operation) -> str:
        # Of junk that is kept as failed nothing can be sent.
        chosen = {one for one in self._choose(operation) if not one.startswith("<ticket-")}
        self._records.retried |= chosen
        return self._act_on_failed("retry", chosen)

    def _purge_failed(self, operation: Operation) -> str:
        chosen = self._choose(operation)
        self._records.perhaps_purged |= chosen
        return self._act_on_failed("purge", chosen)

    def _choose(self, operation: Operation) -> set[str]:
        listed = self._listed()
        return set() if listed is None else set(listed[: round(operation.fraction * len(listed))])

    def _act_on_failed(self, command: str, chosen: set[str]) -> str:
        if not chosen:
            return "none"
        self._records.known_failed -= chosen
        done = self._viperctl(command, *(message_id.strip("<>") for message_id in chosen))
        return f"{len(chosen)}, {'no answer' if done is None else done.strip()}"

    def _measure(self) -> None:
        for kind, sessions in (("web", [self._web.session]), ("worker", self._fleet.sessions)):
            for session in sessions:
                for process, size in _sizes(session):
                    self._sizes[kind].setdefault(process, []).append(size)
        if self._trouble is not None and self._trouble.name == "full memory":
            self._over_limit = max(self._over_limit, self._broker.over_limit())

    # The end

    def finish(self, seed: int, operations: int, drain_limit: float, *, patient: bool) -> ModelReport:
        """End all troubles, let the queue drain, and judge."""
        self._end_trouble()
        self._fleet.until_ready()
        if self._broker.is_database and not patient:
            self._end_leases()
        begin = time.monotonic()
        drained = self._until(lambda: not self._records.pending(self._smtp.arrivals) or self._all_ended(), drain_limit)
        self._until(self._nothing_left, _SETTLED_WITHIN if drained else 0.0)
        drain = time.monotonic() - begin
        self._note(f"drained in {drain:.1f} s" if drained else "NOT DRAINED")
        if drained and (leftovers := self._broker.leftovers()):
            self._faults.append(f"the empty queue keeps {leftovers}")
        self._measure()
        self._check_threads()
        self._fleet.end_all()
        if (code := self._web.close()) != 0:
            self._faults.append(f"the web process ended with {code}")
        failed = self._failed()
        verdict = self._records.verdict(self._smtp.arrivals, self._smtp.attempts, failed, self._broker.scheduled())
        self._faults += self._fleet.faults
        self._faults += [f"lost: {one}" for one in verdict.lost]
        self._faults += [f"sent twice outside the windows: {one}" for one in verdict.duplicates]
        self._faults += [f"too early: {one}" for one in verdict.early]
        self._faults += verdict.unexpected
        if self._kind != "quorum":  # which gives up what comes back from workers too often
            self._faults += [f"failed for no reason of the mail server: {one}" for one in verdict.given_up]
        log = self._check_logs()
        memory = self._check_memory()
        report = ModelReport(
            self._kind,
            seed,
            operations,
            self._counts,
            verdict,
            drain,
            memory,
            self._over_limit,
            log,
            self._faults,
            self._trace,
        )
        (self._folder / "report.txt").write_text(str(report))
        return report

    def _end_leases(self) -> None:
        """Start all processes again, so that each lease that is left is of one that was killed."""
        self._fleet.end_all()
        if (code := self._web.close()) != 0:
            self._faults.append(f"the web process ended with {code}")
        self._broker.let_leases_end()
        self._fleet.start()
        self._start_web()

    def _until(self, condition: Callable[[], bool], limit: float) -> bool:
        deadline = time.monotonic() + limit
        while not (reached := condition()) and time.monotonic() < deadline:
            time.sleep(0.25)
        return reached

    def _all_ended(self) -> bool:
        """True when each recipient without mail is among the failed, or purged."""
        failed = self._failed()
        return all(
            (missing := failed.get(sent.message_id, frozenset())) is None
            or address in missing
            or (sent.message_id not in failed and sent.message_id in self._records.perhaps_purged)
            for sent, address in self._records.pending(self._smtp.arrivals)
        )

    def _nothing_left(self) -> bool:
        refused_ended = {
            sent.message_id
            for sent in self._records.sent.values()
            if sent.queued and sent.planned.refused and not sent.planned.far
        } <= set(self._failed()) | self._records.perhaps_purged
        return refused_ended and not self._broker.leftovers()

    def _failed(self) -> dict[str, frozenset[str] | None]:
        with self._queue() as store:
            jobs = store.failed(10**6)
        missing = {job.message_id: job.progress.missing for job in jobs}
        return {message_id: None if who is None else frozenset(who) for message_id, who in missing.items()}

    @contextlib.contextmanager
    def _queue(self) -> "Iterator[JobStore]":
        with override(**self._settings):
            if self._broker.is_database:
                yield OutboxJobStore("database")
                return
            service = queue_service()
            assert service is not None
            yield service.store

    def _check_threads(self) -> None:
        """Have each thread of one worker send a fresh message at the same time: none is held by anything else."""
        self._fleet.end_all_but_one()
        if not self._until(self._queueing, PATIENCE):
            self._faults.append("after the drain mail is not queued again")
            return
        before = self._smtp.verbs.count("body")
        gate = self._smtp.hold("body")
        fresh = self._to_send(
            tuple(
                PlannedMessage(number, {f"fresh{number}@example.com": ()}, frozenset(), (), None, 0)
                for number in range(FIRST_FRESH, FIRST_FRESH + THREADS)
            )
        )
        self._web.send(fresh)
        if not all(sent.queued for sent in fresh):
            self._faults.append(f"after the drain mail is not queued: {[sent.answer for sent in fresh]}")
        try:
            self._smtp.wait_until(lambda: self._smtp.verbs.count("body") >= before + THREADS)
        except AssertionError:
            busy = self._smtp.verbs.count("body") - before
            idle = [sent.message_id for sent in fresh if not self._smtp.attempts.get(sent.planned.number)]
            known = (
                f"{self._smtp.open_connections} connections, nothing was tried for {idle}, {self._broker.leftovers()}"
            )
            self._faults.append(f"of {THREADS} threads of a worker {busy} take mail: {known}")
        gate.release()
        self._until(lambda: not self._records.pending(self._smtp.arrivals) or self._all_ended(), PATIENCE)

    def _check_logs(self) -> dict[str, int]:
        """Each change of the broker's state is one line of a web process."""
        counts: Counter[str] = Counter()
        for web in self._webs:
            changes = re.findall(f"{re.escape(_DOWN)}|{re.escape(_UP)}", web.output)
            counts.update(changes)
            # Not held against the number of troubles: on a slow machine a broker may not answer in time without one.
            if any(one == other for one, other in pairwise(changes)):
                self._faults.append(f"{web.name} logged a state twice: {changes}")
        lines = Counter(
            re.sub(r"\d+", "0", re.sub(r"<[^>]*>|[0-9a-f]{8,}|worker-\S+", "*", line))[:160]
            for worker in self._fleet.outputs.values()
            for line in worker.output.splitlines()
            if "ERROR" in line or "WARNING" in line or "CRITICAL" in line
        )
        (self._folder / "worker-lines.txt").write_text("\n".join(f"{n} {line}" for line, n in lines.most_common()))
        tracebacks = sum(worker.output.count("Traceback") for worker in self._fleet.outputs.values())
        return {
            "broker down": counts[_DOWN],
            "broker up": counts[_UP],
            "tracebacks of workers": tracebacks,
            "worker lines": sum(lines.values()),
        }

    def _check_memory(self) -> dict[str, tuple[float, float]]:
        result = {}
        for kind, processes in self._sizes.items():
            largest = max(max(sizes) for sizes in processes.values())
            growth = max(max(sizes) - sizes[0] for sizes in processes.values())
            result[kind] = largest, growth
            if growth > _GROWTH:
                self._faults.append(f"a {kind} process grew by {growth:.0f} MB")
        if self._over_limit > _OVER_LIMIT:
            self._faults.append(f"Redis uses {self._over_limit:.1%} more than maxmemory")
        return result


_ACTIONS: dict[str, Callable[[_Run, Operation], str | None]] = {
    "send": _Run._send,
    "schedule": _Run._send,
    "wait": _Run._wait,
    "wait for the broker": _Run._wait_for_broker,
    "kill worker": _Run._kill_worker,
    "end worker": _Run._end_worker,
    "kill web": _Run._kill_web,
    "kill broker": _Run._kill_broker,
    "list failed": _Run._list_failed,
    "retry failed": _Run._retry_failed,
    "purge failed": _Run._purge_failed,
    "junk": _Run._add_junk,
    "move clock": _Run._move_clock,
}
"""Any other operation is a trouble of the broker."""


def _outcome(sent: Sent) -> str:
    answer = sent.answer or {}
    return str(answer.get("mode", answer.get("error")))


def _sizes(session: int) -> Iterator[tuple[int, float]]:
    """Yield the id and resident size, in MB, of each process of a session."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session:
                    yield int(folder.name), int((folder / "statm").read_text().split()[1]) * 4096 / 1e6
