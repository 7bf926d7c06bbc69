"""Let ``EMAIL["before_send"]`` edit or cancel a message: once for each call, in the caller, before it is checked."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from openviper.core.email.message.model import EmailMessageData, OutgoingMessage

__all__ = ["Cancel", "SendCancelled", "apply_before_send"]

Hook = Callable[[EmailMessageData], Any]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Returned by a hook in place of the message, which is then not sent; ``reason`` is for events and the log."""

    reason: str


class SendCancelled(Exception):
    """A hook cancelled the send; ``message`` is what would have been sent. Caught by every function that sends."""

    def __init__(self, message: OutgoingMessage, reason: str) -> None:
        super().__init__(reason)
        self.message = message
        self.reason = reason


async def apply_before_send(hooks: Sequence[Hook], data: EmailMessageData) -> tuple[EmailMessageData, str | None]:
    """Return what the hooks make of ``data``, and the reason if one of them cancels, which ends it.

    Each hook gets what the one before returned. What a hook raises propagates.

    Raises:
        TypeError: a hook returned neither a message nor ``Cancel``.
    """
    for hook in hooks:
        result = hook(data)
        if inspect.isawaitable(result):
            result = await result
        if isinstance(result, Cancel):
            return data, result.reason
        if not isinstance(result, EmailMessageData):
            name = f"{getattr(hook, '__module__', '?')}.{getattr(hook, '__qualname__', type(hook).__qualname__)}"
            raise TypeError(
                f'EMAIL["before_send"]: {name} returned {type(result).__name__}; return the message, or Cancel(reason)'
            )
        data = result
    return data, None
