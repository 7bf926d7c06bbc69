"""Certificates for test servers on loopback: good ones, and every bad kind that a client must refuse."""

import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Literal

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

__all__ = ["CertificateKind", "ca_file", "self_signed_file", "server_context", "write_server_certificate"]

CertificateKind = Literal["trusted", "untrusted", "self-signed", "wrong-host", "expired"]

_folder = tempfile.TemporaryDirectory(prefix="certificates-")


@cache
def _authority(name: str) -> trustme.CA:
    return trustme.CA(organization_name=f"{name} authority of the tests")


@cache
def ca_file() -> Path:
    """The PEM file of the authority that signs the certificates of kind "trusted", "wrong-host" and "expired"."""
    path = Path(_folder.name) / "ca.pem"
    _authority("trusted").cert_pem.write_to_path(str(path))
    return path


@cache
def server_context(kind: CertificateKind = "trusted") -> ssl.SSLContext:
    """A server's context; all kinds but "wrong-host" are made out to localhost, 127.0.0.1 and ::1."""
    names = ("elsewhere.example",) if kind == "wrong-host" else ("localhost", "127.0.0.1", "::1")
    if kind == "self-signed":
        return _self_signed(names)
    now = datetime.now(UTC)
    begin, end = (now - timedelta(days=9), now - timedelta(days=2)) if kind == "expired" else (None, None)
    authority = _authority("unknown" if kind == "untrusted" else "trusted")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, not_before=begin, not_after=end).configure_cert(context)
    return context


def self_signed_file() -> Path:
    """The PEM file of the "self-signed" one, which is valid for nine days; there once a server has it."""
    return Path(_folder.name) / "self-signed.pem"


def _self_signed(names: tuple[str, ...]) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(names[0])]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = Path(_folder.name) / "self-signed-with-key.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
    )
    self_signed_file().write_bytes(certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def write_server_certificate(path: Path) -> None:
    """Write a certificate of kind "trusted" with its key to a PEM file, for servers in other processes."""
    _authority("trusted").issue_cert("localhost", "127.0.0.1", "::1").private_key_and_cert_chain_pem.write_to_path(
        str(path)
    )
