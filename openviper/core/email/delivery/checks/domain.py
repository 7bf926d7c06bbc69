"""Check SPF and DMARC of the sender's domain, if dnspython is installed and DNS answers."""

from collections.abc import Callable, Iterable

from openviper.conf.imports import require
from openviper.core.email.addresses import parse_address
from openviper.core.email.delivery.checks.result import CheckResult
from openviper.core.email.delivery.checks.waiting import in_thread, remaining
from openviper.exceptions import MissingDependency

__all__ = ["check_dmarc", "check_domain", "check_spf"]

# RFC 6761 and RFC 6762: these have no public records.
_RESERVED = frozenset({"test", "example", "invalid", "localhost", "local"})
_RESERVED_SECOND = frozenset({"example.com", "example.net", "example.org"})
_MAX_PARENTS = 5

TxtLookup = Callable[[str], list[str]]


class _NoAnswer(Exception):
    """DNS did not answer."""


async def check_domain(sender: str | None, deadline: float) -> tuple[CheckResult, CheckResult]:
    """Check SPF and DMARC until ``deadline`` (loop time)."""
    domain = "" if sender is None else parse_address(sender, field="sender").domain.lower()
    if not domain or domain.startswith("["):
        return _both_skipped("there is no sender with a domain")
    if domain.rpartition(".")[2] in _RESERVED or ".".join(domain.split(".")[-2:]) in _RESERVED_SECOND:
        return _both_skipped(f"{domain} is reserved for examples and tests")
    lifetime = remaining(deadline)
    try:
        return await in_thread(lambda: _look_up(domain, lifetime), deadline)
    except MissingDependency as error:
        return _both_skipped(f"not checked: {error}")
    except (_NoAnswer, TimeoutError) as error:
        return _both_skipped(f"not checked: {str(error) or 'DNS did not answer in time'}")


def check_spf(domain: str, records: Iterable[str]) -> CheckResult:
    """Check the SPF record among the TXT records of ``domain`` (RFC 7208)."""
    found = [record for record in records if record.lower() == "v=spf1" or record.lower().startswith("v=spf1 ")]
    if not found:
        remedy = f'publish a TXT record for {domain}, such as "v=spf1 mx -all", that names your mail server'
        return CheckResult.warning("spf", f"{domain} has no record: receivers may treat its mail as forged", remedy)
    if len(found) > 1:
        remedy = "join them into one: receivers ignore both (RFC 7208 section 4.5)"
        return CheckResult.warning("spf", f"{domain} has {len(found)} records", remedy)
    if "+all" in found[0].lower().split() or "all" in found[0].lower().split():
        return CheckResult.warning("spf", f"{domain}: {found[0]}", "end it with -all or ~all: it allows every server")
    return CheckResult.ok("spf", f"{domain}: {found[0]}")


def check_dmarc(domain: str, lookup: TxtLookup) -> CheckResult:
    """Check the DMARC record of ``domain``, or of its nearest parent that has one (RFC 7489)."""
    labels = domain.split(".")
    for skipped in range(max(1, min(len(labels) - 1, _MAX_PARENTS))):
        name = ".".join(("_dmarc", *labels[skipped:]))
        found = [record for record in lookup(name) if record.lower().replace(" ", "").startswith("v=dmarc1")]
        if len(found) > 1:
            return CheckResult.warning("dmarc", f"{name} has {len(found)} records", "join them: receivers ignore all")
        if found:
            return CheckResult.ok("dmarc", f"{name}: {found[0]}")
    remedy = f'publish a TXT record for _dmarc.{domain}, such as "v=DMARC1; p=none; rua=mailto:..."'
    return CheckResult.warning("dmarc", f"{domain} has no record: large receivers require one", remedy)


def _look_up(domain: str, lifetime: float) -> tuple[CheckResult, CheckResult]:
    lookup = _dns(lifetime)
    return check_spf(domain, lookup(domain)), check_dmarc(domain, lookup)


def _dns(lifetime: float) -> TxtLookup:
    require("dns", extra="dns", purpose="the check of SPF and DMARC")
    from dns import exception, resolver

    def lookup(name: str) -> list[str]:
        try:
            answers = resolver.resolve(name, "TXT", lifetime=lifetime)
        except (resolver.NXDOMAIN, resolver.NoAnswer):
            return []
        except exception.DNSException as error:
            raise _NoAnswer(f"DNS gave no answer for {name}: {type(error).__name__}") from error
        return [b"".join(answer.strings).decode("ascii", "replace") for answer in answers]

    return lookup


def _both_skipped(why: str) -> tuple[CheckResult, CheckResult]:
    return CheckResult.skipped("spf", why), CheckResult.skipped("dmarc", why)
