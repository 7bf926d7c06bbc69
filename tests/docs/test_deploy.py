"""The files of "Workers in production": systemd and Compose would take them, and what they start delivers mail."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support.documents import ROOT
from support.patience import PATIENCE
from support.redis import RedisServer, redis_server
from support.smtpd import SmtpServer

from openviper.core.email.settings import EmailSettings

__all__ = ["redis_server"]

EXAMPLES = ROOT / "docs" / "examples"
DEPLOY = EXAMPLES / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
PROGRAMS = Path(sys.executable).parent
PORT = "--port 8000"


def unit(name: str) -> dict[str, str]:
    """The section Service of a unit file."""
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    text = (DEPLOY / f"shop-{name}.service").read_text()
    parser.read_string(re.sub(r"\\\n\s*", "", text))  # systemd joins such lines
    return dict(parser["Service"])


def default(setting: str) -> float:
    return float(EmailSettings.model_fields[setting].default)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit_files(tmp_path: Path) -> None:
    for source in DEPLOY.glob("*.service"):
        text = source.read_text().replace("/srv/shop/.venv/bin", str(PROGRAMS))
        (tmp_path / source.name).write_text(text)
    files = [str(path) for path in tmp_path.glob("*.service")]
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["web", "worker"])
def test_both_ways_run_the_same_commands_with_the_same_patience(name: str) -> None:
    service, container = unit(name), COMPOSE[name]
    command = shlex.split(service["ExecStart"].removeprefix("/srv/shop/.venv/bin/"))
    # A container is reached from outside by an address of its own.
    assert [word for word in container["command"] if word not in ("--host", "0.0.0.0")] == command
    assert container["stop_grace_period"] == f"{service['TimeoutStopSec']}s"
    assert (service["Restart"], container["restart"]) == ("always", "unless-stopped")


@pytest.mark.parametrize("name", ["web", "worker"])
def test_kubernetes_runs_the_same_commands_with_the_same_patience(name: str) -> None:
    text = (DEPLOY / "kubernetes.yaml").read_text()
    (pod,) = [
        deployment["spec"]["template"]["spec"]
        for deployment in yaml.safe_load_all(text)
        if deployment["metadata"]["name"] == f"shop-{name}"
    ]
    (container,) = pod["containers"]
    assert container["command"] == COMPOSE[name]["command"]
    assert f"{pod['terminationGracePeriodSeconds']}s" == COMPOSE[name]["stop_grace_period"]


def test_what_stops_them_waits_for_the_mail_in_hand() -> None:
    web, worker = unit("web"), unit("worker")
    words = shlex.split(web["ExecStart"])
    for_requests = float(words[words.index("--timeout-graceful-shutdown") + 1])
    assert float(web["TimeoutStopSec"]) > for_requests + default("shutdown_timeout")
    assert float(worker["TimeoutStopSec"]) > default("data_timeout") + default("timeout")
    assert worker["KillMode"] == "mixed"


def test_the_broker_of_the_compose_file_keeps_what_it_has_taken() -> None:
    """As docs/queue.md asks for."""
    command = COMPOSE["broker"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options == {"--appendonly": "yes", "--appendfsync": "always", "--maxmemory-policy": "noeviction"}
    assert COMPOSE["broker"]["volumes"]
    assert COMPOSE["broker"]["restart"] == "unless-stopped"


def test_no_secret_gets_into_the_image() -> None:
    lines = [line.split() for line in (DEPLOY / "Dockerfile").read_text().splitlines()]
    copied = {source for line in lines if line[0] == "COPY" for source in line[1:-1]}
    assert copied == {"app.py", "settings.py", "templates"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The application of "Getting started" with the settings for production."""
    folder = shutil.copytree(EXAMPLES / "openviper", tmp_path / "shop", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(DEPLOY / "settings.py", folder)
    return folder


@contextmanager
def running(name: str, project: Path, broker: RedisServer, smtp: SmtpServer) -> Iterator[subprocess.Popen[bytes]]:
    """What the unit file starts, in a process group of its own; its environment differs in the servers only."""
    given = dict(line.split("=", 1) for line in (DEPLOY / "shop.env").read_text().splitlines() if "=" in line)
    here = {"BROKER_URL": broker.url, "EMAIL_HOST": smtp.host, "EMAIL_PORT": str(smtp.port), "EMAIL_USE_TLS": "false"}
    more = {"EMAIL_TIMEOUT": str(PATIENCE)}
    assert set(here) - {"EMAIL_PORT"} <= set(given)
    command = unit(name)["ExecStart"].replace("/srv/shop/.venv/bin", str(PROGRAMS)).replace(PORT, "--port 0")
    log = project / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            shlex.split(command), cwd=project, env={**os.environ, **given, **here, **more},
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(log, "ready for action" if name == "worker" else "Uvicorn running on")
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(PATIENCE)


def wait_until(log: Path, words: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def address_of(project: Path) -> str:
    line = next(line for line in (project / "web.log").read_text().splitlines() if "Uvicorn running on" in line)
    return line.split("running on ")[1].split()[0]


def test_what_the_units_start_delivers_an_order_through_the_queue(project: Path, redis_server: RedisServer) -> None:
    with (
        SmtpServer(users={"apikey": "secret"}) as smtp,
        running("worker", project, redis_server, smtp) as worker,
        running("web", project, redis_server, smtp),
    ):
        order = {"name": "Alice", "email": "alice@example.com"}
        httpx.post(f"{address_of(project)}/orders", json=order, timeout=PATIENCE)
        (message,) = smtp.wait_for(1)
        worker.terminate()
        assert worker.wait(PATIENCE) == 0
    parsed = message.parse()
    assert parsed["Subject"] == "Your order 1001"
