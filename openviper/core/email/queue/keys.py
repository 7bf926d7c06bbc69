"""Keep idempotency keys: which send has which key, and what came of it. Where it is kept decides who shares it."""

import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from openviper.core.email.errors import DeliveryError, DuplicateKey, Refusal
from openviper.core.email.events import DeliveryMode, Receipt
from openviper.core.email.message.model import MUST_KEY, PreparedMessage
from openviper.text import shown

__all__ = [
    "KEY_LEASE",
    "KeyClaim",
    "KeyRecord",
    "KeyStore",
    "ProcessKeyStore",
    "answer_duplicate",
    "claim_for",
    "describe_duplicate",
    "encode_receipt",
    "process_keys",
    "read_key",
]

KEY_LEASE = 60.0
"""Seconds for which a claim holds without being renewed: more than a loaded event loop pauses."""

_SWEEP_EVERY = 60.0  # seconds


class KeyClaim(NamedTuple):
    """A claim of the key ``name`` by one send.

    ``fingerprint`` is of what the caller passed, ``owner`` tells this send from every other one, and ``ttl`` is how
    many seconds the key is kept once the send has succeeded. ``sending``: an attempt is being made, so that the message
    may have been sent if its process dies now; such a claim does not become free when its lease ends.
    """

    name: str
    fingerprint: str
    message_id: str
    owner: str
    ttl: float
    sending: bool = False


class KeyRecord(NamedTuple):
    """What is known of a key that another send has.

    ``state``: "in_flight" while that send goes on; "done" once the message is delivered, uncertain, or accepted by a
    store, with the receipt as JSON in ``result``; "abandoned" if its process ended during an attempt, so that nobody
    knows.
    """

    state: Literal["in_flight", "done", "abandoned"]
    fingerprint: str
    message_id: str
    result: str = ""


class KeyStore(Protocol):
    """Keeps keys. Every method may be called on any event loop, and raises QueueUnavailable if the store fails.

    A claim whose lease (``KEY_LEASE``) has ended is free, unless it is ``sending``.
    """

    @property
    def shared(self) -> bool:
        """True when all processes of the project use the same keys."""

    def describe(self) -> str:
        """Return where keys are kept, in a few words without secrets."""

    async def claim(self, claim: KeyClaim) -> KeyRecord | None:
        """Claim a key for ``KEY_LEASE`` seconds, in one step; return the record of the send that has it, or None."""

    async def renew(self, claims: Sequence[KeyClaim]) -> list[bool]:
        """Begin the leases anew, with each claim's ``sending``; return for each whether its owner still has it."""

    async def finish(self, claim: KeyClaim, result: str) -> None:
        """Record the receipt for ``claim.ttl`` seconds, unless another send has the key by now."""

    async def release(self, claim: KeyClaim) -> None:
        """Free the key, unless another send has it by now or it is done."""


