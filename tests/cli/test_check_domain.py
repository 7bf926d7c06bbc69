"""SPF and DMARC: what the records of a domain mean, and asking a name server on loopback for them."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
from support.commands import Cli
from support.nameserver import Nameserver
from support.patience import PATIENCE

from openviper.core.email.delivery.checks.domain import check_dmarc, check_spf
from openviper.core.email.delivery.checks.waiting import in_thread

RECORDS = {
    "shop.some-domain.net": ['"v=spf1 include:mail.some-domain.net " "-all"', '"other=1"'],
    "_dmarc.some-domain.net": ['"v=DMARC1; p=reject"'],
    "shop.failing-dns.net": None,
}

WITHOUT_DNSPYTHON = """
import sys


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "dns":
            raise ModuleNotFoundError("No module named 'dns'", name="dns")


sys.meta_path.insert(0, Hidden())
"""


@pytest.fixture
def nameserver() -> Iterator[Nameserver]:
    with Nameserver(RECORDS) as started:
        yield started


def check(cli: Cli, project: Path, sender: str, preparation: str) -> dict[str, dict[str, str]]:
    email = {"backend": "ConsoleBackend", "default_sender": sender}
    (project / "settings.py").write_text(f"{preparation}\nEMAIL = {email}\n")
    done = cli.run("email", "check", "--project", project, "--json", "--timeout", "9")
    assert done.returncode == 0, done.stderr
    return {check["check"]: check for check in json.loads(done.stdout)["checks"]}


def test_the_records_of_the_senders_domain_are_shown(cli: Cli, project: Path, nameserver: Nameserver) -> None:
    """That of DMARC may be the parent's."""
    checks = check(cli, project, "Shop <a@shop.some-domain.net>", nameserver.resolver_settings())
    assert checks["spf"]["status"] == "ok"
    assert checks["spf"]["found"] == "shop.some-domain.net: v=spf1 include:mail.some-domain.net -all"
    assert checks["dmarc"]["status"] == "ok"
    assert checks["dmarc"]["found"].startswith(
        "_dmarc.some-domain.net: v=DMARC1; p=reject: receivers are asked to refuse"
    )


def test_missing_records_are_warnings_with_a_remedy(cli: Cli, project: Path, nameserver: Nameserver) -> None:
    checks = check(cli, project, "a@bare-domain.net", nameserver.resolver_settings())
    assert [checks[name]["status"] for name in ("spf", "dmarc")] == ["warning", "warning"]
    assert "_dmarc.bare-domain.net" in checks["dmarc"]["remedy"]


def test_dns_that_fails_is_no_failure(cli: Cli, project: Path, nameserver: Nameserver) -> None:
    checks = check(cli, project, "a@shop.failing-dns.net", nameserver.resolver_settings())
    assert checks["spf"]["status"] == checks["dmarc"]["status"] == "skipped"
    assert checks["spf"]["found"] == "not checked: DNS gave no answer for shop.failing-dns.net: NoNameservers"


def test_without_the_library_the_line_says_how_to_get_it(cli: Cli, project: Path) -> None:
    checks = check(cli, project, "a@shop.some-domain.net", WITHOUT_DNSPYTHON)
    assert checks["spf"]["status"] == checks["dmarc"]["status"] == "skipped"
    assert "needs 'dns', which is not installed: pip install 'openviper-email[dns]'" in checks["spf"]["found"]


@pytest.mark.parametrize("sender", ["a@shop.example", "a@mail.example.com", "a@localhost", "a@x.test"])
def test_reserved_domains_are_not_asked_for(cli: Cli, project: Path, nameserver: Nameserver, sender: str) -> None:
    checks = check(cli, project, sender, nameserver.resolver_settings())
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
    result = check_spf("shop.net", records)
    assert result.status == status
    assert words in result.found
    assert bool(result.remedy) == (status == "warning")


def test_dmarc_is_looked_for_upwards_but_not_at_the_top_level() -> None:
    asked: list[str] = []

    def lookup(name: str) -> list[str]:
        asked.append(name)
        return ["v=unrelated"]

    assert check_dmarc("a.b.shop.net", lookup).status == "warning"
    assert asked == ["_dmarc.a.b.shop.net", "_dmarc.b.shop.net", "_dmarc.shop.net"]


def test_two_dmarc_records_count_as_none() -> None:
    result = check_dmarc("shop.net", lambda name: ["v=DMARC1; p=none", "v=DMARC1; p=reject"])
    assert result.status == "warning"
    assert "2 records" in result.found


async def test_waiting_in_a_thread_gives_its_result_or_error() -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE
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
    code = f"""
import asyncio, time
from openviper.core.email.delivery.checks.waiting import in_thread

async def main():
    await in_thread(lambda: time.sleep({10 * PATIENCE}), asyncio.get_running_loop().time() + 0.1)

try:
    asyncio.run(main())
except TimeoutError:
    print("ended")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "ended\n"
