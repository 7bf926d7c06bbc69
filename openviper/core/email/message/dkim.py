"""Sign messages with DKIM (RFC 6376), by RSA (RFC 8301) and Ed25519 (RFC 8463) keys."""

import asyncio
import re
import time
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

from openviper.core.email.message.model import CleanChunks, Content, OutgoingMessage
from openviper.text import shown

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

__all__ = [
    "SIGNED_HEADERS",
    "DkimKey",
    "DkimSigner",
    "KeyRefused",
    "generate_key",
    "load_key",
    "public_record",
    "record_name",
    "zone_lines",
]

SIGNED_HEADERS = (
    "from",
    "to",
    "cc",
    "subject",
    "date",
    "reply-to",
    "message-id",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "list-unsubscribe",
    "list-unsubscribe-post",
)
"""Header fields to sign, each once more than it occurs, so that none can be added (RFC 6376 section 8.15)."""

# An RSA signature takes about a millisecond, in which the interpreter's lock is free; an Ed25519 one far less.
_BYTES_ON_LOOP = 64 * 1024
_LEAST_RSA_BITS = 1024  # RFC 8301 section 3.2
_LONGEST_STRING = 255  # octets of a string in a TXT record (RFC 1035 section 3.3)
_WHITESPACE = re.compile(rb"[ \t]+")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:((?:[^\r\n]|\r\n[ \t])*)\r\n")
_LINE = 74


class KeyRefused(ValueError):
    """A key cannot be used; the text says why, without the key."""


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True)
class DkimKey:
    """A private key under its selector; ``algorithm`` is ``rsa-sha256`` or ``ed25519-sha256``."""

    selector: str
    algorithm: str
    key: "RSAPrivateKey | Ed25519PrivateKey"

    def __repr__(self) -> str:
        return f"DkimKey({shown(self.selector)}, {shown(self.algorithm)})"

    def sign(self, data: bytes) -> bytes:
        """Return the signature over ``data``, which Ed25519 signs by its hash (RFC 8463 section 3)."""
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

        if isinstance(self.key, RSAPrivateKey):
            from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
            from cryptography.hazmat.primitives.hashes import SHA256

            return self.key.sign(data, PKCS1v15(), SHA256())
        return self.key.sign(sha256(data).digest())


