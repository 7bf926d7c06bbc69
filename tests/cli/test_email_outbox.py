"""``viperctl email outbox``, ``relay``, and what ``check`` and ``status`` say of the outbox, on a real database."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import Cli
from support.patience import PATIENCE
from support.smtpd import SmtpServer

STORE = """
import asyncio
from openviper.core.email import EmailMessageData
from openviper.db import engine
from openviper.db.outbox import add

async def main():
    async with (await engine()).begin() as connection:
        for number in range(3):
            data = EmailMessageData([f"to{number}@example.test"], f"Message {number}", text="Hello")
            await connection.run_sync(add, data)

asyncio.run(main())
"""


@pytest.fixture
def outbox(cli: Cli, project: Path) -> Path:
    """A project whose outbox is on, with its tables still to be created."""
    write_settings(project, backend="ConsoleBackend")
    return project


def write_settings(project: Path, tasks: str = "{}", **email: object) -> None:
    values = {"default_sender": "shop@example.test", "outbox": "database", **email}
    (project / "settings.py").write_text(
        f"DATABASE_URL = 'sqlite:///{project}/shop.sqlite3'\nTASKS = {tasks}\nEMAIL = {values!r}\n"
    )


def run(cli: Cli, project: Path, *arguments: str, **env: str) -> tuple[int, str]:
    done = cli.run("email", *arguments, "--project", str(project), **env)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def store_three(project: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", STORE],
        cwd=project,
        env={"OPENVIPER_SETTINGS_MODULE": "settings", "PYTHONPATH": str(project)},
        check=True,
        timeout=PATIENCE,
    )


def test_missing_tables_are_reported_and_created_once(cli: Cli, outbox: Path) -> None:
    code, output = run(cli, outbox, "outbox", "check")
    assert code == 1
    assert "lacks email_key, email_meta, email_outbox, email_outbox_part" in output
    assert "`viperctl email outbox create`" in output
    for command in (["status"], ["failed", "list"]):
        code, output = run(cli, outbox, *command)
        assert code == 1
        assert "lacks email_key, email_meta, email_outbox, email_outbox_part; run `viperctl email outbox" in output
    code, output = run(cli, outbox, "outbox", "create")
    assert code == 0
    assert "created email_key, email_meta, email_outbox, email_outbox_part" in output
    code, output = run(cli, outbox, "outbox", "create")
    assert (code, "has every table" in output) == (0, True)
    code, output = run(cli, outbox, "outbox", "check")
    assert code == 0
    assert "0 waiting, 0 leased, 0 later, 0 failed" in output
    assert "no relay runs on this database" in output


def test_tables_may_be_created_before_the_outbox_is_on(cli: Cli, project: Path) -> None:
    write_settings(project, outbox=None)
    code, output = run(cli, project, "outbox", "create")
    assert code == 0
    assert "created email_key" in output
    assert 'EMAIL["outbox"] is not set' in output
    for command in (["outbox", "check"], ["relay"]):
        code, output = run(cli, project, *command)
        assert code == 1
        assert 'EMAIL["outbox"] is not set: set it to "database"' in output
    code, output = run(cli, project, "outbox", "create", EMAIL_OUTBOX="database")
    assert (code, "is not set" in output) == (0, False)


def test_tables_of_another_version_are_reported_and_left_alone(cli: Cli, outbox: Path) -> None:
    create = "import sqlite3; sqlite3.connect('shop.sqlite3').execute('CREATE TABLE email_meta (name TEXT)')"
    subprocess.run([sys.executable, "-c", create], cwd=outbox, check=True, timeout=PATIENCE)
    code, output = run(cli, outbox, "outbox", "create")
    assert code == 1
    assert "another version, which lack email_meta.value" in output


def test_a_database_that_does_not_answer_is_reported_without_the_password(cli: Cli, outbox: Path) -> None:
    text = (outbox / "settings.py").read_text().splitlines()
    text[0] = "DATABASE_URL = 'postgresql://shop:hidden-secret@127.0.0.1:1/shop'"
    (outbox / "settings.py").write_text("\n".join(text))
    for command in ("create", "check"):
        code, output = run(cli, outbox, "outbox", command)
        assert code == 1
        assert "the database of the outbox" in output
        assert "hidden-secret" not in output


def test_mail_that_waits_without_a_relay_fails_the_checks_until_one_delivers_it(cli: Cli, project: Path) -> None:
    with SmtpServer() as smtp:
        write_settings(project, **smtp.settings())
        run(cli, project, "outbox", "create")
        store_three(project)
        code, output = run(cli, project, "outbox", "check")
        assert code == 1
        assert "mail waits in the outbox, and no relay runs" in output
        found = json.loads(cli.run("email", "check", "--json", "--project", str(project)).stdout)
        assert {one["check"]: one["status"] for one in found["checks"]}["relay"] == "failed"
        code, output = run(cli, project, "status")
        assert code == 1
        assert "Outbox   the database outbox\nRelays   none" in output
        assert "Waiting  3" in output
        assert "start your application, or `viperctl email relay`" in output
        code, output = run(cli, project, "status", "--json")
        health = json.loads(output)
        assert (code, health["status"], health["outbox"]["waiting"]) == (1, "degraded", 3)
        assert [problem["name"] for problem in health["problems"]] == ["relay"]
        with Relay(project) as relay:
            smtp.wait_for(3)
            assert "Relays   1\n" in run(cli, project, "status")[1]
        assert relay.ended() == 0
        assert "delivers by" in relay.printed
        assert "Relays   none: start one with `viperctl email relay`\nWaiting  0\n" in run(cli, project, "status")[1]
    assert sorted(message.recipients for message in smtp.messages) == [[f"to{n}@example.test"] for n in range(3)]


def test_a_relay_that_is_asked_to_end_delivers_what_it_has_in_hand(cli: Cli, project: Path) -> None:
    with SmtpServer() as smtp:
        write_settings(project, **smtp.settings())
        run(cli, project, "outbox", "create")
        store_three(project)
        gate = smtp.hold("body")
        with Relay(project) as relay:
            gate.wait()
            relay.terminate()
            gate.release()
        assert relay.ended() == 0
        assert len(smtp.messages) == 3
        assert "Waiting  0\n" in run(cli, project, "status")[1]


class Relay:
    """``viperctl email relay``, ended by SIGTERM when the block ends."""

    def __init__(self, project: Path) -> None:
        self.printed = ""
        program = Path(sys.executable).with_name("viperctl")
        self._process = subprocess.Popen(
            [program, "email", "relay", "--project", project],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> "Relay":
        assert self._process.stdout is not None
        self.printed = self._process.stdout.readline()
        assert self.printed.startswith("Relay of "), self.printed + self._process.stdout.read()
        return self

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        self.terminate()
        self.printed += self._process.communicate(timeout=PATIENCE)[0]

    def ended(self) -> int:
        return self._process.returncode
