"""Find stored mail by id, reference or address, and remove an address from it: what every job store has in common."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from openviper.core.email.message.storage import DamagedPayload, load_object
from openviper.core.email.queue.found import FoundMail, MailState, read_recipients, read_ref, read_values
from openviper.core.email.queue.job import FailedJob, Progress
from openviper.network import mail_key

__all__ = [
    "ERASED",
    "concern",
    "describe_mail",
    "erase_from_head",
    "erase_from_progress",
    "erase_from_receipt",
    "erase_from_text",
    "found_failed",
]

ERASED = "(erased)"
"""What stands for an address in a text from which it was removed."""

Concern = Literal["alone", "shared", "named"]
"""How a message concerns an address: the only one that lacks it, one of several, or named elsewhere in its header."""


def found_failed(job: FailedJob) -> FoundMail:
    """Return a failed job as ``find`` shows it."""
    values = read_values(job.head)
    return FoundMail(
        job.message_id,
        "failed",
        job.mailer,
        job.progress.attempts,
        job.failed_at,
        None,
        job.progress.missing or tuple(read_recipients(values)),
        job.reason,
        read_ref(values),
    )


def describe_mail(
    message_id: str, state: MailState, mailer: str, head: bytes | None, progress: Progress, due: float | None
) -> FoundMail:
    """Return a message that is not given up as ``find`` shows it."""
    values = read_values(head)
    recipients = progress.missing or tuple(read_recipients(values))
    return FoundMail(
        message_id, state, mailer, progress.attempts, progress.since, due, recipients, "", read_ref(values)
    )


def concern(head: bytes | None, progress: Progress, address: str) -> Concern | None:
    """Return how a stored message concerns ``address`` (as ``mail_key`` returns it); None: not at all.

    Its bodies and attachments are not read.
    """
    values = read_values(head)
    recipients = {mail_key(each) for each in read_recipients(values)}
    if address in recipients and head is not None:
        # Without anybody in it a progress would say that all others lack the message, who have it.
        if {address} in (recipients, {*map(mail_key, progress.missing or ())}):
            return "alone"
        with suppress(LookupError, TypeError, ValueError):  # no version wrote it
            erase_from_head(head, address)
            return "shared"
    return "named" if head is not None and address in head.decode(errors="replace").lower() else None


def erase_from_head(head: bytes, address: str) -> bytes:
    """Return a stored head without ``address`` among the recipients and reply addresses.

    In the subject, in the header fields that an application has added, and in its ref, tags and metadata it is replaced
    by :data:`ERASED`.
    """
    values = load_object(head)
    for name in ("to", "cc", "bcc", "reply_to"):
        values[name] = [each for each in values[name] if mail_key(f"{each[1]}@{each[2]}") != address]
    values["headers"] = [[name, erase_from_text(text, address)] for name, text in values["headers"]]
    values["subject"] = erase_from_text(values["subject"], address)
    if "extra" in values:
        values["extra"] = _erase_from_value(values["extra"], address)
    return json.dumps(values, separators=(",", ":")).encode()


def _erase_from_value(value: Any, address: str) -> Any:
    """Return a JSON value without ``address``, in whatever depth."""
    if isinstance(value, str):
        return erase_from_text(value, address)
    if isinstance(value, list):
        return [_erase_from_value(each, address) for each in value]
    if isinstance(value, dict):
        return {erase_from_text(name, address): _erase_from_value(each, address) for name, each in value.items()}
    return value


def erase_from_progress(progress: Progress, address: str) -> Progress:
    """Return a progress without ``address``."""

    def others(texts: Mapping[str, str]) -> dict[str, str]:
        return {who: erase_from_text(why, address) for who, why in texts.items() if mail_key(who) != address}

    pending = progress.pending
    if pending is not None:
        pending = tuple([who for who in pending if mail_key(who) != address])
    return replace(
        progress, pending=pending, refused=others(progress.refused), unconfirmed=others(progress.unconfirmed)
    )


def erase_from_receipt(stored: str, address: str) -> str | None:
    """Return an idempotency key's stored receipt without ``address``; None if it is not in it."""
    if address not in stored.lower():
        return None
    try:
        values = load_object(stored)
        for name in ("accepted", "suppressed"):
            values[name] = [who for who in values.get(name, ()) if mail_key(who) != address]
        refused = values.get("refused", {})
        values["refused"] = {who: why for who, why in refused.items() if mail_key(who) != address}
    except (DamagedPayload, TypeError, AttributeError):
        return erase_from_text(stored, address)
    return erase_from_text(json.dumps(values), address)


def erase_from_text(text: str, address: str) -> str:
    """Return ``text`` with :data:`ERASED` in place of ``address``, in whatever case."""
    return re.sub(re.escape(address), ERASED, text, flags=re.IGNORECASE)
