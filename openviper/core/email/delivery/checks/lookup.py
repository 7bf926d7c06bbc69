"""Look up TXT records, and find the domains that have none by definition."""

from collections.abc import Callable

from openviper.conf.imports import require

__all__ = ["NoAnswer", "TxtLookup", "dns_lookup", "is_reserved", "read_tags"]

# RFC 6761 and RFC 6762: these have no public records.
_RESERVED = frozenset({"test", "example", "invalid", "localhost", "local"})
_RESERVED_SECOND = frozenset({"example.com", "example.net", "example.org"})

TxtLookup = Callable[[str], list[str]]


class NoAnswer(Exception):
    """DNS did not answer."""


def is_reserved(domain: str) -> bool:
    """True if ``domain`` is reserved for examples and tests, so that it has no public records."""
    return domain.rpartition(".")[2] in _RESERVED or ".".join(domain.split(".")[-2:]) in _RESERVED_SECOND


def read_tags(record: str) -> dict[str, str]:
    """Return the tags of a record such as ``v=DKIM1; k=rsa; p=...`` without white space (RFC 6376 section 3.2)."""
    pairs = [part.partition("=") for part in record.split(";")]
    return {name.strip().lower(): "".join(value.split()) for name, equals, value in pairs if equals}


def dns_lookup(lifetime: float, *, purpose: str) -> TxtLookup:
    """Return a blocking function that gives the TXT records of a name; none if there is no such name.

    It waits at most ``lifetime`` seconds, and raises NoAnswer if DNS gives no answer. ``purpose`` begins the error.

    Raises:
        MissingDependency: dnspython is not installed.
    """
    require("dns", extra="dns", purpose=purpose)
    from dns import exception, resolver

    def lookup(name: str) -> list[str]:
        try:
            answers = resolver.resolve(name, "TXT", lifetime=lifetime)
        except (resolver.NXDOMAIN, resolver.NoAnswer):
            return []
        except exception.DNSException as error:
            raise NoAnswer(f"DNS gave no answer for {name}: {type(error).__name__}") from error
        return [b"".join(answer.strings).decode("ascii", "replace") for answer in answers]

    return lookup
