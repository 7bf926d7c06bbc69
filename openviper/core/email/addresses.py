"""Parse addresses by one strict grammar, into one value for both the header and the envelope.

Accepted are ``local@domain``, ``<local@domain>``, ``Name <local@domain>`` and ``"Name, quoted" <local@domain>``, pairs
``(name, address)`` with any name, and :class:`Address`. What RFC 5322 has besides (comments, groups, routes, folding)
is refused: it carries nothing that a sender needs, and parsers that disagree about it have sent mail to the wrong
domain.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from functools import lru_cache

import idna

from openviper.core.email.errors import InvalidAddress, InvalidMessage
from openviper.encoded_words import MalformedWord, decode_words
from openviper.text import control_character, shown

__all__ = ["Address", "AddressLike", "Addresses", "parse_address", "parse_addresses", "read_address", "refuse_message"]

# Far above any real address or name; keeps the work small whatever is given.
_MAX_LENGTH = 1000
_NO_AT = "has no '@'"
# RFC 5321 sections 4.5.3.1.1 and 4.5.3.1.3: a path of 256 octets includes its angle brackets.
_MAX_LOCAL_OCTETS = 64
_MAX_OCTETS = 254
_MAX_LABEL = 63
_CACHED = 1024

_ATEXT = "A-Za-z0-9!#$%&'*+/=?^_`{|}~-"
_DOT_ATOM = re.compile(rf"[{_ATEXT}]+(?:\.[{_ATEXT}]+)*")
# Inside quotes: printable ASCII but space, quote, backslash, @, < and >, which other parsers have taken for delimiters.
_QUOTED_LOCAL = re.compile(r'"[!#-;=?A-\[\]-~]+"')
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")
_SPECIALS = re.compile(r'[()<>\[\]:;@\\,"]')
_SPECIALS_OR_SPACE = re.compile(r'[()<>\[\]:;@\\," ]')
_UNQUOTE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Address:
    """An email address, made with :meth:`of` or :func:`parse_address`; one made directly is checked when used.

    ``domain`` is in its ASCII form (IDNA 2008 A-labels); ``local_part`` is as written, with its quotes if it needs
    them.
    """

    display_name: str
    local_part: str
    domain: str

    @classmethod
    def of(cls, name: str, address: str) -> "Address":
        """Return an address with ``name``, any text without control characters, taken literally; "" for no name.

        Raises:
            InvalidAddress: ``address`` is not one bare address (``ana@example.com``), or ``name`` cannot be sent.
        """
        return read_address((name, address), field="Address.of")

    @property
    def addr_spec(self) -> str:
        """Return ``local@domain`` as the envelope and the header carry it."""
        return f"{self.local_part}@{self.domain}"

    @property
    def key(self) -> tuple[str, str]:
        """Return a key that is equal for the same mailbox: only the domain's case is ignored (RFC 5321 section 2.4)."""
        return self.local_part, self.domain.lower()

    @property
    def needs_smtputf8(self) -> bool:
        """True when only a server with SMTPUTF8 (RFC 6531) can take this address."""
        return not self.local_part.isascii()

    def __str__(self) -> str:
        if not self.display_name:
            return self.addr_spec
        name = self.display_name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{name}" <{self.addr_spec}>'


AddressLike = str | tuple[str, str] | Address
"""One address, as callers give it: text, a pair ``(name, address)``, or an :class:`Address`."""

Addresses = str | Address | Iterable[AddressLike]
"""One address or several, as callers give them. A pair stands in a list, where two texts are two addresses."""


class _Refused(Exception):
    """The value is not an address; becomes an InvalidAddress that names the field."""


class _Several(_Refused):
    """The value may be several addresses; ``name_remedy`` is for what may be a name with a comma."""

    def __init__(self, problem: str, *, name_remedy: bool = False) -> None:
        super().__init__(problem)
        self._name_remedy = name_remedy

    def text(self, *, in_list: bool) -> str:
        """Return the problem with its remedy; ``in_list``: the field takes a list of addresses."""
        if in_list:
            return f"{self}; pass a list{', or put the name in double quotes' if self._name_remedy else ''}"
        return f"{self}; this takes one address{': put its name in double quotes' if self._name_remedy else ''}"


def parse_address(text: str, *, field: str = "address") -> Address:
    """Parse one address given as text; ``field`` names the argument or setting in the error.

    Encoded words (RFC 2047) in a name without quotes are decoded, such as those that ``email.utils.formataddr`` makes.

    Raises:
        InvalidAddress: ``text`` is not exactly one address of the accepted forms.
    """
    if not isinstance(text, str):
        raise InvalidAddress(
            f"{field}: an address must be a str, not {type(text).__name__}", address=shown(text)
        ) from None
    return read_address(text, field=field)