def load_key(selector: str, pem: bytes) -> DkimKey:
    """Return the private key in ``pem`` (PKCS #8 or PKCS #1).

    Raises:
        KeyRefused: it is no key in PEM without a password, too short, or neither RSA nor Ed25519.
        ImportError: cryptography is not installed.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # whose texts may quote the key
        raise KeyRefused("is not a private key in PEM, or needs a password") from None
    if isinstance(key, Ed25519PrivateKey):
        return DkimKey(selector, "ed25519-sha256", key)
    if not isinstance(key, RSAPrivateKey):
        raise KeyRefused("is neither an RSA nor an Ed25519 key")
    if key.key_size < _LEAST_RSA_BITS:
        raise KeyRefused(
            f"has {key.key_size} bits, and verifiers ignore keys with less than {_LEAST_RSA_BITS} (RFC 8301)"
        )
    return DkimKey(selector, "rsa-sha256", key)


def generate_key(algorithm: str, *, bits: int = 2048) -> bytes:
    """Return a new private key in PEM (PKCS #8, no password); ``bits`` is the length of an RSA key.

    ``algorithm`` is ``rsa`` or ``ed25519``.

    Raises:
        ImportError: cryptography is not installed.
    """
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key: RSAPrivateKey | Ed25519PrivateKey
    key = rsa.generate_private_key(65537, bits) if algorithm == "rsa" else ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def record_name(selector: str, domain: str) -> str:
    """Return the DNS name of a key's TXT record, without the final dot (RFC 6376 section 3.6.2.1)."""
    return f"{selector}._domainkey.{domain}"


def zone_lines(name: str, record: str) -> str:
    """Return the TXT record as a zone file has it, in strings of at most 255 octets (RFC 1035 section 3.3.14)."""
    parts = [f'"{record[begin : begin + _LONGEST_STRING]}"' for begin in range(0, len(record), _LONGEST_STRING)]
    strings = "\n    ".join(parts)
    return f"{name}. IN TXT (\n    {strings}\n)"


def public_record(key: DkimKey) -> str:
    """Return the text of the TXT record at ``SELECTOR._domainkey.DOMAIN`` (RFC 6376 section 3.6.1)."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = key.key.public_key()
    if key.algorithm == "rsa-sha256":
        encoded = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"v=DKIM1; k=rsa; p={b64encode(encoded).decode()}"
    encoded = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"v=DKIM1; k=ed25519; p={b64encode(encoded).decode()}"


class DkimSigner:
    """Signs messages of one domain with each of its keys.

    ``unsigned`` are names of header fields that a server on the way rewrites. Headers are canonicalised "relaxed",
    bodies "simple" (RFC 6376 section 3.4).
    """

    def __init__(self, domain: str, keys: Sequence[DkimKey], unsigned: Iterable[str] = ()) -> None:
        left_out = {name.lower() for name in unsigned}
        self.domain = domain
        # The first signature is the one that a verifier without Ed25519 can check.
        self.keys = tuple(sorted(keys, key=lambda key: key.algorithm != "rsa-sha256"))
        self._names = [name.encode() for name in SIGNED_HEADERS if name not in left_out]
        self._slow = any(key.algorithm == "rsa-sha256" for key in keys)

    async def sign(self, message: OutgoingMessage) -> OutgoingMessage:
        """Return ``message`` with a signature of each key in front; in a thread where it would hold the event loop."""
        if self._slow or message.size > _BYTES_ON_LOOP:
            return await asyncio.to_thread(self.sign_now, message)
        return self.sign_now(message)

    def sign_now(self, message: OutgoingMessage) -> OutgoingMessage:
        """Return ``message`` with the signatures in front; see :meth:`sign`."""
        header, body_hash = _read(message.content)
        fields = [(field[1].lower(), field[2]) for field in _FIELD.finditer(header)]
        body = b64encode(body_hash)
        now = int(time.time())
        signatures = b"".join([self._signature(key, fields, body, now) for key in self.keys])
        return message._replace(content=_with_first(signatures, message.content), size=message.size + len(signatures))

    def _signature(self, key: DkimKey, fields: Sequence[tuple[bytes, bytes]], body: bytes, now: int) -> bytes:
        names: list[bytes] = []
        signed: list[bytes] = []
        for name in self._names:
            values = [value for field, value in fields if field == name]
            names += [name] * (len(values) + 1)
            signed += [_relaxed(name, value) for value in reversed(values)]  # from the last one up (section 5.4.2)
        tags = (
            f" v=1; a={key.algorithm}; c=relaxed/simple; d={self.domain}; s={key.selector};\r\n t={now}; h="
        ).encode()
        value = tags + _folded(names) + b";\r\n bh=" + body + b";\r\n b="
        signed.append(_relaxed(b"dkim-signature", value).removesuffix(b"\r\n"))
        text = b64encode(key.sign(b"".join(signed)))
        lines = [text[begin : begin + _LINE - 2] for begin in range(0, len(text), _LINE - 2)]
        return b"DKIM-Signature:" + value + b"\r\n ".join(lines) + b"\r\n"


def _folded(names: Sequence[bytes]) -> bytes:
    lines = [b""]
    for number, name in enumerate(names):
        piece = name if number == len(names) - 1 else name + b":"
        if len(lines[-1]) + len(piece) > _LINE - 20:
            lines.append(b"")
        lines[-1] += piece
    return b"\r\n  ".join(lines)


def _relaxed(name: bytes, value: bytes) -> bytes:
    """Canonicalise a header field (RFC 6376 section 3.4.2)."""
    unfolded = value.replace(b"\r\n", b"")
    return name + b":" + _WHITESPACE.sub(b" ", unfolded).strip(b" ") + b"\r\n"


def _read(content: Iterable[bytes]) -> tuple[bytes, bytes]:
    """Return the header's bytes and the hash of the body, read chunk by chunk.

    The body ends with one line end, whatever empty lines it ends with (RFC 6376 section 3.4.3).
    """
    chunks = iter(content)
    first = next(chunks)
    end = first.index(b"\r\n\r\n") + 2
    digest = sha256()
    waiting = _feed(digest, b"", first[end + 2 :])
    for chunk in chunks:
        waiting = _feed(digest, waiting, chunk)
    digest.update(b"\r\n")
    return first[:end], digest.digest()


def _feed(digest: _Hash, waiting: bytes, chunk: bytes) -> bytes:
    """Hash ``waiting`` and ``chunk`` but for line ends at their end, which may be the last; return those."""
    if waiting:
        chunk = waiting + chunk
    length = len(chunk)
    while length and chunk[length - 1] in b"\r\n":
        length -= 1
    digest.update(chunk[:length] if length < len(chunk) else chunk)
    return chunk[length:]


def _with_first(lines: bytes, content: Sequence[bytes] | Content) -> Sequence[bytes] | Content:
    if isinstance(content, Content):
        return content.with_header_lines(lines)
    kind = CleanChunks if isinstance(content, CleanChunks) else tuple
    return kind((lines + content[0], *content[1:]))