def read_key(must: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return name and fingerprint of the key in a message's ``must``; None without one that can be used."""
    given = must.get(MUST_KEY)
    if not isinstance(given, Mapping):
        return None
    name, fingerprint = given.get("name"), given.get("fingerprint")
    return (name, fingerprint) if isinstance(name, str) and isinstance(fingerprint, str) else None


def claim_for(message: PreparedMessage, *, ttl: float, due_at: float | None = None) -> KeyClaim | None:
    """Return a new claim of the message's key, which no other send has; None without a key.

    A message that is sent at ``due_at`` (Unix seconds) keeps its key for ``ttl`` seconds after that.
    """
    key = read_key(message.must)
    if key is None:
        return None
    if due_at is not None:
        ttl += max(0.0, due_at - time.time())
    return KeyClaim(*key, message.message_id, uuid.uuid4().hex, ttl)


def encode_receipt(receipt: Receipt) -> str:
    """Return a receipt as JSON, of its error only the text."""
    values: dict[str, Any] = {"mode": receipt.mode}
    if receipt.mode is DeliveryMode.INLINE or receipt.error is not None:
        values |= {"accepted": receipt.accepted, "response": receipt.response, "suppressed": receipt.suppressed}
        values["refused"] = {who: (why.code, why.text, why.uncertain) for who, why in receipt.refused.items()}
        values["error"] = None if receipt.error is None else str(receipt.error)
    return json.dumps(values)


def answer_duplicate(claim: KeyClaim, record: KeyRecord) -> Receipt:
    """Return the receipt for a send whose key another one has: that one's own, marked as a duplicate.

    If nobody knows whether the other one was delivered, the receipt has an uncertain error that says so.

    Raises:
        DuplicateKey: the other one was given something else.
    """
    if record.fingerprint != claim.fingerprint:
        raise DuplicateKey(claim.name, record.message_id)
    if record.state == "in_flight":
        return Receipt(record.message_id, DeliveryMode.INLINE, duplicate=True, in_flight=True)
    if record.state == "abandoned":
        return _uncertain(claim, record, "the process that sent it ended meanwhile")
    try:
        values = json.loads(record.result)
        receipt = Receipt(
            record.message_id,
            DeliveryMode(values["mode"]),
            tuple(values.get("accepted", ())),
            {who: Refusal(*why) for who, why in values.get("refused", {}).items()},
            values.get("response", ""),
            suppressed=tuple(values.get("suppressed", ())),
            duplicate=True,
        )
        error = values.get("error")
    except (ValueError, TypeError, KeyError, AttributeError):  # whoever can write to the store can write anything
        return _uncertain(claim, record, "its receipt cannot be read")
    return receipt if error is None else _uncertain(claim, record, str(error))._replace(refused=receipt.refused)


def describe_duplicate(message_id: str, receipt: Receipt) -> str:
    """Return why the message is not sent, whose send got the ``receipt`` of an earlier one."""
    if receipt.message_id == message_id:
        return "the same message, with its Message-ID, was queued before"
    return f"message {receipt.message_id} has its key{' and has not ended yet' if receipt.in_flight else ''}"


def _uncertain(claim: KeyClaim, record: KeyRecord, reason: str) -> Receipt:
    error = DeliveryError(
        f"key: {shown(claim.name)} was used for message {record.message_id}, which may have been delivered ({reason}); "
        "look for it in the mail server's log, and give another key to send it anyway",
        uncertain=True,
    )
    return Receipt(record.message_id, DeliveryMode.INLINE, error=error, duplicate=True)


class _Entry(NamedTuple):
    """``until``: the end of the lease, or of the record once it is done (``time.monotonic()``)."""

    claim: KeyClaim
    until: float
    result: str | None = None

    def free(self, now: float) -> bool:
        """True when anybody may claim the key."""
        if self.result is None and self.claim.sending:
            return now > self.until + self.claim.ttl
        return now > self.until


class ProcessKeyStore:
    """Keeps keys in the memory of this process: other processes do not see them, and a new one begins without any."""

    shared = False

    def __init__(self, *, lease: float = KEY_LEASE) -> None:
        self._lease = lease
        self._lock = threading.Lock()  # event loops of several threads
        self._entries: dict[str, _Entry] = {}
        self._swept = time.monotonic()

    def describe(self) -> str:
        """Return that they are this process's own."""
        return "this process only"

    async def claim(self, claim: KeyClaim) -> KeyRecord | None:
        """Claim a key; see :class:`KeyStore`."""
        now = time.monotonic()
        with self._lock:
            self._sweep(now)
            entry = self._entries.get(claim.name)
            if entry is not None and not entry.free(now):
                return _record(entry, now)
            self._entries[claim.name] = _Entry(claim, now + self._lease)
        return None

    async def renew(self, claims: Sequence[KeyClaim]) -> list[bool]:
        """Begin leases anew; see :class:`KeyStore`."""
        until = time.monotonic() + self._lease
        with self._lock:
            owned = [self._owned(claim) for claim in claims]
            for claim, is_owned in zip(claims, owned, strict=True):
                if is_owned:
                    self._entries[claim.name] = _Entry(claim, until)
        return owned

    async def finish(self, claim: KeyClaim, result: str) -> None:
        """Record a receipt; see :class:`KeyStore`."""
        with self._lock:
            if claim.name not in self._entries or self._owned(claim):
                self._entries[claim.name] = _Entry(claim, time.monotonic() + claim.ttl, result)

    async def release(self, claim: KeyClaim) -> None:
        """Free a key; see :class:`KeyStore`."""
        with self._lock:
            if self._owned(claim):
                del self._entries[claim.name]

    def _owned(self, claim: KeyClaim) -> bool:
        entry = self._entries.get(claim.name)
        return entry is not None and entry.result is None and entry.claim.owner == claim.owner

    def _sweep(self, now: float) -> None:
        if now - self._swept > _SWEEP_EVERY:
            self._entries = {name: entry for name, entry in self._entries.items() if not entry.free(now)}
            self._swept = now


def _record(entry: _Entry, now: float) -> KeyRecord:
    claim = entry.claim
    if entry.result is not None:
        return KeyRecord("done", claim.fingerprint, claim.message_id, entry.result)
    return KeyRecord("in_flight" if now <= entry.until else "abandoned", claim.fingerprint, claim.message_id)


process_keys = ProcessKeyStore()
"""The keys of this process, for mail that no shared store knows."""
