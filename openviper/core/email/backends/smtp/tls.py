"""TLS contexts for clients: verified, at least 1.2, and each made once, since making one takes 20 ms."""

import asyncio
import ssl
from pathlib import Path

from openviper.exceptions import ImproperlyConfigured

__all__ = ["client_context"]

_kept: dict[Path | None, ssl.SSLContext] = {}


async def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """A context that trusts the system's certificates and those in ``ca_file``; made in a thread, read once.

    Raises:
        ImproperlyConfigured: ``ca_file`` cannot be read or holds no certificate.
    """
    if ca_file in _kept:
        return _kept[ca_file]
    made = await asyncio.to_thread(_make, ca_file)
    return _kept.setdefault(ca_file, made)


def _make(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ImproperlyConfigured(
                f'EMAIL["tls_ca_file"]: {str(ca_file)!r} cannot be used: {error}; give a PEM file with certificates'
            ) from error
    return context
