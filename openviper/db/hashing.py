"""Let the layer above hash addresses, since nothing here knows the settings of mail, which have the key."""

from collections.abc import Callable

__all__ = ["hash_with", "keyed_hash"]

_functions: list[Callable[[str], str | None]] = []


def hash_with(function: Callable[[str], str | None]) -> None:
    """Have ``function`` return the keyed hash of an address, or None where there is no key."""
    _functions[:] = [function]


def keyed_hash(address: str) -> str | None:
    """Return the keyed hash of an address; None without a key, and where no mail component is imported."""
    return _functions[0](address) if _functions else None
