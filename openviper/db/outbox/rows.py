"""The outbox's rows as values; needs no SQLAlchemy.

A row holds a message in a form that this package does not read: a head, parts, and the progress of the attempts.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["DELETE", "LEASE", "MARKING", "Answer", "ClaimedRow", "FailedRow", "NewRow", "OutboxStats"]


LEASE = 60.0
"""Seconds for which a process has a row unless it extends them; a loaded event loop pauses for several."""


MARKING = "m"
"""The first character of a token whose process marks a row when an attempt begins; others have hexadecimal digits."""


class NewRow(NamedTuple):
    """A message to store. ``due_at``: Unix seconds before which it may not be sent; None: it may be sent at once."""

    message_id: str
    mailer: str
    head: bytes
    parts: Sequence[bytes]
    progress: str
    due_at: float | None = None

    @property
    def size(self) -> int:
        """Count the bytes of head and parts."""
        return len(self.head) + sum(map(len, self.parts))

    def __repr__(self) -> str:
        return f"<NewRow {self.message_id}>"


class ClaimedRow(NamedTuple):
    """A row that this process has claimed.

    ``parts`` None: they are large and in a table of their own; read them when they are needed. ``repeated``: a process
    died, or was stopped for longer than its lease, while it had the row, perhaps after sending.
    """

    id: str
    message_id: str
    mailer: str
    head: bytes
    parts: bytes | None
    progress: str
    repeated: bool

    def __repr__(self) -> str:
        return f"<ClaimedRow {self.message_id}>"


class FailedRow(NamedTuple):
    """A row that was given up; ``failed_at`` is Unix seconds."""

    id: str
    message_id: str
    head: bytes
    progress: str
    reason: str
    failed_at: float
    mailer: str

    def __repr__(self) -> str:
        return f"<FailedRow {self.message_id}>"


class OutboxStats(NamedTuple):
    """The outbox's counts. ``in_hand``: rows that a process has; ``oldest``: seconds since the oldest was stored.

    ``overdue``: seconds since the first of the waiting ones was due; None if none waits.
    """

    waiting: int
    later: int
    in_hand: int
    failed: int
    oldest: float | None
    overdue: float | None = None


class Answer(NamedTuple):
    """How a row ends: deleted, or kept for another attempt, or kept as failed.

    ``retry_in``: seconds until the next attempt; None: there is none. ``keep``: seconds for which a failed row is kept.
    With neither it is deleted. ``head``: what is left of a message whose content is not kept; None: all of it.
    ``repeated``: nothing was attempted now, but a process before may have sent it.
    """

    progress: str = ""
    retry_in: float | None = None
    reason: str = ""
    keep: float | None = None
    head: bytes | None = None
    repeated: bool = False


DELETE = Answer()
"""Of a row whose message needs no further attempt."""
