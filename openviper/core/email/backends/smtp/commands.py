"""Encode SMTP commands, with a final check against CR, LF and injected parameters."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from openviper.core.email.errors import InvalidAddress
from openviper.core.email.message import DsnRequest, Envelope
from openviper.exceptions import ImproperlyConfigured
from openviper.text import CONTROLS, shown

__all__ = [
    "Capabilities",
    "check_host_name",
    "envelope_commands",
    "is_host_name",
    "mail_from",
    "needs_smtputf8",
    "rcpt_to",
]

_FORBIDDEN = re.compile(f"[{CONTROLS} \xa0<>]")
_HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9])?|\[[A-Za-z0-9:.]{1,60}\]", re.ASCII)

_CRLF = b"\r\n"

# RFC 3461 section 4: xchar; RFC 6533 section 3: QCHAR.
_NOT_XCHAR = re.compile(r"[^!-*,-<>-~]")
_NOT_QCHAR = re.compile(r"[^!-*,-<>-\[\]-~]")
_LONGEST_ENVELOPE_ID = 100  # characters, once encoded (RFC 3461 section 4.4)
_LONGEST_ORIGINAL_RECIPIENT = 500  # characters (RFC 3461 section 4.2)

# RFC 9422 section 3: from 1 to 999,999, separated by spaces.
_LIMIT = re.compile(r"(?<!\S)(MAILMAX|RCPTMAX)=([1-9][0-9]{0,5})(?!\S)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Extensions that the server offers in its reply to EHLO: RFC 2920, 3030, 1870, 6531, 9422 and 3461.

    ``max_size`` is the largest message in bytes that the server accepts, ``max_messages`` how many transactions it
    accepts on a connection (MAILMAX), ``max_recipients`` how many recipients in each (RCPTMAX); None: no limit is
    announced.
    """

    pipelining: bool = False
    chunking: bool = False
    size: bool = False
    max_size: int | None = None
    smtputf8: bool = False
    max_messages: int | None = None
    max_recipients: int | None = None
    dsn: bool = False

    @classmethod
    def from_extensions(cls, extensions: Mapping[str, str]) -> Self:
        """Parse ``extensions``, which maps keywords in lower case to their parameters."""
        limit = extensions.get("size", "").strip()
        # 0 means no fixed limit (RFC 1870 section 4).
        usable = limit.isascii() and limit.isdigit() and len(limit) < 20
        limits = _parse_limits(extensions.get("limits", ""))
        return cls(
            pipelining="pipelining" in extensions,
            chunking="chunking" in extensions,
            size="size" in extensions,
            max_size=(int(limit) or None) if usable else None,
            smtputf8="smtputf8" in extensions,
            max_messages=limits.get("MAILMAX"),
            max_recipients=limits.get("RCPTMAX"),
            dsn="dsn" in extensions,
        )


def _parse_limits(parameters: str) -> dict[str, int]:
    """Parse the parameters of LIMITS; malformed ones are ignored, and of repeated ones the lowest holds."""
    limits: dict[str, int] = {}
    for name, value in _LIMIT.findall(parameters):
        limits[name.upper()] = min(int(value), limits.get(name.upper(), int(value)))
    return limits


def needs_smtputf8(envelope: Envelope) -> bool:
    """True if an address is not ASCII, or the caller asks for SMTPUTF8 (RFC 6531)."""
    return envelope.smtputf8 or not (envelope.sender.isascii() and all(map(str.isascii, envelope.recipients)))


def envelope_commands(envelope: Envelope, size: int, capabilities: Capabilities) -> list[bytes]:
    """Encode ``MAIL FROM`` and a ``RCPT TO`` for each recipient, with the parameters that the server supports.

    ``size`` is in bytes as sent.

    Raises:
        InvalidAddress: an address is empty, or has a character that is not allowed in a command.
    """
    if envelope.dsn is None or not capabilities.dsn:
        return [mail_from(envelope, size, capabilities), *map(rcpt_to, envelope.recipients)]
    mail = mail_from(envelope, size, capabilities).removesuffix(_CRLF) + _mail_parameters(envelope.dsn)
    notify = f" NOTIFY={','.join(envelope.dsn.conditions).upper()}"
    commands = [(rcpt_to(each).removesuffix(_CRLF), notify + _original_recipient(each)) for each in envelope.recipients]
    return [mail + _CRLF, *[command + parameters.encode() + _CRLF for command, parameters in commands]]


def mail_from(envelope: Envelope, size: int, capabilities: Capabilities) -> bytes:
    """Encode ``MAIL FROM`` with the parameters that the server supports; ``size`` in bytes as sent (RFC 1870).

    Raises:
        InvalidAddress: the sender has a character that is not allowed in a command.
    """
    size_parameter = f" SIZE={size:d}" if capabilities.size else ""
    smtputf8 = " SMTPUTF8" if needs_smtputf8(envelope) else ""
    return f"{_mail_from(envelope.sender)}{size_parameter}{smtputf8}\r\n".encode()


def rcpt_to(recipient: str) -> bytes:
    """Encode ``RCPT TO`` for ``recipient``.

    Raises:
        InvalidAddress: the recipient is empty, or has a character that is not allowed in a command.
    """
    if not recipient:
        raise InvalidAddress("the envelope has an empty recipient", address=recipient)
    return f"RCPT TO:<{_checked_path(recipient)}>\r\n".encode()


def _mail_parameters(dsn: DsnRequest) -> bytes:
    """Return RET and ENVID (RFC 3461 sections 4.3 and 4.4); an identifier that is too long is left out."""
    encoded = _xtext(dsn.envelope_id)
    usable = dsn.envelope_id.isascii() and len(encoded) <= _LONGEST_ENVELOPE_ID
    parameter = f" ENVID={encoded}" if usable else ""
    return f" RET={'FULL' if dsn.full else 'HDRS'}{parameter}".encode()


def _original_recipient(recipient: str) -> str:
    """Return ORCPT (RFC 3461 section 4.2, RFC 6533 section 3); one that is too long is left out."""
    if recipient.isascii():
        parameter = f"rfc822;{_xtext(recipient)}"
    else:
        parameter = "utf-8;" + _NOT_QCHAR.sub(lambda match: f"\\x{{{ord(match[0]):X}}}", recipient)
    return f" ORCPT={parameter}" if len(parameter) <= _LONGEST_ORIGINAL_RECIPIENT else ""


def _xtext(text: str) -> str:
    """Encode ASCII as xtext (RFC 3461 section 4)."""
    return _NOT_XCHAR.sub(lambda match: f"+{ord(match[0]):02X}", text)


def is_host_name(name: str) -> bool:
    """True if ``name`` is a host name or an address literal."""
    return _HOST_NAME.fullmatch(name) is not None


def check_host_name(name: str) -> str:
    """Return ``name`` if EHLO allows it: a host name or an address literal.

    Raises:
        ImproperlyConfigured: EHLO does not allow it.
    """
    if not is_host_name(name):
        raise ImproperlyConfigured(f'EMAIL["local_hostname"]: {shown(name)} is not valid in EHLO; use a host name')
    return name


@lru_cache(maxsize=256)
def _mail_from(sender: str) -> str:
    return f"MAIL FROM:<{_checked_path(sender)}>"


def _checked_path(address: str) -> str:
    if _FORBIDDEN.search(address) or len(address) > 1000:
        raise InvalidAddress(f"{shown(address)} is not allowed in an SMTP command", address=address)
    return address
