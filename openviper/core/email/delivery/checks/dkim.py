"""Compare the keys of ``EMAIL["dkim"]`` with those that DNS publishes."""

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator

from openviper.core.email.delivery.checks.lookup import NoAnswer, dns_lookup, is_reserved, read_tags
from openviper.core.email.delivery.checks.result import CheckResult
from openviper.core.email.delivery.checks.waiting import in_thread, remaining
from openviper.core.email.delivery.signing import load_keys
from openviper.core.email.message.dkim import DkimKey, public_record, record_name
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured, MissingDependency

__all__ = ["check_dkim", "check_key"]

_RECOMMENDED_RSA_BITS = 2048  # RFC 8301 section 3.2


async def check_dkim(settings: EmailSettings, deadline: float) -> AsyncIterator[CheckResult]:
    """Yield a result for each configured key until ``deadline`` (loop time); none if nothing is signed."""
    if not settings.dkim:
        return
    try:
        async with asyncio.timeout_at(deadline):
            keys = await load_keys(settings)
    except TimeoutError:
        yield CheckResult.skipped("dkim", "not checked: the keys could not be read in time")
        return
    except (ImproperlyConfigured, MissingDependency) as error:
        yield CheckResult.failed("dkim", str(error), "correct it: the application does not start without its keys")
        return
    for domain, key in [(domain, key) for domain, each in keys.items() for key in each]:
        yield await _check(domain, key, deadline)


def check_key(domain: str, key: DkimKey, records: list[str]) -> CheckResult:
    """Compare ``key`` with the TXT records at its name (RFC 6376 sections 3.6.1 and 6.1.2)."""
    name = record_name(key.selector, domain)
    publish = f"publish the record that `viperctl email dkim show` prints for {name}"
    # Domains with a wildcard answer with records of other kinds.
    found = [tags for tags in map(read_tags, records) if "p" in tags and tags.get("v", "DKIM1") == "DKIM1"]
    if not found:
        return CheckResult.failed("dkim", f"{name} has no record: receivers ignore the signature", publish)
    if len(found) > 1:
        return CheckResult.failed("dkim", f"{name} has {len(found)} records", "keep one: receivers may use any of them")
    tags = found[0]
    if not tags["p"]:
        return CheckResult.failed("dkim", f"{name}: the key is revoked (p= is empty)", "sign with a new selector")
    if not _is_same(read_tags(public_record(key)), tags):
        return CheckResult.failed("dkim", f"{name}: a key other than the configured one is published", publish)
    if _excludes(tags, "h", "sha256") or _excludes(tags, "s", "email"):
        return CheckResult.failed("dkim", f"{name}: its tag h= or s= excludes these signatures", publish)
    if "y" in tags.get("t", "").split(":"):
        text = f"{name}: the configured key is published, for tests only (t=y): receivers ignore the signature"
        return CheckResult.warning("dkim", text, "remove t=y")
    text = f"{name}: the configured {_kind(key)} key is published"
    if key.algorithm == "rsa-sha256" and _bits(key) < _RECOMMENDED_RSA_BITS:
        return CheckResult.warning("dkim", text, f"use at least {_RECOMMENDED_RSA_BITS} bits (RFC 8301)")
    return CheckResult.ok("dkim", text)


async def _check(domain: str, key: DkimKey, deadline: float) -> CheckResult:
    name = record_name(key.selector, domain)
    if is_reserved(domain):
        return CheckResult.skipped("dkim", f"{name}: {domain} is reserved for examples and tests")
    lifetime = remaining(deadline)

    def look_up() -> list[str]:
        return dns_lookup(lifetime, purpose="the check of DKIM")(name)

    try:
        return check_key(domain, key, await in_thread(look_up, deadline))
    except MissingDependency as error:
        return CheckResult.skipped("dkim", f"not checked: {error}")
    except (NoAnswer, TimeoutError) as error:
        return CheckResult.skipped("dkim", f"not checked: {str(error) or 'DNS did not answer in time'}")


def _is_same(own: dict[str, str], published: dict[str, str]) -> bool:
    try:
        decoded = b64decode(published["p"], validate=True)
    except ValueError:
        return False
    return published.get("k", "rsa").lower() == own["k"] and decoded == b64decode(own["p"])


def _excludes(tags: dict[str, str], tag: str, value: str) -> bool:
    listed = tags.get(tag, "*").lower().split(":")
    return not ({value, "*"} & set(listed)) and listed != [""]


def _kind(key: DkimKey) -> str:
    return f"RSA {_bits(key)} bits" if key.algorithm == "rsa-sha256" else "Ed25519"


def _bits(key: DkimKey) -> int:
    return getattr(key.key, "key_size", 0)
