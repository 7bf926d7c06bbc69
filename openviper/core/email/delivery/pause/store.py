"""Keep the pause flag somewhere that every process reads."""

from typing import NamedTuple, Protocol

from openviper.exceptions import PicklableError

__all__ = ["FlagUnreadable", "PauseStore", "StoredFlag"]


class StoredFlag(NamedTuple):
    """The bytes that are stored (None: none), and the store's time in Unix seconds."""

    data: bytes | None
    now: float


class FlagUnreadable(PicklableError):
    """A flag is there and cannot be read; ``now`` is the store's time. Counts as a pause of all mail."""

    def __init__(self, reason: str, now: float) -> None:
        super().__init__(reason)
        self.now = now


class PauseStore(Protocol):
    """Keeps the pause flag, a few hundred bytes that every process reads a few times a second. All methods block.

    ``identity`` is equal for stores that keep the same flag.
    """

    @property
    def identity(self) -> object:
        """Return a hashable value."""

    @property
    def address(self) -> str:
        """Return where the flag is kept, for people, without secrets."""

    def open(self) -> None:
        """Prepare for reading, as far as that cannot be done for each reading.

        Raises:
            ImproperlyConfigured: a setting cannot be used.
        """

    def read(self) -> StoredFlag:
        """Return what is stored.

        Raises:
            FlagUnreadable: something is there, but it cannot be read.
            QueueUnavailable: the store does not answer.
        """

    def write(self, data: bytes, *, expected: bytes | None) -> bool:
        """Store ``data``; False if what is stored is not ``expected`` any more. None: replace it, whatever it is.

        Raises:
            QueueUnavailable: the store does not answer, or refuses it.
        """

    def close(self) -> None:
        """Close connections; a later call opens them again."""
