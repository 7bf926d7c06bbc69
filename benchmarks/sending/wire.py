"""Run senders against the sink: the scenarios, and one run of one sender."""

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from environments import HERE, Environments

__all__ = [
    "BULK",
    "NODEMAILER",
    "OLD",
    "OWN",
    "RECIPIENTS",
    "SCENARIOS",
    "SENDERS",
    "UVLOOP",
    "Scenario",
    "Sink",
    "run_once",
]

OWN = "openviper"
UVLOOP = "openviper on uvloop"
OLD = "openviper-0.1.1"
NODEMAILER = "Nodemailer"
BULK = ("openviper send_many", "openviper pipeline")
SENDERS = (OWN, OLD, "aiosmtplib", "fastapi-mail", "Django", "emails", "Flask-Mail", NODEMAILER)
_PATIENCE = 180  # seconds that a run may take


class Scenario(NamedTuple):
    """One kind of run. ``delay`` is in seconds; ``messages`` replaces ``seconds`` if one message takes long.

    ``length`` multiplies ``seconds`` in scenarios with so few messages that the round trips of connecting, which also
    count, would distort the result.
    """

    name: str
    title: str
    concurrency: int = 1
    seconds: float = 1.5
    warm: float = 0.4
    messages: int | None = None
    delay: float = 0.0
    pipelining: bool = True
    chunking: bool = True
    attachment: bool = False
    recipients: int = 1
    newsletter: bool = False
    length: int = 1
    senders: tuple[str, ...] = SENDERS


SCENARIOS = (
    Scenario("ten", "10 at a time, no delay", concurrency=10, senders=(OWN, UVLOOP, *SENDERS[1:], *BULK)),
    Scenario("one", "One after another, no delay", senders=(OWN, UVLOOP, *SENDERS[1:])),
    Scenario(
        "chunking", "20 ms delay, one connection; the server offers CHUNKING and PIPELINING", delay=0.02,
        senders=(*SENDERS, *BULK),
    ),
    Scenario(
        "pipelining", "20 ms delay, one connection; PIPELINING only", delay=0.02, chunking=False,
        senders=(OWN, NODEMAILER),
    ),
    Scenario(
        "plain", "20 ms delay, one connection; neither", delay=0.02, chunking=False, pipelining=False, length=4,
        senders=(OWN, NODEMAILER),
    ),
    Scenario(
        "newsletter", "A newsletter from a template, its text derived, 10 at a time, no delay", concurrency=10,
        newsletter=True, senders=(OWN, BULK[0], "fastapi-mail", "Django", NODEMAILER),
    ),
    Scenario("attachment", "A 25 MB attachment, one after another, no delay", messages=3, attachment=True),
)  # fmt: skip

# As "plain", with several recipients; all are in one table.
RECIPIENTS = tuple(
    SCENARIOS[-3]._replace(name=f"recipients-{n}", title=f"{n} recipients", recipients=n) for n in (2, 5, 10)
)


class Sink:
    """The server process for one run."""

    def __init__(self, python: str, scenario: Scenario, content: Path, *, progress: Path | None = None) -> None:
        command = [python, str(HERE / "sink.py"), "--content", str(content), "--delay", str(scenario.delay)]
        command += ["--pipelining"] * scenario.pipelining + ["--chunking"] * scenario.chunking
        command += [] if progress is None else ["--progress", str(progress)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def report(self) -> dict[str, Any]:
        """End the server and return its report."""
        output, _ = self._process.communicate(timeout=_PATIENCE)
        report: dict[str, Any] = json.loads(output)
        return report

    def __enter__(self) -> "Sink":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)


def run_once(environments: Environments, scenario: Scenario, sender: str, content: Path) -> dict[str, Any]:
    """Run one sender once, and return its result.

    Raises:
        SystemExit: a message did not arrive as it was sent, or the sender failed.
    """
    with Sink(environments.own, scenario, content) as sink:
        command = [*_program(environments, sender), "--port", str(sink.port), "--content", str(content)]
        command += ["--concurrency", str(scenario.concurrency), "--warm", str(scenario.warm)]
        command += ["--seconds", str(scenario.seconds * scenario.length)]
        if scenario.recipients > 1:
            command += ["--recipients", str(scenario.recipients)]
        if scenario.messages is not None:
            command += ["--messages", str(scenario.messages)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        if done.returncode:
            raise SystemExit(f"{sender}, {scenario.name}: {done.stderr[-2000:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        seen = sink.report()
    if not seen["messages"] == seen["whole"] == result["sent"]:
        raise SystemExit(f"{sender}, {scenario.name}: sent {result['sent']}, but the server has received {seen}")
    result["flights_per_message"] = seen["flights"] / seen["messages"]
    result["message_bytes"] = seen["bytes"] / seen["messages"]
    result["connections"] = seen["connections"]
    return result


def _program(environments: Environments, sender: str) -> Sequence[str]:
    if sender == NODEMAILER:
        assert environments.node is not None
        modules = str(environments.node_modules)
        return [environments.node, str(HERE / "nodemailer.cjs"), "--modules", modules]
    python = {OLD: environments.old, **dict.fromkeys((OWN, UVLOOP, *BULK), environments.own)}.get(
        sender, environments.peers
    )
    assert python is not None
    return [python, str(HERE / "senders.py"), sender]
