"""SPF and DMARC: what the records of a domain mean, and asking for them where dnspython is installed."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest
from support.commands import Cli

from openviper.cli.check.domain import judge_dmarc, judge_spf
from openviper.cli.check.waiting import in_thread

# In place of the library, so that no query leaves this machine.
RESOLVER = """
from types import SimpleNamespace

from dns.exception import DNSException


class NXDOMAIN(DNSException):
    pass


class NoAnswer(DNSException):
    pass


class Timeout(DNSException):
    pass


def resolve(name, kind, lifetime):
    assert kind == "TXT" and 0 < lifetime < 10
    if name == "shop.silent-dns.net":
        raise Timeout
    records = {
        "shop.some-domain.net": [[b"v=spf1 include:mail.some-domain.net ", b"-all"], [b"other=1"]],
        "_dmarc.some-domain.net": [[b"v=DMARC1; p=reject"]],
    }
    if name not in records:
        raise NXDOMAIN
    return [SimpleNamespace(strings=strings) for strings in records[name]]
"""


@pytest.fixture
def library(project: Path) -> Path:
    """The folder of the library's stand-in, which the project's own folder makes the first to be found."""
    folder = project / "dns"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "exception.py").write_text("class DNSException(Exception):\n    pass\n")
    (folder / "resolver.py").write_text(RESOLVER)
    return folder


def check(cli: Cli, project: Path, sender: str) -> dict[str, dict[str, str]]:
    (project / "settings.py").write_text(f'EMAIL = {{"backend": "ConsoleBackend", "default_sender": {sender!r}}}\n')
    done = cli.run("email", "check", "--project", project, "--json")
    assert done.returncode == 0, done.stderr
    return {check["check"]: check for check in json.loads(done.stdout)["checks"]}


def test_the_records_of_the_senders_domain_are_shown(cli: Cli, project: Path, library: Path) -> None:
    """That of DMARC may be the parent's."""
    checks = check(cli, project, "Shop <a@shop.some-domain.net>")
    assert checks["spf"]["status"] == "ok"
    assert checks["spf"]["found"] == "shop.some-domain.net: v=spf1 include:mail.some-domain.net -all"
    assert checks["dmarc"]["status"] == "ok"
    assert checks["dmarc"]["found"] == "_dmarc.some-domain.net: v=DMARC1; p=reject"


def test_missing_records_are_warnings_with_a_remedy(cli: Cli, project: Path, library: Path) -> None:
    checks = check(cli, project, "a@bare-domain.net")
    assert [checks[name]["status"] for name in ("spf", "dmarc")] == ["warning", "warning"]
    assert "_dmarc.bare-domain.net" in checks["dmarc"]["remedy"]


def test_dns_that_does_not_answer_is_no_failure(cli: Cli, project: Path, library: Path) -> None:
    checks = check(cli, project, "a@shop.silent-dns.net")
    assert checks["spf"]["status"] == "skipped"
    assert "Timeout" in checks["spf"]["found"]


def test_without_the_library_the_line_says_how_to_get_it(cli: Cli, project: Path, library: Path) -> None:
    (library / "resolver.py").write_text("raise ModuleNotFoundError(\"No module named 'dns'\", name='dns')\n")
    checks = check(cli, project, "a@shop.some-domain.net")
    assert checks["spf"]["status"] == "skipped"
    assert checks["spf"]["remedy"] == "pip install dnspython"


@pytest.mark.parametrize("sender", ["a@shop.example", "a@mail.example.com", "a@localhost", "a@x.test"])
def test_reserved_domains_are_not_asked_for(cli: Cli, project: Path, library: Path, sender: str) -> None:
    checks = check(cli, project, sender)
    assert checks["spf"]["status"] == checks["dmarc"]["status"] == "skipped"


@pytest.mark.parametrize(
    ("records", "status", "words"),
    [
        (["v=spf1 -all"], "ok", "v=spf1 -all"),
        (["V=SPF1 mx ~all"], "ok", "mx"),
        (["v=spf1"], "ok", "v=spf1"),
        (["v=spf10 -all", "other"], "warning", "no record"),
        ([], "warning", "no record"),
        (["v=spf1 mx -all", "v=spf1 a -all"], "warning", "2 records"),
        (["v=spf1 +all"], "warning", "+all"),
        (["v=spf1 all"], "warning", "all"),
    ],
)
def test_spf_records_are_judged(records: list[str], status: str, words: str) -> None:
    finding = judge_spf("shop.net", records)
    assert finding.status == status
    assert words in finding.found
    assert bool(finding.remedy) == (status == "warning")


def test_dmarc_is_looked_for_upwards_but_not_at_the_top_level() -> None:
    asked: list[str] = []

    def lookup(name: str) -> list[str]:
        asked.append(name)
        return ["v=unrelated"]

    assert judge_dmarc("a.b.shop.net", lookup).status == "warning"
    assert asked == ["_dmarc.a.b.shop.net", "_dmarc.b.shop.net", "_dmarc.shop.net"]


def test_two_dmarc_records_count_as_none() -> None:
    finding = judge_dmarc("shop.net", lambda name: ["v=DMARC1; p=none", "v=DMARC1; p=reject"])
    assert finding.status == "warning"
    assert "2 records" in finding.found


async def test_waiting_in_a_thread_gives_its_result_or_error() -> None:
    deadline = asyncio.get_running_loop().time() + 10
    assert await in_thread(lambda: 7, deadline) == 7
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0, deadline)


async def test_waiting_ends_at_the_deadline() -> None:
    released = Event()
    with pytest.raises(TimeoutError):
        await in_thread(released.wait, asyncio.get_running_loop().time() + 0.05)
    released.set()


def test_a_program_can_end_while_a_thread_still_waits() -> None:
    """As a look-up may that the system's resolver does not end for half a minute."""
    code = """
import asyncio, time
from openviper.cli.check.waiting import in_thread

async def main():
    await in_thread(lambda: time.sleep(55), asyncio.get_running_loop().time() + 0.1)

try:
    asyncio.run(main())
except TimeoutError:
    print("ended")
"""
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "ended\n"
    assert time.monotonic() - begin < 25
