"""Queued mail as jobs: the form in which a job is stored, claimed and failed, and what every job store can do."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from openviper.core.email.errors import EmailError
from openviper.core.email.message.storage import (
    VERSION,
    DamagedPayload,
    NewerPayload,
    Payload,
    check_supported,
    load_object,
    stored_version,
)
from openviper.core.email.queue.found import Erased, FoundMail, Wanted
from openviper.core.email.queue.keys import KeyClaim, KeyRecord
from openviper.core.email.queue.names import QUEUE, mailer_of
from openviper.text import counted

__all__ = [
    "ACTOR",
    "PROTOCOL",
    "Accepted",
    "AddResult",
    "ClaimedJob",
    "FailedJob",
    "JobStore",
    "MailReader",
    "NewJob",
    "Progress",
    "QueueStats",
    "RejectedTicket",
    "job_key",
    "message_id_of",
]

# Precedes, in version 1 of the stored form, the reason for a recipient who may have the message: workers that know no
# such recipients keep them among the refused, and do not send to them by themselves. No reply begins like this.
_PERHAPS = "perhaps delivered: "

# Beyond, arithmetic fails or an age never ends: JSON has whole numbers of any length, Python's has Infinity and NaN.
_LATEST = 1e12  # Unix seconds
_MOST_ATTEMPTS = 10**9

ACTOR = "deliver_email"

PROTOCOL = "protocol"
"""The key of a progress's ``extra`` for the SMTP dialogue of a message that was given up."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A message's attempts so far, and its recipients by what came of them. Times are Unix seconds.

    ``since``: when the first attempt could begin; ``retry_max_age`` counts from it. ``pending``: the recipients of the
    next attempt; None: all. ``refused``: those refused for good, with the reply. ``unconfirmed``: those who may have
    the message, with the reason; they get no further attempt until somebody decides (``on_uncertain``). ``uncertain``:
    after an attempt nobody knew whether the server had taken the message for all of its recipients.

    ``extra`` and ``must`` are those of the stored form: keys that may be ignored, and keys that may not. ``unread``:
    the stored values of a later version. They stay as they are, except for ``since``, ``attempts`` and ``expires_at``,
    which every version has.
    """

    since: float
    attempts: int = 0
    pending: tuple[str, ...] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    expires_at: float | None = None
    uncertain: bool = False
    unconfirmed: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    must: Mapping[str, Any] = field(default_factory=dict)
    unread: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """Return the stored form: version 1 where that can hold it all, so that older workers can read it."""
        values: dict[str, Any] = {"since": self.since, "attempts": self.attempts, "expires_at": self.expires_at}
        if self.unread is not None:
            return json.dumps({**self.unread, **values})
        values |= {"left": self.pending, "uncertain": self.uncertain}
        if self.extra or self.must:
            values |= {"version": 2, "refused": dict(self.refused), "held": dict(self.unconfirmed)}
            values |= {"extra": dict(self.extra), "must": dict(self.must)}
        else:
            perhaps = {address: f"{_PERHAPS}{reason}" for address, reason in self.unconfirmed.items()}
            values["refused"] = {**self.refused, **perhaps}
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Progress":
        """Read the stored form; of a later version's only the fields that every version has.

        Raises:
            DamagedPayload: it cannot be read.
        """
        try:
            values = load_object(text)
            version = stored_version(values) if "version" in values else 1
            if version > VERSION:
                common = values["since"], values["attempts"], values["expires_at"]
                progress = cls(common[0], common[1], expires_at=common[2], unread=values)
            else:
                progress = cls(**(_fields_of_version_1(values) if version == 1 else _fields_of_version_2(values)))
            _check(progress)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DamagedPayload("its progress cannot be read") from None
        return progress

    def check_supported(self) -> None:
        """Check that this version can go on from here.

        Raises:
            NewerPayload: only a later version can.
        """
        if self.unread is not None:
            raise NewerPayload(
                f"the version of its progress is {self.unread['version']}, and this program reads versions up to "
                f"{VERSION}"
            )
        check_supported(self.must)

    @property
    def missing(self) -> tuple[str, ...] | None:
        """Return the recipients who are not known to have the message; None: all."""
        return tuple(dict.fromkeys((*(self.pending or ()), *self.refused, *self.unconfirmed))) or None

    def restart(self, *, now: float) -> "Progress":
        """Return the progress before a first attempt, for the recipients who are not known to have the message."""
        return Progress(since=now, pending=self.missing, extra=self.extra, must=self.must, unread=self.unread)

    def __repr__(self) -> str:
        return f"<Progress after {counted(self.attempts, 'attempt')}>"


def _fields_of_version_1(values: dict[str, Any]) -> dict[str, Any]:
    if values.keys() - {"since", "attempts", "left", "refused", "expires_at", "uncertain"}:
        raise KeyError
    refused = values.get("refused", {})
    perhaps = {who: why.removeprefix(_PERHAPS) for who, why in refused.items() if why.startswith(_PERHAPS)}
    fields = {name: value for name, value in values.items() if name != "left"}
    fields |= {"pending": _pending(values), "unconfirmed": perhaps}
    fields["refused"] = {who: why for who, why in refused.items() if who not in perhaps}
    return fields


def _fields_of_version_2(values: dict[str, Any]) -> dict[str, Any]:
    names = {"since", "attempts", "refused", "expires_at", "uncertain", "extra", "must"}
    if values.keys() != names | {"version", "left", "held"}:
        raise KeyError
    return {name: values[name] for name in names} | {"pending": _pending(values), "unconfirmed": values["held"]}


def _pending(values: Mapping[str, Any]) -> tuple[Any, ...] | None:
    pending = values["left"]
    if not isinstance(pending, list | None):
        raise TypeError
    return None if pending is None else tuple(pending)


def _check(progress: Any) -> None:
    """Raise TypeError for values with which no attempt could be made or counted."""
    moments = (progress.since, progress.since if progress.expires_at is None else progress.expires_at)
    if not all(isinstance(moment, int | float) and abs(moment) <= _LATEST for moment in moments):
        raise TypeError
    if not isinstance(progress.attempts, int) or not 0 <= progress.attempts <= _MOST_ATTEMPTS:
        raise TypeError
    mappings = (progress.refused, progress.unconfirmed)
    if not all(isinstance(mapping, dict) for mapping in (*mappings, progress.extra, progress.must)):
        raise TypeError
    texts = [text for mapping in mappings for pair in mapping.items() for text in pair]
    if not all(isinstance(text, str) for text in (*(progress.pending or ()), *texts)):
        raise TypeError


class RejectedTicket(Exception):
    """No worker can process this ticket, now or later; its Dramatiq message becomes a dead letter. Logged already."""


class NewJob(NamedTuple):
    """A message to queue. ``due_at``: Unix seconds, None at once; ``keep``: seconds for which its parts are needed.

    ``claim``: of its idempotency key, for stores that keep keys, too; others leave it to the caller.
    """

    key: str
    message_id: str
    payload: Payload
    progress: Progress
    keep: float
    due_at: float | None = None
    queue: str = QUEUE
    claim: KeyClaim | None = None


Accepted = bool | KeyRecord
"""True: the broker has accepted it; False: it had accepted this very message before; a record: of the send that has its
idempotency key."""

AddResult = Accepted | EmailError
"""What became of a job; an error says why it was not accepted."""


class ClaimedJob(NamedTuple):
    """A queued message that a worker attempts to deliver.

    ``repeated``: another worker died while it had claimed it, perhaps after sending. ``problem``: why ``payload`` or
    ``progress`` cannot be read; ``payload`` may then be the head alone. ``token`` belongs to the store.
    """

    key: str
    message_id: str
    progress: Progress
    payload: Payload | None
    repeated: bool = False
    problem: DamagedPayload | NewerPayload | None = None
    token: Any = None
    queue: str = QUEUE

    @property
    def sensitive(self) -> bool:
        """True if its content must not be kept once it is given up; False also where that cannot be read."""
        return self.payload is not None and self.payload.sensitive

    def __repr__(self) -> str:
        return f"<ClaimedJob {self.message_id}>"


class FailedJob(NamedTuple):
    """A message that was given up. ``failed_at`` is Unix seconds; ``payload`` is None where it cannot be read.

    ``queue``: the one that it came from, and goes to when it is retried.
    """

    message_id: str
    failed_at: float
    reason: str
    uncertain: bool
    progress: Progress
    payload: Payload | None = None
    queue: str = QUEUE

    @property
    def mailer(self) -> str:
        """Return the mailer whose queue it came from."""
        return mailer_of(self.queue)

    @property
    def head(self) -> bytes | None:
        """Return the message's stored head; None where it cannot be read."""
        return None if self.payload is None else self.payload.head

    @property
    def protocol(self) -> str | None:
        """Return the SMTP dialogue of its last transaction, if ``EMAIL["protocol_log"]`` was on."""
        text = self.progress.extra.get(PROTOCOL)
        return text if isinstance(text, str) else None

    @property
    def content_dropped(self) -> bool:
        """True if its content was not kept, because it was sent with ``sensitive=True``: it cannot be retried."""
        return self.payload is not None and self.payload.content_dropped


