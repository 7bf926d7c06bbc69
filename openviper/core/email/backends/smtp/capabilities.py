"""What a server offers in its answer to EHLO, as far as the transfer uses it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

__all__ = ["Capabilities"]


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
