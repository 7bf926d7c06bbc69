"""``viperctl email check`` against servers of every kind: the right line, the right exit code, in time, no secret."""

import asyncio
import json
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.certificates import self_signed_file, server_context
from support.commands import Cli
from support.documents import blocks
from support.httpd import HttpServer
from support.patience import PATIENCE
from support.rabbitmq import RabbitmqServer, rabbitmq_server
from support.redis import RedisServer, redis_server
from support.smtpd import SmtpServer
from support.terminal import on_a_terminal
from support.workers import Worker

from openviper.conf import override
from openviper.core.email import UnsubscribeEndpoint
from openviper.core.email.delivery.checks.unsubscribe import check_unsubscribe
from openviper.core.email.settings import EmailSettings

__all__ = ["rabbitmq_server", "redis_server"]

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


def test_staging_and_missing_extensions_are_named(cli: Cli, project: Path) -> None:
    with SmtpServer(capabilities=["SMTPUTF8"]) as server:
        configure(project, **server.settings(), redirect_to=["team@example.com"], site_url="https://shop.example")
        checked = Checked(cli, project)
    assert ", redirected to team@example.com; from settings" in checked.checks["settings"]["found"]
    assert checked.failed == ["unsubscribe"]
    assert "; without PIPELINING and CHUNKING each message needs more" in checked.checks["ehlo"]["found"]


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({}, None, ""),
        (
            {"site_url": "https://shop.example"},
            "failed",
            'EMAIL["unsubscribe_keys"]: is empty, so unsubscribe=True',
        ),
        (
            {"unsubscribe_keys": ["k" * 32]},
            "failed",
            'EMAIL["site_url"]: is not set, so unsubscribe=True is refused',
        ),
        (
            {"site_url": "https://shop.example", "unsubscribe_keys": ["k" * 32], "suppress": None},
            "warning",
            "no setting keeps mail from readers who have unsubscribed",
        ),
        (
            {"site_url": "http://localhost:8000", "unsubscribe_keys": ["k" * 32]},
            "warning",
            "mailbox providers follow https links only (RFC 8058)",
        ),
        (
            {"site_url": "https://a.example", "unsubscribe_keys": ["k" * 32], "dkim_unsigned": ["List-Unsubscribe"]},
            "warning",
            "mailbox providers ignore headers that DKIM does not sign (RFC 8058)",
        ),
        (
            {"site_url": "https://shop.example/app/", "unsubscribe_keys": ["k" * 32, "o" * 32]},
            "ok",
            "https://shop.example/app/unsubscribe/..., 2 keys; not asked: shop.example is reserved for examples",
        ),
    ],
)
async def test_the_settings_of_unsubscribe_links_are_checked_together(
    given: dict[str, Any], status: str | None, words: str
) -> None:
    settings = EmailSettings(**{"suppress": "openviper.db.find_suppressed", **given})
    deadline = asyncio.get_running_loop().time() + PATIENCE
    results = [result async for result in check_unsubscribe(settings, deadline)]
    assert [(result.check, str(result.status)) for result in results] == ([("unsubscribe", status)] if status else [])
    for result in results:
        assert words in result.found
        assert bool(result.remedy) is (status != "ok")


async def test_the_endpoint_of_unsubscribe_links_is_asked_for_its_page() -> None:
    async with HttpServer() as server:

        async def check(path: str) -> list[str]:
            site_url = server.url(path).replace("localhost", "127.0.0.1")
            settings = EmailSettings(site_url=site_url, unsubscribe_keys=["k" * 32], suppress=print)
            deadline = asyncio.get_running_loop().time() + PATIENCE
            found = [result.found.partition("/...")[2] async for result in check_unsubscribe(settings, deadline)]
            assert found.pop(0) == ": mailbox providers follow https links only (RFC 8058)"
            return found

        async with httpx.AsyncClient(transport=httpx.ASGITransport(UnsubscribeEndpoint())) as client:
            with override(EMAIL={"unsubscribe_keys": ["k" * 32]}):
                page = await client.get("http://127.0.0.1/unsubscribe/check")
        server.answer("/right/unsubscribe/check", page.content)
        server.answer("/login/unsubscribe/check", b"", status=302, headers={"location": "/login"})
        server.answer("/other/unsubscribe/check", b"<p>Every page of a single-page application</p>")
        assert await check("/right") == []
        for path, status in (("/login", 302), ("/other", 200), ("/none", 404)):
            assert await check(path) == [f": answers {status}, instead of the page of UnsubscribeEndpoint"]
    assert await check("/right") == []  # nobody is there: this machine may not reach the site that others do


