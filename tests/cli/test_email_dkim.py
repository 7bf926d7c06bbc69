"""``viperctl email dkim`` and the check of the published keys, with a name server on loopback."""

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from support.commands import Cli
from support.dkim_keys import ED25519, OTHER_RSA, RSA
from support.nameserver import Nameserver

from openviper.core.email.delivery.checks.dkim import check_key
from openviper.core.email.delivery.checks.domain import check_dmarc
from openviper.core.email.message.dkim import generate_key, load_key, public_record, zone_lines

DOMAIN = "shop.some-domain.net"
NAME = f"s._domainkey.{DOMAIN}"


def strings(printed: str) -> list[str]:
    return re.findall(r'"([^"]*)"', printed)


def published(pem: str) -> str:
    """The record of a key, in quoted strings."""
    return " ".join(f'"{part}"' for part in strings(zone_lines("x", public_record(load_key("s", pem.encode())))))


def record(pem: str) -> str:
    return public_record(load_key("s", pem.encode()))


def checks(cli: Cli, project: Path, nameserver: Nameserver, **email: Any) -> tuple[int, list[dict[str, str]]]:
    settings = {"backend": "ConsoleBackend", "default_sender": f"a@{DOMAIN}", **email}
    (project / "settings.py").write_text(f"{nameserver.resolver_settings()}\nEMAIL = {settings!r}\n")
    done = cli.run("email", "check", "--project", project, "--json", "--timeout", "9")
    found = json.loads(done.stdout)["checks"]
    return done.returncode, [each for each in found if each["check"] in ("spf", "dmarc", "dkim")]


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_a_new_key_is_published_and_configured_as_printed(cli: Cli, project: Path, kind: str) -> None:
    """The printed record is published, the printed setting added; then ``check`` finds the key, and ``show`` it."""
    file = project / "key.pem"
    made = cli.run("email", "dkim", "keygen", DOMAIN, "--selector", "s", "--type", kind, "--output", file)
    assert made.returncode == 0, made.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().splitlines()[1] not in made.stdout
    printed, _, setting = made.stdout.partition('"dkim": ')
    txt = strings(printed[printed.index("TXT") : printed.index(")")])
    assert all(len(each) <= 255 for each in txt)
    assert "".join(txt) == record(file.read_text())
    with Nameserver({NAME: [" ".join(f'"{each}"' for each in txt)]}) as nameserver:
        code, found = checks(cli, project, nameserver, dkim=json.loads(setting))
    assert (code, found[-1]["status"]) == (0, "ok")
    assert found[-1]["found"].startswith(f"{NAME}: the configured ")
    shown = cli.run("email", "dkim", "show", "--project", project)
    assert shown.stdout.startswith(f"{NAME}. IN TXT (\n")
    assert strings(shown.stdout) == txt


def test_a_key_file_is_never_overwritten(cli: Cli, tmp_path: Path) -> None:
    assert cli.run("email", "dkim", "keygen", DOMAIN, "--selector", "s").returncode == 0
    file = tmp_path / f"s.{DOMAIN}.pem"
    before = file.read_bytes()
    again = cli.run("email", "dkim", "keygen", DOMAIN, "--selector", "s")
    assert again.returncode == 1
    assert "exists and is not overwritten" in again.stderr
    assert file.read_bytes() == before


def test_wrong_arguments_of_keygen_write_nothing(cli: Cli, tmp_path: Path) -> None:
    for arguments in (["a..b"], [DOMAIN, "--selector", "../a"], [DOMAIN, "--type", "ed25519", "--bits", "2048"]):
        done = cli.run("email", "dkim", "keygen", *arguments)
        assert done.returncode == 2, done.stdout
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.pem"))


def test_the_selector_names_type_and_month(cli: Cli, tmp_path: Path) -> None:
    """So that keys of two kinds, and a later one, never share a record."""
    for kind in ("rsa", "ed25519"):
        assert cli.run("email", "dkim", "keygen", "Bücher.example", "--type", kind).returncode == 0
    names = sorted(re.sub(r"\d{6}", "YYYYMM", file.name, count=1) for file in tmp_path.glob("*.pem"))
    assert names == ["edYYYYMM.xn--bcher-kva.example.pem", "rsaYYYYMM.xn--bcher-kva.example.pem"]


def test_show_names_the_domains_that_have_keys(cli: Cli, project: Path) -> None:
    (project / "settings.py").write_text("")
    none = cli.run("email", "dkim", "show", "--project", project)
    assert none.returncode == 1
    assert "viperctl email dkim keygen DOMAIN" in none.stderr
    keys = {DOMAIN: {"r": RSA, "e": ED25519}, "other.net": {"o": OTHER_RSA}}
    (project / "settings.py").write_text(f'EMAIL = {{"dkim": {keys!r}}}')
    shown = cli.run("email", "dkim", "show", "--project", project)
    assert re.findall(r"^(\S+)\. IN TXT \($", shown.stdout, re.MULTILINE) == [
        f"r._domainkey.{DOMAIN}",
        f"e._domainkey.{DOMAIN}",
        "o._domainkey.other.net",
    ]
    assert "PRIVATE" not in shown.stdout
    assert "other" not in cli.run("email", "dkim", "show", DOMAIN, "--project", project).stdout
    wrong = cli.run("email", "dkim", "show", "third.net", "--project", project)
    assert wrong.returncode == 2
    assert f"third.net has no keys; these have: {DOMAIN}, other.net" in wrong.stderr


