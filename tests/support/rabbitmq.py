"""A real RabbitMQ on free loopback ports, in a folder of its own, with an epmd of its own."""

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from pika.exceptions import AMQPError

from support.ports import lasting_port

__all__ = ["RabbitmqServer", "rabbitmq_server"]

# Not the one on PATH, which changes to the user rabbitmq; this one runs as anybody.
_PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class RabbitmqServer:
    """Its node needs no name service: everything is on 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = lasting_port()
        self._dist_port = lasting_port()
        self._epmd_port = lasting_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        (folder / "enabled_plugins").write_text("[].")
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{self.port}\nvm_memory_high_watermark.relative = 0.8\n"
            "disk_free_limit.absolute = 50MB\nlog.console = false\n"
        )

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def tasks(self, **more: object) -> dict[str, object]:
        """``TASKS`` for this server."""
        return {"broker": "rabbitmq", "broker_url": self.url, **more}

    def connect(self) -> "pika.BlockingConnection":
        parameters = pika.URLParameters(self.url)
        parameters.connection_attempts = 1
        parameters.socket_timeout = parameters.stack_timeout = 5
        return pika.BlockingConnection(parameters)

    def start(self, timeout: float = 90) -> None:
        """Start, also again, and wait until it takes connections."""
        environment = {
            **os.environ,
            "HOME": str(self._folder),
            "RABBITMQ_NODENAME": f"openviper{self.port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(self._folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self._folder / "pid"),
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        if self._epmd is None:
            # Started here and not by the node, so that it can be ended by its process id.
            self._epmd = subprocess.Popen(
                [_epmd()], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        with (self._folder / "output").open("ab") as output:
            # A session of its own: the program is a shell around the emulator and its helpers.
            self._process = subprocess.Popen(
                [_PROGRAM], env=environment, cwd=self._folder, stdout=output, stderr=output, start_new_session=True
            )
        # Each refused connection would be several errors in the log.
        logging.getLogger("pika").setLevel(logging.CRITICAL)
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.connect().close()
            except (AMQPError, OSError):
                assert self._process.poll() is None, (self._folder / "output").read_text()
                assert time.monotonic() < deadline, (self._folder / "output").read_text()
                time.sleep(0.2)
            else:
                return

    def restore(self) -> None:
        """Make it run, with no queues, whatever a test has done to it."""
        if self._process is None:
            self.start()
        self.resume()
        with self.connect() as connection:
            channel = connection.channel()
            for name in ("emails", "emails.DQ", "emails.XQ", "emails.failed"):
                channel.queue_delete(name)

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Let the node end as it should. May be called again."""
        self._end(signal.SIGTERM)

    def close(self) -> None:
        """Stop, and end epmd."""
        try:
            self.stop()
        finally:
            self._end_epmd()

    def _end_epmd(self) -> None:
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(10)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return  # ended by itself
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _epmd() -> str:
    found = shutil.which("epmd") or next(map(str, Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)
    assert found is not None, "epmd comes with Erlang"
    return found


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitmqServer]:
    """One for the test session, since it takes seconds to start; a test that stops it starts it again."""
    if not _PROGRAM.exists():
        pytest.skip("RabbitMQ is not installed (Debian: apt-get install rabbitmq-server)")
    folder = Path(tempfile.mkdtemp(prefix="openviper-rabbitmq-"))
    server = RabbitmqServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)