class QueueStats(NamedTuple):
    """A queue's counts. None: the broker cannot tell. ``oldest``: seconds since the oldest message was accepted.

    ``waiting_for``: seconds for which mail has waited that could be sent; scheduled mail and mail between two attempts
    does not wait.
    """

    consumers: int
    waiting: int
    later: int | None
    failed: int
    oldest: float | None
    waiting_for: float | None = None


class MailReader(Protocol):
    """Reads stored mail, and changes what failed, for commands and pages.

    All methods block, and raise QueueUnavailable where the store cannot be asked.
    """

    def consumers(self, queue: str = QUEUE) -> int:
        """Count the workers that consume ``queue``."""

    def queues(self) -> tuple[str, ...]:
        """Return the queues of the mailers that the settings name, and others with mail as far as the broker knows."""

    def stats(self, queue: str | None = None) -> QueueStats:
        """Count what ``queue`` holds; None: what all hold, and the consumers of the default mailer's."""

    def failed(self, limit: int) -> list[FailedJob]:
        """Return failed messages, oldest first, at most ``limit``."""

    def find(self, wanted: Wanted) -> list[FoundMail]:
        """Return stored messages that are looked for, as far as the store can tell."""

    def erase(self, address: str) -> Erased:
        """Erase an address (as ``mail_key`` returns it) from stored messages, as far as the store can."""

    def retry_failed(
        self,
        message_ids: frozenset[str] | None,
        on_each: Callable[[], object] = ...,
        *,
        on_dropped: Callable[[], object] = ...,
    ) -> int:
        """Queue failed messages again (None: all); return how many.

        ``on_each`` is called for each failed one, ``on_dropped`` for each of these that stays because its content was
        dropped.
        """

    def purge_failed(self, message_ids: frozenset[str] | None, on_each: Callable[[], object] = ...) -> int:
        """Drop failed messages (None: all); return how many. ``on_each`` is called for each failed one."""


