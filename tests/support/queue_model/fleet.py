"""The workers of a run, and a supervisor's part: a runner that has ended is started again."""

import subprocess
import time
from itertools import count
from pathlib import Path

from support.patience import PATIENCE
from support.queue_model.brokers import BrokerUnderTest
from support.queue_model.records import Life, Records
from support.workers import NamedRelay, NamedWorker

__all__ = ["THREADS", "Fleet"]

THREADS = 4
RUNNERS = 2


class Fleet:
    """Two runners of one process each, or two relays. ``faults``: what a supervisor would call an incident."""

    def __init__(self, project: Path, broker: BrokerUnderTest, records: Records) -> None:
        self.faults: list[str] = []
        self.outputs: dict[str, NamedWorker] = {}  # all that ever ran
        self._project = project
        self._broker = broker
        self._records = records
        self._names = (f"worker-{number}.example.com" for number in count(1))
        self._runners: list[NamedWorker] = []

    @property
    def sessions(self) -> list[int]:
        """The process groups of those that run and are ready."""
        running = (runner for runner in self._runners if not runner.ended)
        return [runner.session for runner in running if runner.ready]

    def start(self) -> None:
        """Start all, and wait until they are ready."""
        self._runners = [self._started() for _ in range(RUNNERS)]
        for runner in self._runners:
            runner.wait_for(runner.ready_words)

    def _started(self) -> NamedWorker:
        name = next(self._names)
        if self._broker.is_database:
            runner: NamedWorker = NamedRelay(self._project, name)
        else:
            runner = NamedWorker(self._project, name, threads=THREADS)
        self._records.lives[runner.name] = Life(runner.name)
        self.outputs[runner.name] = runner
        runner.start(ready=False)
        return runner

    def kill(self, number: int) -> None:
        """SIGKILL one with all its processes, and start another."""
        runner = self._runners[number % RUNNERS]
        if runner.ended:
            return
        life = self._records.lives[runner.name]
        life.killed = time.monotonic()
        runner.kill()
        life.killed = time.monotonic()
        life.in_hand = self._broker.in_hand()
        self._runners[number % RUNNERS] = self._started()

    def end(self, number: int, limit: float = PATIENCE) -> str:
        """SIGTERM to one, which must end by itself; start another."""
        runner = self._runners[number % RUNNERS]
        self._end(runner, limit)
        self._runners[number % RUNNERS] = self._started()
        return runner.name

    def _end(self, runner: NamedWorker, limit: float) -> None:
        if runner.ended:
            return
        try:
            code = runner.terminate(limit)
        except subprocess.TimeoutExpired:
            self.faults.append(f"{runner.name} did not end after SIGTERM: {runner.output[-1000:]}")
            runner.kill()
            return
        if code != 0 and runner.ready:
            self.faults.append(f"{runner.name} ended with {code} after SIGTERM: {runner.output[-1000:]}")

    def supervise(self, *, trouble: bool) -> None:
        """Start those again that have ended; they may end while the broker cannot be used."""
        for place, runner in enumerate(self._runners):
            if runner.ended:
                if not trouble and runner.ready:
                    self.faults.append(f"{runner.name} ended by itself: {runner.output[-500:]}")
                if not trouble:
                    self._runners[place] = self._started()

    def until_ready(self) -> None:
        """Wait until all run; the broker is all right."""
        deadline = time.monotonic() + PATIENCE
        while not all(runner.ready and not runner.ended for runner in self._runners):
            assert time.monotonic() < deadline, [runner.output[-2000:] for runner in self._runners]
            self.supervise(trouble=False)
            time.sleep(0.1)

    def end_all_but_one(self) -> None:
        """SIGTERM to all but the last one."""
        while len(self._runners) > 1:
            self._end(self._runners.pop(0), PATIENCE)

    def end_all(self) -> None:
        """SIGTERM to all."""
        while self._runners:
            self._end(self._runners.pop(0), PATIENCE)

    def kill_all(self) -> None:
        """SIGKILL whatever still runs."""
        for runner in self.outputs.values():
            if not runner.ended:
                runner.kill()