def read_address(value: AddressLike, *, field: str, in_list: bool = False) -> Address:
    """Return the checked address of a text, a pair or an :class:`Address`.

    ``in_list``: the field takes a list as well, which is then the remedy for several addresses in one string.

    Raises:
        InvalidAddress: ``value`` is not exactly one address; the text begins with ``field``.
    """
    try:
        if isinstance(value, str):
            # The cache holds only short values: its size in bytes is bounded with its length.
            if len(value) > _MAX_LENGTH:
                raise _Refused(f"is longer than {_MAX_LENGTH} characters")
            return _parse(value)
        if isinstance(value, Address):
            return _of_parts(value.display_name, value.local_part, value.domain)
        if isinstance(value, tuple):
            return _of_pair(value)
    except _Several as several:
        raise _invalid(value, several.text(in_list=in_list), field) from None
    except _Refused as refused:
        reason, remedy = str(refused), ""
        if reason == _NO_AT and field == "recipients" and isinstance(value, str) and " " in value:
            # A sentence: the subject or text of a call whose arguments are in another order.
            remedy = "; recipients come first: send_email(recipients, subject, text)"
        raise _invalid(value, reason, field, remedy) from None
    raise InvalidAddress(
        f"{field}: an address must be a str, a pair (name, address) or an Address, not {type(value).__name__}",
        address=shown(value),
        reason="is of another type",
    )


def parse_addresses(value: Addresses | None, *, field: str) -> tuple[Address, ...]:
    """Parse one address or a list of them; None is an empty list. Nothing is deduplicated.

    Raises:
        InvalidAddress: as of :func:`read_address`.
        InvalidMessage: it is a bare pair, which is the caller's mistake and not that of an address.
    """
    if value is None or value == ():
        return ()
    if isinstance(value, str | Address):
        return (read_address(value, field=field, in_list=True),)
    if not _is_list(value):
        raise _no_addresses(value, field)
    try:
        return tuple([read_address(item, field=field, in_list=True) for item in value])
    except InvalidAddress as error:
        if _is_bare_pair(value, error):
            reason = "is a bare pair; write [(name, address)]"
            if isinstance(value, tuple):  # no form or JSON has one
                raise InvalidMessage(f"{field}: {shown(value)} {reason}") from None
            raise _invalid(value, reason, field) from None
        if isinstance(value, tuple) and error.reason.startswith(_NO_AT) and error.address == value[0]:
            remedy = "; a recipient with a name is written [(name, address)]"
            raise _invalid(value[0], error.reason, field, remedy) from None
        raise


def refuse_message(value: object, *, field: str) -> None:
    """Refuse an object of another mail library, or any other that holds no addresses, in the place of addresses.

    Raises:
        InvalidAddress: it is one.
    """
    if value is not None and not isinstance(value, Address) and not _is_list(value):
        raise _no_addresses(value, field)


def _is_list(value: object) -> bool:
    # A message of the standard library can be iterated, over the names of its headers.
    return isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | Mapping | Message)


def _no_addresses(value: object, field: str) -> InvalidAddress:
    remedy = ""
    if isinstance(value, Mapping):
        remedy = "; give [(name, address)], or the address alone"
    elif field == "recipients" and (isinstance(value, Message) or hasattr(value, "subject")):
        remedy = "; give its values by name: send_email(recipients=..., subject=..., text=...)"
        if isinstance(value, Message):
            remedy += ", or attach it: attachments=[message]"
    # Not the value: it may be a whole message.
    kind = type(value).__name__
    return InvalidAddress(
        f"{field}: must be an address or a list of addresses, not {kind}{remedy}",
        address=f"<{kind}>" if isinstance(value, Message) else shown(value),
    )


def _invalid(value: object, reason: str, field: str, remedy: str = "") -> InvalidAddress:
    """Return the error; ``remedy`` is for the programmer, so that it is no part of the error's own ``reason``."""
    given = value if isinstance(value, str) else shown(value)
    return InvalidAddress(f"{field}: {shown(value)} {reason}{remedy}", address=given, reason=reason)


