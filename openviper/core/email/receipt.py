"""How a message leaves, and what its sender is told about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from openviper.core.email.errors import EmailError, Refusal

__all__ = ["DeliveryReport", "Receipt", "Way"]


class Way(StrEnum):
    """How a message leaves."""

    INLINE = "inline"  # delivered before the call returns
    DEFERRED = "deferred"  # delivered by the dispatcher when the response has ended
    QUEUED = "queued"  # accepted by the broker, delivered by a worker
    HELD = "held"  # waits for its transaction to commit, then goes one of the other ways


# Nobody changes this and the next one, but a frozen dataclass sets each field by a call, and every message makes both.
@dataclass(slots=True)
class DeliveryReport:
    """Who got the message: ``accepted`` addresses, ``refused`` ones with the server's reply, and its last answer.

    Those of ``refused`` with ``Refusal.uncertain`` may have it as well: nobody knows.
    """

    accepted: tuple[str, ...]
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    response: str = ""

    @property
    def outcome(self) -> str:
        """The answer, who was refused and why, and who may have it although nobody knows."""
        text = self.response
        for uncertain, words in ((False, "refused"), (True, "perhaps delivered")):
            replies = [f"{who} ({why})" for who, why in self.refused.items() if why.uncertain is uncertain]
            if replies:
                text += f"; {words}: {', '.join(replies)}"
        return text


@dataclass(slots=True)
class Receipt:
    """What became of a message so far; false when it failed silently, then ``error`` says why.

    ``accepted`` and ``refused`` (address to the server's reply, ``uncertain`` where nobody knows whether it took the
    message) are known for an inline message only. ``index`` is the place of the message among those of a
    ``send_many``, from 0; there ``message_id`` is ``""`` when the message was not valid and so never got one.
    """

    message_id: str
    way: Way
    accepted: tuple[str, ...] = ()
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    response: str = ""
    error: EmailError | None = None
    index: int | None = None

    def __bool__(self) -> bool:
        return self.error is None
