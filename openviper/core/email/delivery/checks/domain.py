"""Check SPF and DMARC of the sender's domain, if dnspython is installed and DNS answers."""

from collections.abc import Iterable

from openviper.core.email.addresses import parse_address
from openviper.core.email.delivery.checks.lookup import NoAnswer, TxtLookup, dns_lookup, is_reserved, read_tags
from openviper.core.email.delivery.checks.result import CheckResult
from openviper.core.email.delivery.checks.waiting import in_thread, remaining
from openviper.core.email.delivery.signing import nearest_domain
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import MissingDependency

__all__ = ["check_dmarc", "check_domain", "check_spf"]

_MAX_PARENTS = 5

_REQUESTS = {
    "none": "receivers only report mail that neither SPF nor DKIM authenticates",
    "quarantine": "receivers are asked to treat mail as spam if neither SPF nor DKIM authenticates it",
    "reject": "receivers are asked to refuse mail that neither SPF nor DKIM authenticates",
}


async def check_domain(settings: EmailSettings, sender: str | None, deadline: float) -> tuple[CheckResult, CheckResult]:
    """Check SPF and DMARC until ``deadline`` (loop time)."""
    domain = "" if sender is None else parse_address(sender, field="sender").domain.lower()
    if not domain or domain.startswith("["):
        return _both_skipped("there is no sender with a domain")
    if is_reserved(domain):
        return _both_skipped(f"{domain} is reserved for examples and tests")
    lifetime = remaining(deadline)
    signing = nearest_domain({each: each for each in settings.dkim}, domain)
    try:
        return await in_thread(lambda: _look_up(domain, signing, lifetime), deadline)
    except MissingDependency as error:
        return _both_skipped(f"not checked: {error}")
    except (NoAnswer, TimeoutError) as error:
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


def check_dmarc(domain: str, lookup: TxtLookup, signing: str | None = None) -> CheckResult:
    """Check the DMARC record of ``domain``, or of its nearest parent that has one (RFC 7489).

    The result says the policy and the alignment in words. ``signing`` is the domain that signs; None if none does.
    """
    labels = domain.split(".")
    for skipped in range(max(1, min(len(labels) - 1, _MAX_PARENTS))):
        name = ".".join(("_dmarc", *labels[skipped:]))
        found = [record for record in lookup(name) if record.lower().replace(" ", "").startswith("v=dmarc1")]
        if len(found) > 1:
            return CheckResult.warning("dmarc", f"{name} has {len(found)} records", "join them: receivers ignore all")
        if found:
            return _explained(name, found[0], domain, signing, inherited=skipped > 0)
    remedy = f'publish a TXT record for _dmarc.{domain}, such as "v=DMARC1; p=none; rua=mailto:..."'
    return CheckResult.warning("dmarc", f"{domain} has no record: large receivers require one", remedy)


def _explained(name: str, record: str, domain: str, signing: str | None, *, inherited: bool) -> CheckResult:
    tags = read_tags(record)
    policy = (tags.get("sp") if inherited else None) or tags.get("p", "")
    request = _REQUESTS.get(policy.lower())
    if request is None:
        remedy = "give it p=none, p=quarantine or p=reject: receivers ignore it otherwise (RFC 7489 section 6.6.3)"
        return CheckResult.warning("dmarc", f"{name}: {record}: it has no valid policy", remedy)
    spf = f"SPF is aligned while the envelope sender is at {domain}, as by default"
    if signing is None:
        dkim = 'no key of EMAIL["dkim"] signs for it, so DKIM is up to the mail server'
    elif signing != domain and tags.get("adkim", "r").lower() == "s":
        text = (
            f"{name}: {record}: {request}; {spf}; DKIM is not aligned: {signing} signs, and adkim=s asks for {domain}"
        )
        return CheckResult.warning("dmarc", text, f'give EMAIL["dkim"] a key of {domain}, or publish adkim=r')
    else:
        dkim = f"DKIM is aligned: {signing} signs"
    return CheckResult.ok("dmarc", f"{name}: {record}: {request}; {spf}; {dkim}")


def _look_up(domain: str, signing: str | None, lifetime: float) -> tuple[CheckResult, CheckResult]:
    lookup = dns_lookup(lifetime, purpose="the check of SPF and DMARC")
    return check_spf(domain, lookup(domain)), check_dmarc(domain, lookup, signing)


def _both_skipped(why: str) -> tuple[CheckResult, CheckResult]:
    return CheckResult.skipped("spf", why), CheckResult.skipped("dmarc", why)
