"""The commands of a transaction as bytes: the last border that no CR, LF or second parameter may pass."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from openviper.core.email.errors import InvalidAddress
from openviper.core.email.message import Envelope
from openviper.exceptions import ImproperlyConfigured
from openviper.text import CONTROLS, shown

__all__ = ["Capabilities", "check_host_name", "is_host_name", "mail_from", "needs_smtputf8", "rcpt_to"]

_FORBIDDEN = re.compile(f"[{CONTROLS} \xa0<>]")
_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9])?|\[[A-Za-z0-9:.]{1,60}\]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Extensions: RFC 2920 (pipelining), 3030 (chunking), 1870 (size), 6531 (smtputf8).

    ``max_size`` is the largest message in bytes that the server takes, None when it names no limit.
    """

    pipelining: bool = False
    chunking: bool = False
    size: bool = False
    max_size: int | None = None
    smtputf8: bool = False

    @classmethod
    def from_extensions(cls, extensions: Mapping[str, str]) -> Self:
        """``extensions``: keyword in lower case to parameters."""
        limit = extensions.get("size", "").strip()
        # A limit of 0 means that there is none to tell (RFC 1870 section 4).
        usable = limit.isascii() and limit.isdigit() and len(limit) < 20
        return cls(
            pipelining="pipelining" in extensions,
            chunking="chunking" in extensions,
            size="size" in extensions,
            max_size=(int(limit) or None) if usable else None,
            smtputf8="smtputf8" in extensions,
        )


def needs_smtputf8(envelope: Envelope) -> bool:
    """True when an address or the caller asks for RFC 6531."""
    return envelope.smtputf8 or not (envelope.sender.isascii() and all(map(str.isascii, envelope.recipients)))


def mail_from(envelope: Envelope, size: int, capabilities: Capabilities) -> bytes:
    """``MAIL FROM`` with the parameters that the server offers; ``size`` in bytes as transmitted (RFC 1870).

    Raises:
        InvalidAddress: the sender cannot stand in a command.
    """
    length = f" SIZE={size:d}" if capabilities.size else ""
    extension = " SMTPUTF8" if needs_smtputf8(envelope) else ""
    return f"{_mail(envelope.sender)}{length}{extension}\r\n".encode()


def rcpt_to(recipient: str) -> bytes:
    """``RCPT TO`` for one recipient.

    Raises:
        InvalidAddress: the recipient cannot stand in a command.
    """
    if not recipient:
        raise InvalidAddress("the envelope has an empty recipient", address=recipient)
    return f"RCPT TO:<{_checked(recipient)}>\r\n".encode()


def is_host_name(name: str) -> bool:
    """True for a host name or an address literal."""
    return _HOST_NAME.fullmatch(name) is not None


def check_host_name(name: str) -> str:
    """``name`` when it may stand in EHLO: a host name or an address literal.

    Raises:
        ImproperlyConfigured: it may not.
    """
    if not is_host_name(name):
        raise ImproperlyConfigured(f'EMAIL["local_hostname"]: {shown(name)} cannot be given in EHLO; use a host name')
    return name


@lru_cache(maxsize=256)
def _mail(sender: str) -> str:
    return f"MAIL FROM:<{_checked(sender)}>"


def _checked(address: str) -> str:
    if _FORBIDDEN.search(address) or len(address) > 1000:
        raise InvalidAddress(f"{shown(address)} cannot stand in an SMTP command", address=address)
    return address
