"""Sign messages as ``EMAIL["dkim"]`` says: with the keys of the sender's domain, as the last step before the server."""

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from openviper.conf.imports import require
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.message.dkim import DkimKey, DkimSigner, KeyRefused, load_key
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured
from openviper.loops import call_function
from openviper.text import error_origin, function_name, shown

__all__ = ["Signing", "load_keys", "nearest_domain"]

_FROM_ENVIRONMENT = "env:"
_T = TypeVar("_T")


class Signing:
    """The signer of each domain. A subdomain without keys of its own is signed for the domain above it.

    DMARC counts such a signature by default (RFC 7489 section 3.1.1).
    """

    def __init__(self, signers: Mapping[str, DkimSigner], unsigned_mailers: frozenset[str]) -> None:
        """``unsigned_mailers``: names of mailers whose mail is not signed."""
        self._signers = signers
        self._unsigned_mailers = unsigned_mailers

    @classmethod
    async def load(cls, settings: EmailSettings) -> Self | None:
        """Read the keys of the settings; None if nothing is signed.

        Raises:
            ImproperlyConfigured: a key cannot be read or used.
            MissingDependency: the extra ``dkim`` is not installed.
        """
        if not settings.dkim:
            return None
        off = frozenset(name for name, mailer in settings.mailers.items() if not mailer.dkim)
        keys = await load_keys(settings)
        return cls({domain: DkimSigner(domain, each, settings.dkim_unsigned) for domain, each in keys.items()}, off)

    async def sign(self, message: OutgoingMessage) -> OutgoingMessage:
        """Return ``message`` with its signatures; unchanged where the sender's domain has no key."""
        signer = nearest_domain(self._signers, message.prepared.sender.domain)
        if signer is None or message.mailer in self._unsigned_mailers:
            return message
        return await signer.sign(message)


def nearest_domain(of_domains: Mapping[str, _T], domain: str) -> _T | None:
    """Return the value of ``domain``, or else of the nearest domain above it that has one."""
    while domain:
        if (found := of_domains.get(domain)) is not None:
            return found
        domain = domain.partition(".")[2]
    return None


async def load_keys(settings: EmailSettings) -> dict[str, list[DkimKey]]:
    """Return the keys of each domain.

    Raises:
        ImproperlyConfigured: a key cannot be read or used, or a domain has two of one kind; names it by its selector.
        MissingDependency: the extra ``dkim`` is not installed.
    """
    require("cryptography", extra="dkim", purpose='EMAIL["dkim"]')
    found: dict[str, list[DkimKey]] = {}
    for domain, selectors in settings.dkim.items():
        for selector, given in selectors.items():
            place = f'EMAIL["dkim"]["{domain}"]["{selector}"]'
            pem = await _read(given, place)
            try:
                key = await asyncio.to_thread(load_key, selector, pem)
            except KeyRefused as refused:
                raise ImproperlyConfigured(f"{place}: the key {refused}") from None
            if any(other.algorithm == key.algorithm for other in found.setdefault(domain, [])):
                kind = "RSA" if key.algorithm == "rsa-sha256" else "Ed25519"
                raise ImproperlyConfigured(f"{place}: is the second {kind} key; a domain signs with one of each kind")
            found[domain].append(key)
    return found


async def _read(given: str | Path | bytes | Callable[[], Any], place: str) -> bytes:
    if callable(given):
        try:
            given = await call_function(given)
        except Exception as error:
            raise ImproperlyConfigured(f"{place}: {function_name(given)}() failed: {error_origin(error)}") from error
    if isinstance(given, str) and given.startswith(_FROM_ENVIRONMENT):
        variable = given.removeprefix(_FROM_ENVIRONMENT)
        if not (text := os.environ.get(variable)):
            raise ImproperlyConfigured(f"{place}: there is no environment variable {shown(variable)}; set it")
        given = text
    if isinstance(given, str) and "-----BEGIN" in given:
        return given.replace("\\n", "\n").encode()  # as variables without line breaks hold it
    if isinstance(given, bytes):
        return given
    if not isinstance(given, str | Path):
        raise ImproperlyConfigured(f"{place}: is a {type(given).__name__}; give a path, a key in PEM, or a function")
    try:
        return await asyncio.to_thread(Path(given).read_bytes)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "is no path"
        raise ImproperlyConfigured(f"{place}: {shown(str(given))}: {reason}") from None
