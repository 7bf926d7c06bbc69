"""Keys to sign with, and the records that verifiers look up."""

from collections.abc import Callable

import dkim  # type: ignore[import-untyped]
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from openviper.core.email.message.dkim import load_key, public_record

__all__ = ["ED25519", "OTHER_RSA", "RSA", "is_valid", "pem"]


def pem(key: RSAPrivateKey | Ed25519PrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


RSA = pem(generate_private_key(65537, 2048))
OTHER_RSA = pem(generate_private_key(65537, 2048))
ED25519 = pem(Ed25519PrivateKey.generate())


def records(domain: str, keys: dict[str, str]) -> dict[str, str]:
    """The TXT records of the keys by selector."""
    found = {}
    for selector, key in keys.items():
        found[f"{selector}._domainkey.{domain}."] = public_record(load_key(selector, key.encode()))
    return found


def is_valid(content: bytes, domain: str, keys: dict[str, str]) -> list[bool]:
    """Whether each signature of ``content`` is valid, the first one first, as dkimpy says."""
    published = records(domain, keys)

    def look_up(name: bytes, timeout: int = 5) -> bytes:
        return published[name.decode()].encode()

    count = sum(name.lower() == b"dkim-signature" for name, _ in dkim.DKIM(content).headers)
    return [_is_valid(content, index, look_up) for index in range(count)]


def _is_valid(content: bytes, index: int, look_up: Callable[..., bytes]) -> bool:
    try:
        return bool(dkim.DKIM(content).verify(idx=index, dnsfunc=look_up))
    except dkim.ValidationError:
        return False
