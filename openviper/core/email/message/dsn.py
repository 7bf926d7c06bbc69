"""Read ``dsn``: which delivery status notifications a server is asked for (RFC 3461)."""

from collections.abc import Mapping, Sequence
from typing import Any

from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message.model import DsnRequest
from openviper.text import shown, suggestion

__all__ = ["EXTRA_DSN", "checked_dsn", "requested_dsn"]

EXTRA_DSN = "dsn"
"""The key of ``extra`` for the words of ``dsn``; a worker that does not know it sends the message without them."""

_CONDITIONS = ("never", "success", "failure", "delay")
_FULL = "full"
_WORDS = (*_CONDITIONS, _FULL)
_EXAMPLE = 'write dsn="failure,delay"'


def checked_dsn(value: str | Sequence[str], *, envelope_sender: str, sensitive: bool) -> list[str]:
    """Return the words of ``value`` in lower case, each once.

    Raises:
        InvalidMessage: it has another type or word, words that exclude each other, or nobody would get the notices.
    """
    if isinstance(value, str):
        given: list[Any] = value.split(",")
    elif isinstance(value, list | tuple | set | frozenset):
        given = list(value)
    else:
        raise InvalidMessage(f"dsn: must be text or a list of words, not {type(value).__name__}; {_EXAMPLE}")
    words = [_word(each) for each in given]
    found = [word for word in _WORDS if word in words]  # in one order, as a set has none
    conditions = [word for word in found if word != _FULL]
    if not conditions:
        raise InvalidMessage(f"dsn: {shown(value)} does not say when to notify; {_EXAMPLE}")
    if "never" in conditions:
        if len(found) > 1:
            raise InvalidMessage('dsn: "never" excludes every other word (RFC 3461 section 4.1)')
    elif not envelope_sender:
        raise InvalidMessage('dsn: envelope_sender is "", so notices have no address to go to; give one')
    if sensitive and _FULL in found:
        raise InvalidMessage('dsn: "full" would return the content of a sensitive message; leave it out')
    return found


def requested_dsn(extra: Mapping[str, Any], message_id: str) -> DsnRequest | None:
    """Return the request that travels in ``extra``; None without one, and for what no version could have written."""
    words = extra.get(EXTRA_DSN)
    if not isinstance(words, list | tuple):
        return None
    conditions = tuple([word for word in _CONDITIONS if word in words])
    return DsnRequest(conditions, _FULL in words, message_id.strip("<>")) if conditions else None


def _word(value: object) -> str:
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in _WORDS:
        known = ", ".join(_WORDS)
        raise InvalidMessage(f"dsn: {shown(value)} is not allowed{suggestion(word, _WORDS)}; give {known}")
    return word
