"""``viperctl email check`` against servers of every kind: the right line, the right exit code, in time, no secret."""

import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.certificates import self_signed_file, server_context
from support.commands import Cli
from support.documents import blocks
from support.patience import PATIENCE
from support.redis import RedisServer, redis_server
from support.smtpd import SmtpServer
from support.terminal import on_a_terminal
from support.workers import Worker

__all__ = ["redis_server"]

SECRET = "correct-horse-battery"


class Checked:
    """One run of the command, as JSON. It ends in time, or ``Cli`` fails."""

    def __init__(self, cli: Cli, project: Path, *options: str, limited: bool = False, **env: str) -> None:
        if not limited:
            options += ("--timeout", str(PATIENCE))  # all but silence is answered, however busy the machine is
        done = cli.run("email", "check", "--project", project, "--json", *options, **env)
        assert SECRET not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        self.code = done.returncode
        self.printed: dict[str, Any] = json.loads(done.stdout)
        self.checks = {check["check"]: check for check in self.printed["checks"]}

    def status(self, check: str) -> str:
        return str(self.checks[check]["status"])

    @property
    def failed(self) -> list[str]:
        return [name for name, check in self.checks.items() if check["status"] == "failed"]


def configure(project: Path, tasks: Mapping[str, object] | None = None, **email: object) -> None:
    email = {"default_sender": "Shop <shop@example.com>"} | email
    (project / "settings.py").write_text(f"EMAIL = {email!r}\nTASKS = {tasks or {}!r}\n")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_good_server_passes_and_nothing_is_sent(cli: Cli, project: Path) -> None:
    with SmtpServer(tls="starttls", users={"shop": SECRET}) as server:
        configure(project, **server.settings())
        checked = Checked(cli, project)
        server.wait_until(lambda: server.open_connections == 0)
    assert checked.code == 0
    assert checked.printed["ok"] is True
    assert list(checked.checks) == (
        ["settings", "dns", "tcp", "tls", "ehlo", "auth", "sender", "broker", "worker", "spf", "dmarc"]
    )
    assert "days left" in checked.checks["tls"]["found"]
    assert "PIPELINING" in checked.checks["ehlo"]["found"]
    assert checked.checks["auth"]["found"] == "logged in as shop"
    assert "shop@example.com is accepted" in checked.checks["sender"]["found"]
    assert [checked.status(name) for name in ("broker", "worker")] == ["skipped", "skipped"]
    assert server.messages == []
    assert server.connections == 1
    assert server.verbs[-3:] == ["MAIL", "RSET", "QUIT"]


