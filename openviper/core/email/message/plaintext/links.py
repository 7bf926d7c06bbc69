"""Turn the targets of links into addresses that the reader of a text can use."""

import re
from urllib.parse import urljoin

__all__ = ["address_of", "same_address"]

# Targets that lead nowhere from a text, and those of which a reader types or dials a part.
_UNUSUAL = re.compile(
    r"#|(?:tel|sms):$|https?:/*$|(?:javascript|vbscript|data|cid|about|blob|file):"
    r"|mailto:(?P<mailbox>[^?]*)|tel:(?P<number>.+)",
    re.IGNORECASE,
)
_LONGEST_BARE = len("https://")
_SCHEME = re.compile(r"(?:https?|mailto|tel):(?://)?", re.IGNORECASE)


def address_of(url: str, base: str = "") -> str:
    """Return ``url`` as a reader could type or dial it; empty if it leads nowhere from a text.

    ``base`` is the ``href`` of the document's ``base`` element, which relative targets start from; ``""`` for none.
    """
    url = "%20".join(url.split())
    if url.startswith("http") and len(url) > _LONGEST_BARE:  # the usual case; the pattern takes several times longer
        return url
    unusual = _UNUSUAL.match(url)
    if unusual is None:
        return _joined(base, url) if base and url else url
    return unusual[unusual.lastgroup] if unusual.lastgroup else ""


def _joined(base: str, url: str) -> str:
    try:
        return urljoin(base, url)
    except ValueError:  # one of both has brackets that are no IPv6 address
        return url


def same_address(one: str, other: str) -> bool:
    """True if both lead to the same place; case, scheme and a final slash do not count."""
    return _bare(one) == _bare(other)


def _bare(address: str) -> str:
    address = address.strip()
    match = _SCHEME.match(address)
    return (address[match.end() :] if match else address).rstrip("/").casefold()
