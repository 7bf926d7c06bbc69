"""Addresses: one strict grammar, one value that both the header and the envelope use."""

from dataclasses import dataclass

__all__ = ["Address"]


@dataclass(frozen=True, slots=True)
class Address:
    """A checked address. ``domain`` is in its ASCII form (IDNA 2008 A-labels); ``local_part`` is as written."""

    display_name: str
    local_part: str
    domain: str

    @property
    def addr_spec(self) -> str:
        """``local@domain`` as the envelope and the header carry it."""
        return f"{self.local_part}@{self.domain}"
