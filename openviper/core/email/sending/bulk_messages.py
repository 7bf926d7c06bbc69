"""Read one message of a ``send_many``: copy what may be refilled, check its arguments, and prepare it."""

import inspect
from collections.abc import Coroutine, Mapping
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any, NamedTuple

from openviper.core.email.delivery import Mailer
from openviper.core.email.delivery.schedule import AT_ONCE, Schedule
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message import EmailMessageData, OutgoingMessage, keyword_hint
from openviper.core.email.sending.compose import compose, prepare_data
from openviper.core.email.sending.single import submit_email
from openviper.text import cut, shown

__all__ = ["Defaults", "Message", "copy_message", "forget_frames", "prepare_for_queue", "prepare_inline"]

Message = EmailMessageData | Mapping[str, Any]


class Defaults(NamedTuple):
    """The arguments of a ``send_many`` that are for messages which do not give them."""

    mailer: str | None = None
    stream: str | None = None
    unsubscribe: bool = False

    def values(self) -> dict[str, Any]:
        """Return those that are given, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None and value is not False}


_OWN_KEYS = frozenset({"fail_silently", "background", "send_at", "delay", "expires_at", "timeout"})
_TIMES = ("send_at", "delay", "expires_at")
_KEYS = inspect.signature(submit_email).parameters.keys()
_FIELDS = tuple(field.name for field in fields(EmailMessageData))


async def prepare_inline(mailer: Mailer, index: int, message: Any) -> OutgoingMessage:
    """Prepare the message at ``index`` for an inline delivery; a schedule or another mode is refused.

    Raises:
        InvalidMessage: it cannot be sent as given.
        TypeError: it is of another type, or has an unknown argument.
        SendCancelled: ``before_send`` cancelled it.
    """
    if isinstance(message, EmailMessageData):
        return await prepare_data(mailer, message)
    _check(index, message)
    if Schedule.make(**{key: message.get(key) for key in _TIMES}).later:
        raise InvalidMessage("send_at, delay: send_many() delivers at once; use send_email(), or background=True")
    if message.get("background"):
        raise InvalidMessage("background: give it to send_many() for all messages, or use send_email()")
    return await _compose(mailer, message)


async def prepare_for_queue(
    mailer: Mailer, index: int, message: Any, *, serialised: bool
) -> tuple[OutgoingMessage, Schedule]:
    """Prepare the message at ``index`` for the queue, which keeps it until its time.

    ``serialised`` False: its bytes are not needed, as the worker makes them.

    Raises:
        InvalidMessage: it cannot be sent as given.
        TypeError: it is of another type, or has an unknown argument.
        SendCancelled: ``before_send`` cancelled it.
    """
    if isinstance(message, EmailMessageData):
        return await prepare_data(mailer, message, serialised=serialised), AT_ONCE
    _check(index, message)
    if message.get("background") is False:
        raise InvalidMessage("background: send_many(background=True) queues every message; use send_email()")
    schedule = AT_ONCE
    if not message.keys().isdisjoint(_TIMES):
        schedule = Schedule.make(**{key: message.get(key) for key in _TIMES})
    return await _compose(mailer, message, serialised=serialised), schedule


def _check(index: int, message: Any) -> None:
    if not isinstance(message, Mapping):
        raise TypeError(
            f"send_many(): message {index} must be EmailMessageData or a dict, not {type(message).__name__}; write "
            '{"recipients": ..., "subject": ..., "text": ...} for each'
        )
    unknown = () if message.keys() <= _KEYS else message.keys() - _KEYS
    if unknown or "recipients" not in message:
        problem = (
            f"has unknown arguments: {cut(', '.join(_with_hint(name) for name in sorted(unknown, key=str)), 1000)}"
            if unknown
            else "has no recipients"
        )
        raise TypeError(f"send_many(): message {index} {problem}")
    if message.get("timeout") is not None:
        raise InvalidMessage("timeout: send_many() waits for its connections as long as needed; use send_email()")


def _compose(
    mailer: Mailer, message: Mapping[str, Any], *, serialised: bool = True
) -> Coroutine[Any, Any, OutgoingMessage]:
    arguments = {key: value for key, value in message.items() if key not in _OWN_KEYS}
    return compose(mailer, **arguments, serialised=serialised)


def _with_hint(name: object) -> str:
    return f"{cut(shown(name))}{keyword_hint(name, _KEYS) if isinstance(name, str) else ''}"


def copy_message(message: Any, defaults: Mapping[str, Any]) -> Any:
    """Copy a message and its lists, which a generator may refill for the next message, and add ``defaults``."""
    if isinstance(message, EmailMessageData):
        copied = replace(message, **{name: _copy_of(getattr(message, name)) for name in _FIELDS})
        for name, value in defaults.items():
            if getattr(copied, name) in (None, False):
                setattr(copied, name, value)
        return copied
    if isinstance(message, Mapping):
        values = {key: _copy_of(value) for key, value in message.items()}
        return {**defaults, **values} if defaults else values
    return message


def _copy_of(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if hasattr(value, "to_ical"):  # icalendar's are dicts, whose own copy would lack their components
        return deepcopy(value)
    return value.copy() if isinstance(value, list | dict) else value


def forget_frames(error: BaseException | None) -> None:
    """Drop an error's frames, which would keep messages alive for as long as its receipt is kept."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