def test_a_good_server_passes_and_nothing_is_sent(cli: Cli, project: Path) -> None:
    with SmtpServer(tls="starttls", users={"shop": SECRET}) as server:
        configure(project, **server.settings())
        checked = Checked(cli, project)
        server.wait_until(lambda: server.open_connections == 0)
    assert checked.code == 0
    assert checked.printed["ok"] is True
    assert list(checked.checks) == (
        ["settings", "dns", "tcp", "tls", "ehlo", "auth", "sender", "broker", "worker", "keys", "spf", "dmarc"]
    )
    assert "days left" in checked.checks["tls"]["found"]
    assert "PIPELINING" in checked.checks["ehlo"]["found"]
    assert "redirected" not in checked.checks["settings"]["found"]
    assert checked.checks["auth"]["found"] == "logged in as shop"
    assert "shop@example.com is accepted" in checked.checks["sender"]["found"]
    assert [checked.status(name) for name in ("broker", "worker")] == ["skipped", "skipped"]
    assert checked.checks["keys"]["found"].startswith("kept in this process only; set TASKS")
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


@pytest.mark.parametrize(
    ("verb", "reply", "line", "remedy"),
    [
        ("AUTH", "534 5.7.9 application-specific password required", "auth", "xoauth2_token"),
        ("AUTH", "535 5.7.8 no", "auth", 'EMAIL["password"]'),
        ("AUTH", "538 5.7.11 encryption required", "auth", 'EMAIL["use_tls"]'),
        ("AUTH", "530 5.7.0 Must issue a STARTTLS command first", "auth", 'EMAIL["use_tls"]'),
        ("AUTH", "454 4.7.0 later", "auth", "retry later"),
        ("AUTH", "421 4.7.0 too many", "auth", "pool_size"),
        ("EHLO", "421 4.3.2 going down", "ehlo", "pool_size"),
        ("greeting", "421 4.7.0 too many", "ehlo", "pool_size"),
        ("MAIL", "550 5.7.1 not yours", "sender", "from which this login may send"),
        ("MAIL", "553 5.1.8 unknown", "sender", "default_sender"),
        ("MAIL", "530 5.7.0 authentication required", "sender", "connection's login"),
        ("MAIL", "421 4.7.0 slow down", "sender", "pool_size"),
        ("MAIL", "451 4.3.0 disk", "sender", "temporarily"),
    ],
)
def test_the_remedy_follows_the_reply(cli: Cli, project: Path, verb: str, reply: str, line: str, remedy: str) -> None:
    with SmtpServer(users={"shop": SECRET}) as server:
        server.fault(verb, reply)
        configure(project, **server.settings())
        checked = Checked(cli, project)
    assert checked.failed == [line]
    assert reply[:3] in checked.checks[line]["found"]
    assert remedy in checked.checks[line]["remedy"]


@pytest.mark.parametrize(
    ("users", "reply", "remedy"),
    [
        ({"shop": SECRET}, "530 5.7.0 authentication required", 'EMAIL["username"]'),
        ({}, "530 5.7.0 Must issue a STARTTLS command first", 'EMAIL["use_tls"]'),
        ({}, "530 5.7.0 encryption needed", 'EMAIL["use_tls"]'),
    ],
)
def test_530_at_the_sender_says_what_is_missing_before_it(
    cli: Cli, project: Path, users: dict[str, str], reply: str, remedy: str
) -> None:
    with SmtpServer(users=users) as server:
        server.fault("MAIL", reply)
        configure(project, **server.settings(username=None, password=None))
        checked = Checked(cli, project)
    assert checked.failed == ["sender"]
    assert remedy in checked.checks["sender"]["remedy"]


@pytest.mark.parametrize("code", [504, 534, 538])
def test_the_answer_that_came_is_told_although_silence_follows(cli: Cli, project: Path, code: int) -> None:
    with SmtpServer(users={"shop": SECRET}, auth_methods=["PLAIN", "LOGIN"]) as server:
        server.fault("AUTH", code, nth=1)
        server.fault("AUTH", "silence", nth=2)
        configure(project, **server.settings())
        checked = Checked(cli, project, "--timeout", "6", limited=True)
    assert checked.failed == ["auth"]
    assert f"AUTH: {code} " in checked.checks["auth"]["found"]


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


def full(redis_server: RedisServer) -> str:
    with redis_server.client() as client:
        client.config_set("maxmemory", 1)
    return redis_server.url


def read_only(redis_server: RedisServer) -> str:
    with redis_server.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", closed_port())
    return redis_server.url


def forbidding(redis_server: RedisServer) -> str:
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "shop", "on", f">{SECRET}", "~other:*", "+@all")
    return f"redis://shop:{SECRET}@127.0.0.1:{redis_server.port}/0"


@pytest.mark.parametrize(("trouble", "remedy"), [(full, "maxmemory"), (read_only, "primary"), (forbidding, "ACL")])
def test_a_redis_that_answers_and_takes_no_mail_fails(
    cli: Cli, project: Path, redis_server: RedisServer, trouble: Callable[[RedisServer], str], remedy: str
) -> None:
    tasks = {"broker": "redis", "broker_url": trouble(redis_server)}
    with SmtpServer() as server:
        configure(project, tasks, **server.settings())
        checked = Checked(cli, project)
    assert checked.failed == ["broker"]
    assert "accepts no mail" in checked.checks["broker"]["found"]
    assert remedy in checked.checks["broker"]["remedy"]


