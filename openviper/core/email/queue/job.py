"""A message on its way through the broker: what is handed in, what a worker holds, and how far it has come."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from openviper.core.email.message.storage import Payload, UnknownPayload

__all__ = [
    "ACTOR",
    "QUEUE",
    "ClaimedJob",
    "FailedJob",
    "JobStore",
    "NewJob",
    "Progress",
    "QueueStats",
    "job_key",
    "message_id_of",
]

# In the stored form, in front of the reply of a recipient who may have the message: a worker of a version that knows
# no ``held`` keeps such a recipient among the refused, and sends to none of them by itself. No reply begins like this.
_HELD = "perhaps delivered: "

QUEUE = "emails"
ACTOR = "deliver_email"


@dataclass(frozen=True, slots=True)
class Progress:
    """Attempts so far, and for whom. Times are Unix seconds.

    ``since``: when the first attempt could begin; ``retry_max_age`` counts from it. ``left``: the recipients of the
    next attempt; None: all. ``refused``: those refused for good, with the reply. ``held``: those who may have the
    message and get no further attempt until somebody decides (``on_uncertain``), with the reason. ``uncertain``: an
    attempt ended without anybody knowing whether the server took the message for all of its recipients.
    """

    since: float
    attempts: int = 0
    left: tuple[str, ...] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    expires_at: float | None = None
    uncertain: bool = False
    held: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """As ``from_json`` reads it."""
        held = {address: f"{_HELD}{reason}" for address, reason in self.held.items()}
        return json.dumps(
            {
                "since": self.since,
                "attempts": self.attempts,
                "left": self.left,
                "refused": {**self.refused, **held},
                "expires_at": self.expires_at,
                "uncertain": self.uncertain,
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "Progress":
        """The progress of such text.

        Raises:
            UnknownPayload: it is none.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            if "held" in values:
                raise TypeError
            left = values.pop("left")
            progress = cls(left=None if left is None else tuple(left), **values)
            _check(progress)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UnknownPayload("its progress cannot be read") from None
        held = {who: why.removeprefix(_HELD) for who, why in progress.refused.items() if why.startswith(_HELD)}
        refused = {who: why for who, why in progress.refused.items() if who not in held}
        return replace(progress, refused=refused, held=held)

    @property
    def missing(self) -> tuple[str, ...] | None:
        """Return the recipients who are not known to have the message; None: all."""
        return tuple(dict.fromkeys((*(self.left or ()), *self.refused, *self.held))) or None

    def restart(self, *, now: float) -> "Progress":
        """Begin anew, for the recipients who are not known to have the message."""
        return Progress(since=now, left=self.missing)

    def __repr__(self) -> str:
        return f"<Progress after {self.attempts} attempts>"


def _check(progress: Any) -> None:
    """Raises TypeError for values with which no attempt could be made or counted."""
    moments = (progress.since, progress.since if progress.expires_at is None else progress.expires_at)
    if not all(isinstance(moment, int | float) for moment in moments):
        raise TypeError
    if not isinstance(progress.attempts, int) or not isinstance(progress.refused, dict):
        raise TypeError
    if not all(isinstance(one, str) for one in (*(progress.left or ()), *progress.refused, *progress.refused.values())):
        raise TypeError


class NewJob(NamedTuple):
    """A message to be queued. ``due_at``: Unix seconds, None at once; ``keep``: seconds for which parts are needed."""

    key: str
    message_id: str
    payload: Payload
    progress: Progress
    keep: float
    due_at: float | None = None


class ClaimedJob(NamedTuple):
    """A message in a worker's hands. ``repeated``: a worker had it before and died with it, perhaps after sending.

    ``damage`` says why there is no payload; ``token`` belongs to the store.
    """

    key: str
    message_id: str
    progress: Progress
    payload: Payload | None
    repeated: bool = False
    damage: str = ""
    token: Any = None

    def __repr__(self) -> str:
        return f"<ClaimedJob {self.message_id}>"


class FailedJob(NamedTuple):
    """A message that was given up. ``failed_at`` is Unix seconds; ``payload`` is None where it cannot be read."""

    message_id: str
    failed_at: float
    reason: str
    uncertain: bool
    progress: Progress
    payload: Payload | None = None


class QueueStats(NamedTuple):
    """How the queue stands. None: the broker cannot tell. ``oldest``: seconds since the oldest was accepted."""

    consumers: int
    waiting: int
    later: int | None
    failed: int
    oldest: float | None


class JobStore(Protocol):
    """Where queued mail lies. All methods block, and raise the client library's errors as :class:`OSError` kinds."""

    def probe(self) -> None:
        """Ask the broker whether it answers; at most a second."""

    def enqueue(self, job: NewJob, *, deadline: float) -> None:
        """Return when the broker has it. ``deadline``: ``time.monotonic()`` after which it may not take it any more."""

    def claim(self, *ticket: Any) -> ClaimedJob | None:
        """What a worker was given; None when there is nothing to do with it."""

    def sent(self, job: ClaimedJob, *, remember: float) -> None:
        """It was delivered; ``remember`` that for so many seconds."""

    def retry(self, job: ClaimedJob, progress: Progress, *, delay: float) -> None:
        """Another attempt after ``delay`` seconds."""

    def fail(self, job: ClaimedJob, progress: Progress, reason: str, *, keep: float, uncertain: bool) -> None:
        """No further attempt; keep it for ``keep`` seconds (0: not)."""

    def close(self) -> None:
        """Let go of the connections."""

    def consumers(self) -> int:
        """How many workers consume the queue."""

    def stats(self) -> QueueStats:
        """How the queue stands."""

    def failed(self, limit: int) -> list[FailedJob]:
        """Failed messages, oldest first, at most ``limit``."""

    def retry_failed(self, message_ids: frozenset[str] | None, looked_at: Callable[[], object] = ...) -> int:
        """Queue failed messages again (None: all); returns how many. ``looked_at`` is called for each failed one."""

    def purge_failed(self, message_ids: frozenset[str] | None, looked_at: Callable[[], object] = ...) -> int:
        """Drop failed messages (None: all); returns how many. ``looked_at`` is called for each failed one."""


def job_key(message_id: str, recipients: tuple[str, ...]) -> str:
    """What tells one queued message from another: the Message-ID, and for whom it is."""
    digest = hashlib.sha256("\n".join(sorted(recipients)).encode()).hexdigest()[:12]
    return f"{message_id.strip('<>')}/{digest}"


def message_id_of(key: str) -> str:
    """The Message-ID of which ``job_key`` made ``key``, for a job that lacks it."""
    return f"<{key.rpartition('/')[0]}>"
