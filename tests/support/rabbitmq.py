"""A real RabbitMQ on free loopback ports, with an epmd of its own."""

import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import AMQPError

from support.broker_server import BrokerServer, running
from support.patience import PATIENCE
from support.ports import lasting_port
from support.watchdog import Watchdog

__all__ = ["PROGRAMS", "QUORUM_QUEUES", "RabbitmqServer", "rabbitmq_server"]


def _queues(name: str) -> dict[str, dict[str, Any]]:
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{name}.XQ"}
    return {name: dead, f"{name}.DQ": dead, f"{name}.XQ": {"x-message-ttl": 7 * 24 * 3600 * 1000}}


QUORUM_QUEUES: dict[str, dict[str, Any]] = {**_queues("emails"), **_queues("emails_bulk"), "emails.failed": {}}
"""The queues that an operator declares as quorum queues, with the arguments they need."""

_ALARMS = {
    "memory": "vm_memory_monitor:set_vm_memory_high_watermark(0.000001)",
    "disk": "rabbit_disk_monitor:set_disk_free_limit({mem_relative, 1000000})",
}
_ENOUGH = (
    "vm_memory_monitor:set_vm_memory_high_watermark(0.8)",
    'rabbit_disk_monitor:set_disk_free_limit("50MB")',
)

# Not those on PATH, which change to the user rabbitmq; these run as anybody.
PROGRAMS = Path("/usr/lib/rabbitmq/bin")


class RabbitmqServer(BrokerServer):
    """Its node needs no name service: everything is on 127.0.0.1."""

    kind = "rabbitmq"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._dist_port = lasting_port()
        self._epmd_port = lasting_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        self._epmd_watchdog: Watchdog | None = None
        (folder / "enabled_plugins").write_text("[].")
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{self.port}\nvm_memory_high_watermark.relative = 0.8\n"
            "disk_free_limit.absolute = 50MB\nlog.console = false\n"
        )

    @property
    def _node(self) -> str:
        return f"openviper{self.port}@localhost"

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def connect(self) -> "pika.BlockingConnection":
        parameters = pika.URLParameters(self.url)
        parameters.connection_attempts = 1
        parameters.socket_timeout = parameters.stack_timeout = PATIENCE
        return pika.BlockingConnection(parameters)

    def start(self) -> None:
        """Start, also again, and wait until it takes connections."""
        if self._epmd is None:
            # Started here and not by the node, so that it can be ended by its process id.
            self._epmd = subprocess.Popen(
                [_epmd()],
                env={**os.environ, **self._environment()},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._epmd_watchdog = Watchdog(self._epmd.pid)
        # Each refused connection would be several errors in the log.
        logging.getLogger("pika").setLevel(logging.CRITICAL)
        super().start()

    def evaluate(self, expression: str) -> str:
        """Evaluate an Erlang expression in the node, in milliseconds where ``rabbitmqctl`` takes seconds."""
        cookie = (self.folder / ".erlang.cookie").read_text()
        command = ["erl_call", "-sname", self._node, "-c", cookie, "-e"]
        environment = {**os.environ, **self._environment()}
        answer = subprocess.run(
            command, input=f"{expression}.\n", env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert answer.stdout.startswith("{ok, "), answer.stdout + answer.stderr
        return answer.stdout.removeprefix("{ok, ").removesuffix("}")

    def limit_deliveries(self, limit: int) -> None:
        """Have quorum queues give a message up that came back more often, as RabbitMQ 4 does by default."""
        definition = f'[{{<<"delivery-limit">>, {limit}}}]'
        done = self.evaluate(
            f'rabbit_policy:set(<<"/">>, <<"limit">>, <<"^emails">>, {definition}, 0, <<"queues">>, <<"test">>)'
        )
        assert done == "ok", done

    def lift_limit(self) -> None:
        """Take back what ``limit_deliveries`` did."""
        self.evaluate('rabbit_policy:delete(<<"/">>, <<"limit">>, <<"test">>)')

    def add_user(self, name: str, password: str) -> None:
        """Add a user without rights."""
        self.evaluate(f'rabbit_auth_backend_internal:add_user(<<"{name}">>, <<"{password}">>, <<"test">>)')

    def delete_user(self, name: str) -> None:
        """Take the user away."""
        self.evaluate(f'rabbit_auth_backend_internal:delete_user(<<"{name}">>, <<"test">>)')

    def grant(self, name: str, configure: str, write: str, read: str) -> None:
        """Give a user these rights, regular expressions of names, and no others."""
        rights = ", ".join(f'<<"{right}">>' for right in (configure, write, read)).replace("\\", "\\\\")
        self.evaluate(f'rabbit_auth_backend_internal:set_permissions(<<"{name}">>, <<"/">>, {rights}, <<"test">>)')

    def raise_alarm(self, kind: str) -> None:
        """Have it run low on ``memory`` or ``disk``, and wait until it says so."""
        self.evaluate(_ALARMS[kind])
        self._until(lambda alarms: kind in alarms)

    def end_alarms(self) -> None:
        """Have enough of both again."""
        for expression in _ENOUGH:
            self.evaluate(expression)
        self._until(lambda alarms: alarms == "[]")

    def _until(self, wanted: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not wanted(alarms := self.evaluate("rabbit_alarm:get_alarms()")):
            assert time.monotonic() < deadline, alarms
            time.sleep(0.05)

    def declare_quorum_queues(self) -> None:
        """Declare the queues of mail as an operator does, before the application would."""
        with self.connect() as connection:
            for name, arguments in QUORUM_QUEUES.items():
                quorum = {"x-queue-type": "quorum", **arguments}
                connection.channel().queue_declare(name, durable=True, arguments=quorum)

    def client_ports(self) -> set[int]:
        """The clients' ends of the connections that are open."""
        listed = self.evaluate("[Port || [{peer_port, Port}] <- rabbit_networking:connection_info_all([peer_port])]")
        return set(map(int, re.findall(r"\d+", listed)))

    def restore(self) -> None:
        """Make it run, with no queues, whatever a test has done to it."""
        if self._process is None:
            self.start()
        self.resume()
        with self.connect() as connection:
            channel = connection.channel()
            for name in QUORUM_QUEUES:
                channel.queue_delete(name)

    def close(self) -> None:
        """Kill it, since it takes seconds to stop, and end epmd."""
        try:
            self.kill()
        finally:
            if self._epmd is not None and self._epmd_watchdog is not None:
                self._epmd_watchdog.close()
                self._epmd.kill()
                self._epmd.wait(PATIENCE)

    def _command(self) -> list[str]:
        return [str(PROGRAMS / "rabbitmq-server")]

    def _environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except (AMQPError, OSError):
            return False
        return True


def _epmd() -> str:
    found = shutil.which("epmd") or next(map(str, Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)
    assert found is not None, "epmd comes with Erlang"
    return found


# The server of this test process. Each module that imports the fixture has a fixture of its own of that name.
_started: list[RabbitmqServer] = []


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitmqServer]:
    """One for the test session, since it takes seconds to start; a test that stops it starts it again."""
    if not PROGRAMS.exists():
        pytest.skip("RabbitMQ is not installed (Debian: apt-get install rabbitmq-server)")
    if _started:
        _started[0].restore()
        yield _started[0]  # whoever started it ends it, after all fixtures that were set up later
        return
    with running(RabbitmqServer) as server:
        _started.append(server)
        yield server
        _started.clear()