def _is_bare_pair(value: object, error: InvalidAddress) -> bool:
    """Return True where a name and an address were taken for two addresses, and the name was refused."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    name, address = value
    return isinstance(name, str) and name == error.address and isinstance(address, str) and "@" in address


def _of_pair(pair: tuple[object, ...]) -> Address:
    if len(pair) != 2:
        raise _Refused("is a tuple, but not a pair (name, address)")
    name, text = pair
    if not isinstance(name, str) or not isinstance(text, str):
        raise _Refused('is a pair (name, address) with a part that is not a str; write "" for no name')
    if len(text) > _MAX_LENGTH:
        raise _Refused(f"has an address of more than {_MAX_LENGTH} characters")
    if "@" in name and "@" not in text:
        raise _Refused("has no '@' in its second part; a pair is (name, address)")
    address = _parse(text)
    if address.display_name:
        raise _Refused("has a second name in its address; give the name once, as (name, address)")
    return Address(_checked_name(name), address.local_part, address.domain)


def _of_parts(name: object, local_part: object, domain: object) -> Address:
    """Check an address that was not parsed here."""
    if not (isinstance(name, str) and isinstance(local_part, str) and isinstance(domain, str)):
        raise _Refused("has a part that is not a str")
    if len(local_part) + len(domain) > _MAX_LENGTH:
        raise _Refused(f"is longer than {_MAX_LENGTH} characters")
    spec = _parse(f"{local_part}@{domain}")
    # What parsing takes off is no part of either.
    if spec.display_name or local_part[:1] in ("<", " ") or domain[-1:] in (">", " "):
        raise _Refused("has parts that do not form an address; make it with Address.of(name, address)")
    return Address(_checked_name(name), spec.local_part, spec.domain)


def _checked_name(name: str) -> str:
    if len(name) > _MAX_LENGTH:
        raise _Refused(f"has a name of more than {_MAX_LENGTH} characters")
    character = control_character(name)
    if character is not None:
        raise _Refused(f"contains {character} in its name, which no header may contain")
    return name.strip(" ")


@lru_cache(maxsize=_CACHED)
def _parse(value: str) -> Address:
    character = control_character(value)
    if character is not None:
        raise _Refused(f"contains {character}, which no address may contain")
    text = value.strip(" ")
    if not text:
        raise _Refused("is empty")
    display_name, spec = _split_name(text) if text[-1] == ">" else ("", text)
    local_part, domain = _split_spec(spec)
    address = Address(display_name, local_part, _checked_domain(domain))
    if len(address.addr_spec.encode()) > _MAX_OCTETS:
        raise _Refused(f"has more than {_MAX_OCTETS} octets (RFC 5321 section 4.5.3.1.3)")
    return address


def _split_name(text: str) -> tuple[str, str]:
    """Split ``Name <spec>`` into the name and the spec."""
    if text[0] == '"':
        end = _closing_quote(text)
        rest = text[end + 1 :].lstrip(" ")
        if rest[:1] != "<":
            raise _Refused("has text between the quoted name and '<'; put the whole name in one pair of quotes")
        return _UNQUOTE.sub(r"\1", text[1:end]).strip(" "), _one_spec(rest[1:-1])
    name, opening, spec = text[:-1].partition("<")
    if not opening:
        raise _Refused("has '>' without '<'")
    name = name.strip(" ")
    special = _SPECIALS.search(name)
    if special is None:
        return _decoded_name(name) if "=?" in name else name, _one_spec(spec)
    if "," in name or ";" in name:
        raise _Several("contains several addresses or an unquoted name", name_remedy=True)
    raise _Refused(f"has {shown(special.group())} in its name; put the name in double quotes")


def _decoded_name(name: str) -> str:
    """Decode the encoded words of a name without quotes (in quotes they are literal, RFC 2047 section 5)."""
    remedy = "give the name as plain text: it is encoded when sent"
    try:
        decoded = decode_words(name)
    except MalformedWord as error:
        raise _Refused(f"has an encoded word in its name that {error}; {remedy}") from None
    character = control_character(decoded)
    if character is not None:
        raise _Refused(f"has an encoded word in its name that hides {character}; {remedy}")
    return decoded.strip(" ")


def _one_spec(spec: str) -> str:
    if ">" in spec:
        raise _Several("contains more than one '<...>'")
    return spec


def _closing_quote(text: str) -> int:
    index = 1
    while index < len(text):
        if text[index] == '"':
            return index
        index += 2 if text[index] == "\\" else 1
    raise _Refused("has an opening quote without a closing one")


def _split_spec(spec: str) -> tuple[str, str]:
    """Split ``local@domain``; the local part is checked, the domain is not."""
    if spec[:1] == '"':
        end = spec.find('"', 1)
        local_part, at, domain = spec[: end + 1], spec[end + 1 : end + 2], spec[end + 2 :]
        if end < 0 or at != "@":
            raise _Refused("has a quoted local part that is not followed by '@'")
        return _checked_quoted_local(local_part), domain
    local_part, at, domain = spec.partition("@")
    if not at:
        raise _Refused(_NO_AT)
    if not local_part:
        raise _Refused("has nothing before '@' (routes are not supported)")
    return _checked_local(local_part), domain


def _checked_quoted_local(quoted: str) -> str:
    if not _QUOTED_LOCAL.fullmatch(quoted):
        raise _Refused(
            "has a quoted local part with a space, '@', '<', '>', a quote, a backslash or a character beyond ASCII"
        )
    # Quotes that are not needed do not make another mailbox (RFC 5321 section 4.1.2).
    return _checked_local(quoted[1:-1]) if _DOT_ATOM.fullmatch(quoted, 1, len(quoted) - 1) else _bounded(quoted)


def _checked_local(local_part: str) -> str:
    if not local_part.isascii():
        local_part = _international_local(local_part)
        skeleton = "".join(["a" if character > "\x7f" else character for character in local_part])
    else:
        skeleton = local_part
    if not _DOT_ATOM.fullmatch(skeleton):
        special = _SPECIALS_OR_SPACE.search(local_part)
        if special is None:
            raise _Refused("has a dot at the start or end of its local part, or two in a row")
        if special.group() in ",;":
            raise _Several("contains several addresses")
        raise _Refused(f"has {shown(special.group())} in its local part")
    if "=?" in local_part and "?=" in local_part:
        raise _Refused("has an encoded word in its local part")
    return _bounded(local_part)


def _bounded(local_part: str) -> str:
    if len(local_part.encode()) > _MAX_LOCAL_OCTETS:
        raise _Refused(f"has a local part of more than {_MAX_LOCAL_OCTETS} octets (RFC 5321 section 4.5.3.1.1)")
    return local_part


def _international_local(local_part: str) -> str:
    """Check a local part of RFC 6531 and return it in NFC, as RFC 6532 section 3.1 asks.

    Such a local part stands in headers as it is, so invisible characters, or those that some software turns into
    a delimiter (the full-width commercial at), are refused.
    """
    for character in local_part:
        # Format, private and unassigned characters, and separators.
        if character > "\x7f" and unicodedata.category(character)[0] in "CZ":
            raise _Refused(f"has the invisible character U+{ord(character):04X} in its local part")
        if character > "\x7f" and _SPECIALS_OR_SPACE.search(unicodedata.normalize("NFKC", character)):
            raise _Refused(f"has U+{ord(character):04X} in its local part, which may be taken for a delimiter")
    return unicodedata.normalize("NFC", local_part)


@lru_cache(maxsize=_CACHED)
def _checked_domain(domain: str) -> str:
    """Return ``domain`` in ASCII: a literal in its canonical form, or a host name whose labels are checked."""
    if domain[:1] == "[":
        return _checked_literal(domain)
    special = _SPECIALS_OR_SPACE.search(domain)
    if special is not None:
        if special.group() in ",;":
            raise _Several("contains several addresses")
        raise _Refused(f"has {shown(special.group())} in its domain")
    if len(domain) > _MAX_OCTETS:
        raise _Refused("has a domain that is too long")
    if not domain.isascii() or "xn--" in domain.lower():
        try:
            domain = idna.encode(domain, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError) as error:
            raise _Refused("has a domain that is not valid (IDNA 2008)") from error
    labels = domain.split(".")
    for label in labels:
        if len(label) > _MAX_LABEL or not _LABEL.fullmatch(label):
            raise _Refused("has a domain with a label that is empty, too long or not made of letters, digits and '-'")
    if labels[-1].isdecimal():
        raise _Refused("has a number as its top-level domain; write an IP address as [192.0.2.1]")
    return domain


def _checked_literal(domain: str) -> str:
    """Check ``[192.0.2.1]`` and ``[IPv6:2001:db8::1]`` (RFC 5321 section 4.1.3)."""
    inside = domain[1:-1]
    try:
        if domain[-1] == "]" and inside[:5].lower() == "ipv6:" and "%" not in inside:
            return f"[IPv6:{ipaddress.IPv6Address(inside[5:])}]"
        if domain[-1] == "]":
            return f"[{ipaddress.IPv4Address(inside)}]"
    except ValueError:
        pass
    raise _Refused("has an address literal that is not [192.0.2.1] or [IPv6:2001:db8::1]")