def test_the_option_from_asks_for_another_sender(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        configure(project, **server.settings())
        assert Checked(cli, project, "--from", "other@example.com").code == 0
    assert any("<other@example.com>" in command.line for command in server.commands)


def test_an_impossible_sender_is_a_usage_error(cli: Cli, project: Path) -> None:
    configure(project)
    done = cli.run("email", "check", "--project", project, "--from", "nobody")
    assert done.returncode == 2
    assert "--from: 'nobody' has no '@'" in done.stderr
    assert done.stdout == ""


def test_a_wrong_password_fails_at_auth(cli: Cli, project: Path) -> None:
    with SmtpServer(users={"shop": "right"}) as server:
        configure(project, **server.settings(password=SECRET))
        checked = Checked(cli, project)
    assert checked.code == 1
    assert checked.failed == ["auth"]
    assert "535" in checked.checks["auth"]["found"]
    assert 'EMAIL["password"]' in checked.checks["auth"]["remedy"]
    assert checked.status("sender") == "skipped"


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize(
    ("certificate", "words", "remedy"),
    [
        ("expired", "expired", "renew the certificate"),
        ("self-signed", "self-signed", "tls_ca_file"),
        ("untrusted", "unable to get local issuer", "tls_ca_file"),
        ("wrong-host", "127.0.0.1", 'EMAIL["host"]'),
    ],
)
def test_a_bad_certificate_fails_at_tls(
    cli: Cli, project: Path, tls: Any, certificate: Any, words: str, remedy: str
) -> None:
    with SmtpServer(tls=tls, certificate=certificate, users={"shop": SECRET}) as server:
        configure(project, **server.settings())
        checked = Checked(cli, project)
    assert checked.code == 1
    assert checked.failed == ["tls"]
    assert words in checked.checks["tls"]["found"]
    assert remedy in checked.checks["tls"]["remedy"]
    assert "AUTH" not in server.verbs


def test_a_certificate_that_expires_soon_is_a_warning(cli: Cli, project: Path) -> None:
    with SmtpServer(tls="starttls", certificate="self-signed") as server:
        server_context("self-signed")
        configure(project, **server.settings(host="localhost", tls_ca_file=str(self_signed_file())))
        checked = Checked(cli, project)
    assert checked.code == 0
    assert checked.status("tls") == "warning"
    assert "(8 days left)" in checked.checks["tls"]["found"]


def test_missing_starttls_fails_at_tls(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        configure(project, **server.settings(use_tls=True))
        checked = Checked(cli, project)
    assert checked.code == 1
    assert checked.failed == ["tls"]
    assert "does not offer it" in checked.checks["tls"]["found"]
    assert "MAIL" not in server.verbs


def test_a_port_without_tls_fails_at_tls(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        configure(project, **server.settings(use_ssl=True))
        checked = Checked(cli, project)
    assert checked.failed == ["tls"]
    assert 'EMAIL["use_ssl"] is for port 465' in checked.checks["tls"]["remedy"]


def test_a_refused_sender_fails_with_the_reply(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        server.fault("MAIL", 553)
        configure(project, **server.settings())
        checked = Checked(cli, project)
    assert checked.code == 1
    assert checked.failed == ["sender"]
    assert "MAIL FROM: 553" in checked.checks["sender"]["found"]
    assert "default_sender" in checked.checks["sender"]["remedy"]


def test_without_a_default_sender_there_is_a_warning(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        configure(project, **server.settings(default_sender=None))
        checked = Checked(cli, project)
    assert checked.code == 0
    assert checked.status("sender") == "warning"
    assert "MAIL" not in server.verbs


def test_a_closed_port_fails_at_tcp(cli: Cli, project: Path) -> None:
    configure(project, host="127.0.0.1", port=closed_port())
    checked = Checked(cli, project)
    assert checked.code == 1
    assert checked.failed == ["tcp"]
    assert "refused" in checked.checks["tcp"]["found"]


def test_a_name_without_address_fails_at_dns(cli: Cli, project: Path) -> None:
    configure(project, host="no-such-host.invalid")
    checked = Checked(cli, project)
    assert checked.code == 1
    assert checked.failed == ["dns"]


@pytest.mark.parametrize(
    ("tls", "verb", "line"),
    [
        ("none", "greeting", "ehlo"),
        ("none", "EHLO", "ehlo"),
        ("implicit", "connect", "tls"),
        ("implicit", "greeting", "ehlo"),
        ("starttls", "STARTTLS", "tls"),
        ("none", "AUTH", "auth"),
        ("none", "MAIL", "sender"),
    ],
)
def test_a_silent_server_fails_at_the_step_where_it_falls_silent(
    cli: Cli, project: Path, tls: Any, verb: str, line: str
) -> None:
    with SmtpServer(tls=tls, users={"shop": SECRET}) as server:
        server.fault(verb, "silence")
        configure(project, **server.settings())
        checked = in_time(cli, project, line)
    assert checked.code == 1
    assert checked.failed == [line]
    assert "in time" in checked.checks[line]["found"]


def in_time(cli: Cli, project: Path, line: str, *limit: str) -> Checked:
    """Run with ``limit`` or the usual one; on a slow machine, whose steps before ``line`` use it up, with others."""
    for options in (limit, ("--timeout", "10"), ("--timeout", "40")):
        checked = Checked(cli, project, *options, limited=True)
        if checked.failed == [line]:
            break
    return checked


def test_the_usual_limit_is_that_of_the_option(cli: Cli) -> None:
    assert "default: 2.5" in cli.run("email", "check", "--help").stdout


def test_the_option_timeout_bounds_all_of_it(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        server.fault("greeting", "silence")
        configure(project, **server.settings())
        assert in_time(cli, project, "ehlo", "--timeout", "0.3").failed == ["ehlo"]


@pytest.mark.parametrize(("broker", "scheme"), [("redis", "redis"), ("rabbitmq", "amqp")])
def test_a_broker_that_is_down_fails(cli: Cli, project: Path, broker: str, scheme: str) -> None:
    with SmtpServer() as server:
        url = f"{scheme}://shop:{SECRET}@127.0.0.1:{closed_port()}/"
        configure(project, {"broker": broker, "broker_url": url}, **server.settings())
        checked = Checked(cli, project)
    assert checked.code == 1
    assert checked.failed == ["broker"]
    assert "does not answer" in checked.checks["broker"]["found"]
    assert "refused" in checked.checks["broker"]["found"]
    assert "start it" in checked.checks["broker"]["remedy"]
    assert checked.status("worker") == "skipped"


def test_a_broker_that_is_not_used_does_not_fail(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        tasks = {"broker": "redis", "broker_url": f"redis://127.0.0.1:{closed_port()}/0"}
        configure(project, tasks, **server.settings(use_background_worker=False))
        assert Checked(cli, project).code == 0


@pytest.mark.parametrize(("broker", "scheme"), [("redis", "redis"), ("rabbitmq", "amqp")])
def test_a_silent_broker_fails_in_time(cli: Cli, project: Path, broker: str, scheme: str) -> None:
    """It accepts the connection and says nothing."""
    with SmtpServer() as server, socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://shop:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/"
        configure(project, {"broker": broker, "broker_url": url}, **server.settings())
        checked = in_time(cli, project, "broker")
    assert checked.code == 1
    assert checked.failed == ["broker"]
    assert "does not answer" in checked.checks["broker"]["found"]


def test_a_queue_without_worker_fails_and_with_one_passes(cli: Cli, project: Path, redis_server: RedisServer) -> None:
    with SmtpServer() as server:
        configure(project, redis_server.tasks(), **server.settings())
        without = Checked(cli, project)
        with Worker(project):
            checked = Checked(cli, project)
    assert without.code == 1
    assert without.failed == ["worker"]
    assert "viperctl runworker" in without.checks["worker"]["remedy"]
    assert checked.code == 0, checked.printed
    assert checked.status("worker") == "ok"


def test_wrong_settings_end_with_2_and_name_each_fault(cli: Cli, project: Path) -> None:
    configure(project, port="x", pasword=SECRET)
    checked = Checked(cli, project)
    assert checked.code == 2
    assert checked.failed == ["settings"]
    assert 'EMAIL["port"]' in checked.checks["settings"]["found"]
    assert "did you mean 'password'" in checked.checks["settings"]["found"]


def test_a_settings_module_that_cannot_be_imported_ends_with_2(cli: Cli, project: Path) -> None:
    (project / "settings.py").write_text("1 / 0\n")
    done = cli.run("email", "check", "--project", project)
    assert done.returncode == 2
    assert "settings.py, line 1" in done.stdout


def test_another_backend_needs_no_server(cli: Cli, project: Path) -> None:
    configure(project, backend="ConsoleBackend")
    checked = Checked(cli, project)
    assert checked.code == 0
    assert "ConsoleBackend" in checked.checks["tcp"]["found"]


def test_the_lines_are_those_of_the_page(cli: Cli, project: Path) -> None:
    block = next(block for block in blocks("docs/command-line.md", "console") if "email check" in block.code)
    settings = next(block for block in blocks("docs/command-line.md") if "2525" in block.code)
    port = str(closed_port())
    (project / "settings.py").write_text(settings.code.replace("2525", port))
    done = cli.run("email", "check", "--project", project)
    assert block.printed is not None
    assert done.stdout.strip() == block.printed.strip().replace("2525", port)


def test_lines_are_plain_where_the_output_is_no_terminal(cli: Cli, project: Path) -> None:
    with SmtpServer() as server:
        server.fault("MAIL", "553 \x9b31mred \x1b[2Jgone")
        configure(project, **server.settings())
        done = cli.run("email", "check", "--project", project)
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    assert "\x9b" not in done.stdout
    assert done.stdout.splitlines()[0].startswith("ok       settings  SMTPBackend")
    assert "\n                   -> set EMAIL" in done.stdout
    assert done.stderr == ""


def test_colours_are_for_terminals_that_want_them(project: Path) -> None:
    configure(project, backend="ConsoleBackend")
    command = [str(Path(sys.executable).with_name("viperctl")), "email", "check", "--project", str(project)]
    assert "\x1b[32m" in on_a_terminal(command).stdout
    assert "\x1b[32m" not in on_a_terminal(command, NO_COLOR="1").stdout