class JobStore(MailReader, Protocol):
    """Keeps queued mail. All methods block, and raise QueueUnavailable where the broker cannot be asked.

    The methods that record an attempt's result (``finish``, ``retry``, ``fail``) wait for the broker instead, and raise
    RejectedTicket where that is no use.
    """

    def probe(self, *, draining: bool = False) -> None:
        """Ask the broker for what a send needs, or with ``draining`` only for what a worker does; at most a second."""

    def add(self, job: NewJob, *, deadline: float) -> Accepted:
        """Return once the broker has accepted it; after ``deadline`` (``time.monotonic()``) it may no longer do so.

        False: the broker had accepted this very message before, and has not queued it again; nor has it queued one
        whose key another send has, and returns that send's record.

        Raises:
            InvalidMessage: the broker has another message with this Message-ID for the same recipients.
        """

    def add_many(self, jobs: Iterable[NewJob], *, deadline: float) -> Iterator[tuple[int, AddResult]]:
        """Add jobs in few round trips; yield each one's position and result as the broker answers, in any order.

        ``jobs`` is read as needed, so that large ones need not be in memory at once.
        """

    def claim(self, *ticket: Any) -> ClaimedJob | None:
        """Claim the job of a Dramatiq message's arguments; None when there is nothing to do.

        Raises:
            RejectedTicket: they are not a ticket, or the broker refuses for good to hand the job out.
        """

    def finish(self, job: ClaimedJob, *, remember: float) -> None:
        """Record the delivery, and remember it for ``remember`` seconds."""

    def retry(self, job: ClaimedJob, progress: Progress, *, delay: float) -> None:
        """Schedule another attempt after ``delay`` seconds."""

    def fail(self, job: ClaimedJob, progress: Progress, reason: str, *, keep: float, uncertain: bool) -> None:
        """Give it up, and keep it as failed for ``keep`` seconds (0: not); of a sensitive one only the head."""

    def close(self) -> None:
        """Close the connections."""


def job_key(message_id: str, recipients: tuple[str, ...]) -> str:
    """Return the key of the job that carries a message to these recipients."""
    digest = hashlib.sha256("\n".join(sorted(recipients)).encode()).hexdigest()[:12]
    return f"{message_id.strip('<>')}/{digest}"


def message_id_of(key: str) -> str:
    """Return the Message-ID in a ``job_key``, for a job that lacks it."""
    return f"<{key.rpartition('/')[0]}>"