def test_a_key_that_dns_does_not_publish_fails_the_check(cli: Cli, project: Path) -> None:
    records = {NAME: [published(OTHER_RSA)], f"gone._domainkey.{DOMAIN}": None}
    with Nameserver(records) as nameserver:
        code, found = checks(cli, project, nameserver, dkim={DOMAIN: {"s": RSA, "e": ED25519}, "x.example": {"s": RSA}})
        assert code == 1
        assert [(each["status"], each["found"]) for each in found if each["check"] == "dkim"] == [
            ("failed", f"{NAME}: a key other than the configured one is published"),
            ("failed", f"e._domainkey.{DOMAIN} has no record: receivers ignore the signature"),
            ("skipped", "s._domainkey.x.example: x.example is reserved for examples and tests"),
        ]
        code, found = checks(cli, project, nameserver, dkim={DOMAIN: {"gone": RSA}})
        assert (code, found[-1]["status"]) == (0, "skipped")
        code, found = checks(cli, project, nameserver, dkim={DOMAIN: {"s": "/no/such/key.pem"}})
    assert (code, found[-1]["status"]) == (1, "failed")
    assert found[-1]["found"].startswith(f'EMAIL["dkim"]["{DOMAIN}"]["s"]: ')


@pytest.mark.parametrize(
    ("records", "status", "words"),
    [
        ([record(RSA)], "ok", "RSA 2048 bits key"),
        ([record(RSA).removeprefix("v=DKIM1; ").replace("p=MII", "p=M I I")], "ok", "RSA"),
        ([record(RSA) + "; t=s; h=sha256; s=*; n=note"], "ok", "RSA"),
        ([record(RSA), "v=spf1 -all", "unrelated; p"], "ok", "RSA"),
        ([record(RSA), record(OTHER_RSA)], "failed", "2 records"),
        ([record(ED25519)], "failed", "a key other than"),
        ([record(RSA).replace("k=rsa", "k=ed25519")], "failed", "a key other than"),
        ([record(RSA)[:250]], "failed", "a key other than"),
        (["v=DKIM1; k=rsa; p="], "failed", "revoked"),
        ([record(RSA) + "; h=sha1"], "failed", "h= or s="),
        ([record(RSA) + "; s=other"], "failed", "h= or s="),
        ([record(RSA) + "; t=y"], "warning", "t=y"),
        ([], "failed", "no record"),
    ],
)
def test_published_records_are_compared(records: list[str], status: str, words: str) -> None:
    result = check_key(DOMAIN, load_key("s", RSA.encode()), records)
    assert result.status == status
    assert words in result.found
    assert bool(result.remedy) == (status != "ok")


def test_a_short_rsa_key_is_a_warning() -> None:
    key = load_key("s", generate_key("rsa", bits=1024))
    result = check_key(DOMAIN, key, [public_record(key)])
    assert (result.status, result.remedy) == ("warning", "use at least 2048 bits (RFC 8301)")


@pytest.mark.parametrize(
    ("record", "signing", "status", "words"),
    [
        ("v=DMARC1; p=none", DOMAIN, "ok", ["only report", "SPF is aligned while", f"DKIM is aligned: {DOMAIN} signs"]),
        ("v=DMARC1; p=quarantine", None, "ok", ["spam", 'no key of EMAIL["dkim"] signs for it']),
        ("v=DMARC1; p=none; sp=reject", DOMAIN, "ok", ["refuse"]),
        ("v=DMARC1; p=reject", "some-domain.net", "ok", ["DKIM is aligned: some-domain.net signs"]),
        ("v=DMARC1; p=reject; adkim=s", "some-domain.net", "warning", ["DKIM is not aligned: some-domain.net signs"]),
        ("v=DMARC1; p=reject; adkim=s", DOMAIN, "ok", ["refuse", "DKIM is aligned"]),
        ("v=DMARC1; p=refuse", DOMAIN, "warning", ["no valid policy"]),
    ],
)
def test_policy_and_alignment_are_said_in_words(
    record: str, signing: str | None, status: str, words: list[str]
) -> None:
    """The record is that of the domain above, whose ``sp=`` counts for those below it."""
    published = {"_dmarc.some-domain.net": [record]}
    result = check_dmarc(DOMAIN, lambda name: published.get(name, []), signing)
    assert result.status == status
    assert all(each in result.found for each in words), result.found
    assert bool(result.remedy) == (status == "warning")


def test_the_sender_below_a_signing_domain_is_aligned(cli: Cli, project: Path) -> None:
    records = {"_dmarc.some-domain.net": ['"v=DMARC1; p=reject"'], "s._domainkey.some-domain.net": [published(RSA)]}
    with Nameserver(records) as nameserver:
        code, found = checks(cli, project, nameserver, dkim={"some-domain.net": {"s": RSA}})
    assert code == 0
    dmarc = next(each for each in found if each["check"] == "dmarc")
    assert "receivers are asked to refuse mail" in dmarc["found"]
    assert dmarc["found"].endswith("DKIM is aligned: some-domain.net signs")
