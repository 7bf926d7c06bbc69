"""Answer questions about host names and addresses without a look-up."""

import hmac
import ipaddress

import idna

__all__ = ["is_loopback", "mail_hash", "mail_key"]


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


def mail_key(address: str) -> str:
    """Return a mail address in the one form in which addresses are compared: lower case, the domain in ASCII (IDNA).

    A domain that cannot be encoded stays as it is.
    """
    address = address.strip().lower()
    local_part, at, domain = address.rpartition("@")
    if not domain.isascii():
        try:
            domain = idna.encode(domain, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            return address
    return f"{local_part}{at}{domain}"


def mail_hash(address: str, key: str) -> str:
    """Return the keyed hash of an address (HMAC-SHA256, 64 hexadecimal digits): equal where ``mail_key`` is.

    Without the key nobody can try addresses on it.
    """
    return hmac.digest(key.encode(), mail_key(address).encode(errors="surrogatepass"), "sha256").hex()
