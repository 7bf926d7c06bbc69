"""What the brokers have in common as processes of a test: they are started, stopped, killed, paused, cleared away."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, TypeVar

from support.patience import PATIENCE
from support.ports import lasting_port
from support.watchdog import Watchdog

__all__ = ["BrokerServer", "running"]


class BrokerServer(ABC):
    """A broker in ``folder``, on a free port of 127.0.0.1 that it keeps through restarts."""

    kind: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = lasting_port()
        self.more_environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: Watchdog | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """For ``TASKS["broker_url"]``."""

    def tasks(self, **more: object) -> dict[str, object]:
        """``TASKS`` for this server."""
        return {"broker": self.kind, "broker_url": self.url, **more}

    def start(self) -> None:
        """Start, also again, and wait until it answers."""
        with (self.folder / "output").open("ab") as output:
            # A session of its own: the program may be a shell around others.
            self._process = subprocess.Popen(
                self._command(),
                env={**os.environ, **self._environment(), **self.more_environment},
                cwd=self.folder,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._watchdog = Watchdog(self._process.pid)
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "output").read_text()
            assert time.monotonic() < deadline, (self.folder / "output").read_text()
            time.sleep(0.1)

    @abstractmethod
    def _command(self) -> list[str]: ...

    def _environment(self) -> dict[str, str]:
        return {}

    @abstractmethod
    def _answers(self) -> bool: ...

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it ends as it should. May be called again."""
        self._end(signal.SIGTERM)

    def close(self) -> None:
        """Stop it, and whatever was started beside it."""
        self.stop()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        if self._watchdog is not None:
            self._watchdog.close()
        try:
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return  # ended by itself
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)


Server = TypeVar("Server", bound=BrokerServer)


@contextmanager
def running(kind: type[Server]) -> Iterator[Server]:
    """One that runs in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"openviper-{kind.kind}-"))
    server = kind(folder)
    try:
        server.start()
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)
