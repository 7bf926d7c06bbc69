"""Name the broker's queues of mail: ``emails`` for the default mailer, and one for each further mailer."""

import re
from typing import TypeGuard

from openviper.core.email.settings import DEFAULT_MAILER, EmailSettings

__all__ = ["QUEUE", "configured_queues", "is_mail_queue", "mailer_of", "queue_of"]

QUEUE = "emails"

# No mailer's name has a dot, so that none is taken for a queue of Dramatiq's or ours: emails.DQ, emails.failed.
_MAIL_QUEUE = re.compile(r"emails(_[a-z][a-z0-9-]{0,39})?")


def queue_of(mailer: str) -> str:
    """Return the queue for mail of ``mailer``: ``emails_bulk`` for "bulk"."""
    return QUEUE if mailer == DEFAULT_MAILER else f"{QUEUE}_{mailer}"


def mailer_of(queue: str) -> str:
    """Return the mailer whose mail ``queue`` holds."""
    return queue.removeprefix(QUEUE).removeprefix("_") or DEFAULT_MAILER


def is_mail_queue(name: object) -> TypeGuard[str]:
    """Return True if ``name``, which a broker may have from anybody, is one that ``queue_of`` returns."""
    return isinstance(name, str) and _MAIL_QUEUE.fullmatch(name) is not None


def configured_queues() -> tuple[str, ...]:
    """Return the queues of all mailers of the project's settings, the default mailer's first."""
    return (QUEUE, *map(queue_of, EmailSettings.from_settings().mailers))
