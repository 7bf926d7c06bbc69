"""Turn the targets of links into addresses that the reader of a text can use."""

import re

__all__ = ["address_of", "same_address"]

# Targets that lead nowhere from a text, and those of which a reader types or dials a part.
_UNUSUAL = re.compile(
    r"#|tel:$|(?:javascript|vbscript|data|cid|about|blob|file):|mailto:(?P<mailbox>[^?]*)|tel:(?P<number>.+)",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"(?:https?|mailto|tel):(?://)?", re.IGNORECASE)


def address_of(url: str) -> str:
    """Return ``url`` as a reader could type or dial it; empty if it leads nowhere from a text."""
    url = "%20".join(url.split())
    if url.startswith("http"):  # the usual case; the pattern takes several times longer to tell
        return url
    unusual = _UNUSUAL.match(url)
    if unusual is None:
        return url
    if unusual.lastgroup is None:
        return ""
    return unusual[unusual.lastgroup] or url


def same_address(one: str, other: str) -> bool:
    """True if both lead to the same place; case, scheme and a final slash do not count."""
    return _bare(one) == _bare(other)


def _bare(address: str) -> str:
    address = address.strip()
    match = _SCHEME.match(address)
    return (address[match.end() :] if match else address).rstrip("/").casefold()