@pytest.fixture
def limited(rabbitmq_server: RabbitmqServer) -> Iterator[RabbitmqServer]:
    """With the user "shop", who has no rights."""
    rabbitmq_server.add_user("shop", SECRET)
    rabbitmq_server.grant("shop", "^$", ".*", ".*")
    yield rabbitmq_server
    rabbitmq_server.end_alarms()
    rabbitmq_server.delete_user("shop")


def test_a_rabbitmq_that_answers_and_takes_no_mail_fails(cli: Cli, project: Path, limited: RabbitmqServer) -> None:
    """A user without rights, and a memory alarm."""
    scheme, _, address = limited.url.replace("guest:guest@", "").partition("://")
    forbidden = {"broker": "rabbitmq", "broker_url": f"{scheme}://shop:{SECRET}@{address.rpartition('@')[2]}"}
    with SmtpServer() as server:
        configure(project, forbidden, **server.settings())
        without_rights = Checked(cli, project)
        limited.raise_alarm("memory")
        configure(project, {"broker": "rabbitmq", "broker_url": limited.url}, **server.settings())
        alarmed = Checked(cli, project)
    for checked, remedy in ((without_rights, "let this user"), (alarmed, "alarm")):
        assert checked.failed == ["broker"]
        assert "accepts no mail" in checked.checks["broker"]["found"]
        assert remedy in checked.checks["broker"]["remedy"]


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


OWN = """
from openviper.core.email import DeliveryError, DeliveryReport, EmailBackend
from openviper.core.email.backends import SMTPBackend

class Own(EmailBackend):
    opened = False
    async def open(self): self.opened = True
    async def aclose(self): print("closed", file=__import__("sys").stderr)
    async def send(self, message): return DeliveryReport(accepted=message.envelope.recipients)

class Good(Own):
    async def check(self): return f"the service answers, opened: {self.opened}"

class Quiet(Own):
    async def check(self): return None

class Refused(Own):
    async def check(self): raise DeliveryError("the service says 403")

class Broken(Own):
    async def check(self): return 1 / 0

class Silent(Own):
    async def check(self): await __import__("asyncio").sleep(3600)

class Mine(SMTPBackend):
    async def check(self): return "mine is checked, too"
"""


@pytest.mark.parametrize(
    ("name", "status", "found"),
    [
        ("Own", "skipped", "has no check() of its own"),
        ("Good", "ok", "the service answers, opened: True"),
        ("Quiet", "ok", "Quiet reports no problem"),
        ("Refused", "failed", "the service says 403"),
        ("Broken", "failed", "check() raised ZeroDivisionError"),
    ],
)
def test_an_own_backend_is_checked_by_its_hook(cli: Cli, project: Path, name: str, status: str, found: str) -> None:
    (project / "own.py").write_text(OWN)
    configure(project, backend=f"own.{name}")
    checked = Checked(cli, project)
    assert list(checked.checks) == ["settings", "backend", "broker", "worker", "keys", "spf", "dmarc"]
    assert checked.status("backend") == status
    assert found in checked.checks["backend"]["found"]
    assert checked.code == (1 if status == "failed" else 0)
    assert bool(checked.checks["backend"]["remedy"]) == (status != "ok")


def test_an_own_backend_that_stays_silent_ends_in_time(cli: Cli, project: Path) -> None:
    (project / "own.py").write_text(OWN)
    configure(project, backend="own.Silent")
    checked = Checked(cli, project, "--timeout", "0.5", limited=True)
    assert checked.failed == ["backend"]
    assert "did not end in time" in checked.checks["backend"]["found"]


def test_an_own_smtp_backend_is_checked_as_smtp_and_by_its_hook(cli: Cli, project: Path) -> None:
    (project / "own.py").write_text(OWN)
    with SmtpServer() as server:
        configure(project, **server.settings(backend="own.Mine"))
        checked = Checked(cli, project)
    assert checked.code == 0
    assert checked.status("sender") == "ok"
    assert checked.checks["backend"]["found"] == "mine is checked, too"


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
    assert done.stdout.splitlines()[0].startswith("ok       settings    SMTPBackend")
    assert "\n                     -> set EMAIL" in done.stdout
    assert done.stderr == ""


def test_colours_are_for_terminals_that_want_them(project: Path) -> None:
    configure(project, backend="ConsoleBackend")
    command = [str(Path(sys.executable).with_name("viperctl")), "email", "check", "--project", str(project)]
    assert "\x1b[32m" in on_a_terminal(command).stdout
    assert "\x1b[32m" not in on_a_terminal(command, NO_COLOR="1").stdout
