"""Decide which hosts may be fetched from: public addresses, looked up once, in one spelling.

The guard against server-side request forgery (OWASP SSRF Prevention Cheat Sheet). The ranges are those of the IANA
special-purpose registries (RFC 6890) and of the forms that carry an IPv4 address inside an IPv6 one.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable, Collection, Sequence

from openviper.tcp import resolve_host

__all__ = ["HostRefused", "Resolver", "check_host", "is_public", "public_addresses", "resolve"]

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port to the addresses to try, in order."""

_IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_RESERVED_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT (RFC 6598)
        "127.0.0.0/8",
        "168.63.129.16/32",  # the host agent of a large cloud, reachable only from inside it
        "169.254.0.0/16",  # link-local, and the metadata services of clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the broadcast address
    )
)

# Only 2000::/3 is given out as global unicast; what lies outside is local, multicast, mapped, or not assigned.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_RESERVED_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, among them Teredo, ORCHID and benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3ffe::/16",  # the former 6bone
        "3fff::/20",  # documentation (RFC 9637)
    )
)
# A network with DNS64 gives every IPv4-only host such an address (RFC 6147), so the IPv4 address inside decides.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)  # first half of an interface identifier that ends in an IPv4 address (RFC 5214)

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


class HostRefused(Exception):
    """The host must not be connected to; the text is the reason, to be put after the host's name."""


def is_public(address: str | _IPAddress) -> bool:
    """True for a unicast address of the public internet; False also for what is not an address.

    Stricter than ``ipaddress.is_global``, which treats multicast, site-local and NAT64 addresses as global.
    """
    if isinstance(address, str):
        try:
            address = ipaddress.ip_address(address)
        except ValueError:
            return False
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _RESERVED_V4)
    if address.scope_id is not None:
        return False
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address not in _GLOBAL_V6 or any(address in network for network in _RESERVED_V6):
        return False
    return int(address) >> 32 & 0xFFFFFFFF not in _ISATAP


def check_host(host: str) -> str:
    """Return the one spelling of ``host``: a lower-case name without the final dot, or a canonical address.

    Raises:
        HostRefused: not a host name, or an IPv4 address in a form other than four decimal numbers. Decimal, octal, hex
            and short forms are read differently by different programs.
    """
    name = host.lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise HostRefused("is not a valid host name")
    if _NUMBER.fullmatch(labels[-1]):
        raise HostRefused("is a number but not an IPv4 address of four decimal parts")
    return name


async def resolve(host: str, port: int) -> list[str]:
    """Ask the system's resolver in a thread; returns each address once, in its order."""
    return list(dict.fromkeys(address.text for address in await resolve_host(host, port)))


async def public_addresses(
    host: str, port: int, *, allowed_hosts: Collection[str] = (), resolver: Resolver = resolve
) -> list[str]:
    """Return the addresses of ``host`` (as :func:`check_host` spells it) to connect to; asks the resolver once.

    ``allowed_hosts`` are names, addresses, or either with ``:port``, that may have any address.

    Raises:
        HostRefused: the name is not known, or one of its addresses is not public.
    """
    try:
        ipaddress.ip_address(host)
        addresses: Sequence[str] = [host]
    except ValueError:
        try:
            addresses = await resolver(host, port)
        except (OSError, UnicodeError) as error:
            raise HostRefused("cannot be resolved") from error
    if not addresses:
        raise HostRefused("has no address")
    if not _is_allowed(host, port, allowed_hosts) and not all(is_public(address) for address in addresses):
        raise HostRefused("""has an address that is not public; EMAIL["attachment_hosts"] can allow an internal host""")
    return list(addresses)


def _is_allowed(host: str, port: int, allowed_hosts: Collection[str]) -> bool:
    bracketed = f"[{host}]" if ":" in host else host
    allowed = {entry.lower().removesuffix(".") for entry in allowed_hosts}
    return not allowed.isdisjoint({host, bracketed, f"{bracketed}:{port}"})
