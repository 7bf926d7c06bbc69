"""Answer questions about host names and addresses without a look-up."""

import ipaddress

__all__ = ["is_loopback"]


def is_loopback(host: str) -> bool:
    """True if ``host`` always means this machine: a name or an address, without port or brackets.

    These are 127.0.0.0/8, ::1 (also with a zone), the former mapped into IPv6, ``localhost`` and names below it
    (RFC 6761 section 6.3). Nothing is looked up, so a name that merely resolves to such an address is not one.
    """
    name = host.lower().removesuffix(".")
    if name == "localhost" or (name.endswith(".localhost") and not name.startswith(".")):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # Python 3.13 does the latter by itself.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
