"""Let ``EMAIL["before_send"]`` edit or cancel a message: once for each call, in the caller, before it is checked."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openviper.core.email.addresses import parse_addresses
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message.model import EmailMessageData, OutgoingMessage
from openviper.exceptions import PicklableError
from openviper.text import function_name

__all__ = ["Cancel", "SendCancelled", "apply_before_send"]

Hook = Callable[[EmailMessageData], Any]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Returned by a hook in place of the message, which is then not sent; ``reason`` is for events and the log."""

    reason: str


class SendCancelled(PicklableError):
    """A hook cancelled the send; ``message`` is what would have been sent. Caught by every function that sends."""

    def __init__(self, message: OutgoingMessage, reason: str) -> None:
        super().__init__(reason)
        self.message = message
        self.reason = reason


async def apply_before_send(hooks: Sequence[Hook], data: EmailMessageData) -> tuple[EmailMessageData, str | None]:
    """Return what the hooks make of ``data``, and the reason if one of them cancels, which ends it.

    The first hook gets a copy, because the application may send the same lists, headers or message again. Each other
    hook gets what the one before returned. What a hook raises propagates.

    Raises:
        TypeError: a hook returned neither a message nor ``Cancel``.
        InvalidMessage: a hook changed what the message's unsubscribe link was made from.
    """
    linked = _linked(data)
    data = _copied(data)
    for hook in hooks:
        result = hook(data)
        if inspect.isawaitable(result):
            result = await result
        if isinstance(result, Cancel):
            return data, result.reason
        if not isinstance(result, EmailMessageData):
            raise TypeError(
                f'EMAIL["before_send"]: {function_name(hook)} returned {type(result).__name__}; '
                "return the message, or Cancel(reason)"
            )
        data = result
    if data.unsubscribe is not False and _linked(data) != linked:
        raise InvalidMessage(
            'EMAIL["before_send"]: changed the recipients, the stream or unsubscribe of a message whose unsubscribe '
            "link is already made; pass them to the call"
        )
    return data, None


def _linked(data: EmailMessageData) -> tuple[Any, ...] | None:
    """Return what the unsubscribe link of ``data`` was made from; None if it has none."""
    if data.unsubscribe is False:
        return None
    given = ((data.recipients, "recipients"), (data.cc, "cc"), (data.bcc, "bcc"))
    addresses = [address.key for value, field in given for address in parse_addresses(value, field=field)]
    return {*addresses}, data.stream, data.recipient_id


def _copied(data: EmailMessageData) -> EmailMessageData:
    """Return a copy of ``data`` whose lists and mappings a hook may edit."""
    duplicate = copy.copy(data)
    for name in EmailMessageData.__slots__:
        value = getattr(data, name)
        if isinstance(value, list):
            setattr(duplicate, name, value.copy())
    duplicate.headers, duplicate.metadata = _copied_mapping(data.headers), _copied_mapping(data.metadata)
    return duplicate


def _copied_mapping(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value  # another type is refused with the rest
