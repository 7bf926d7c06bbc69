"""Describe as values what is looked for in a store, what was found, and what was erased."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from openviper.core.email.message.storage import DamagedPayload, load_object
from openviper.network import mail_key

__all__ = ["Erased", "FoundMail", "MailState", "Wanted", "read_recipients", "read_ref", "read_values"]

MailState = Literal[
    "waiting",  # for a worker or a relay
    "later",  # for its time, or the next attempt
    "sending",  # a process has it in hand
    "delivered",  # or given up and not kept; remembered, so that it is not queued twice
    "failed",
]


class FoundMail(NamedTuple):
    """A message in a store. Times are Unix seconds.

    ``since``: when its first attempt could begin; ``due``: when the next one can, None where the store does not say;
    ``recipients``: those who are not known to have it; empty where that is not kept.
    """

    message_id: str
    state: MailState
    mailer: str
    attempts: int = 0
    since: float | None = None
    due: float | None = None
    recipients: tuple[str, ...] = ()
    reason: str = ""
    ref: str | None = None


class Wanted(NamedTuple):
    """What is looked for: exactly one of a Message-ID, a reference and an address (as ``mail_key`` returns it)."""

    message_id: str | None = None
    ref: str | None = None
    address: str | None = None

    def fits(self, message_id: str, head: bytes | None) -> bool:
        """True if a message with this Message-ID and stored head is looked for."""
        if self.message_id is not None:
            return message_id == self.message_id
        values = read_values(head)
        if self.ref is not None:
            return bool(read_ref(values) == self.ref)
        return any(mail_key(each) == self.address for each in read_recipients(values))


class Erased(NamedTuple):
    """What was done to erase an address.

    ``removed`` messages were for it alone, or lacked by it alone; ``changed`` ones are for others as well and stay for
    them. ``busy`` ones are in the hands of a process, and unchanged; ``named`` ones are for others, and name the
    address as sender or reply address. ``keys``: idempotency keys that held it.
    """

    removed: int = 0
    changed: int = 0
    busy: int = 0
    named: int = 0
    keys: int = 0

    def plus(self, other: "Erased") -> "Erased":
        """Return the sums."""
        return Erased(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def read_values(head: bytes | None) -> dict[str, Any]:
    """Return a stored head's values; none where it is missing or cannot be read."""
    try:
        return {} if head is None else load_object(head)
    except DamagedPayload:
        return {}


def read_recipients(values: Mapping[str, Any]) -> list[str]:
    """Return the addresses of a head's to, cc and bcc; none where they cannot be read."""
    try:
        return [f"{each[1]}@{each[2]}" for name in ("to", "cc", "bcc") for each in values.get(name, ())]
    except (TypeError, LookupError):
        return []


def read_ref(values: Mapping[str, Any]) -> str | None:
    """Return the application's own reference in a head; None without one."""
    extra = values.get("extra")
    ref = extra.get("ref") if isinstance(extra, Mapping) else None
    return ref if isinstance(ref, str) else None
