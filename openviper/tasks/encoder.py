"""Encode Dramatiq messages with bytes in them: a JSON head, then the bytes as they are."""

import json
from typing import Any

from dramatiq.encoder import Encoder, JSONEncoder, MessageData
from dramatiq.errors import DecodeError

from openviper.framing import frame, read_head, read_parts

__all__ = ["BytesEncoder", "Sealed"]

# No JSON text begins with it, which tells the two forms apart.
_MAGIC = b"\x00OV1"
_MARK = "\x00sealed"
_FIELDS = {
    "queue_name": str,
    "actor_name": str,
    "args": list,
    "kwargs": dict,
    "options": dict,
    "message_id": str,
    "message_timestamp": int,
}


class Sealed(bytes):
    """Bytes as an actor's argument. Its ``repr`` shows only the size: Dramatiq logs the arguments of failures."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    __str__ = __repr__


class BytesEncoder(Encoder):
    """Dramatiq's JSON, except for messages whose positional arguments hold :class:`Sealed`.

    Those are a mark, the length of the head (4 bytes, big-endian), the head, and the bytes of each argument.
    """

    def __init__(self) -> None:
        self._json = JSONEncoder()

    def encode(self, data: MessageData) -> bytes:
        """Return the bytes that the broker keeps."""
        args = list(data["args"])
        parts = [argument for argument in args if isinstance(argument, Sealed)]
        if not parts:
            return self._json.encode(data)
        marked = [{_MARK: len(argument)} if isinstance(argument, Sealed) else argument for argument in args]
        head = self._json.encode({**data, "args": marked})
        return frame(head, parts, prefix=_MAGIC)

    def decode(self, data: bytes) -> MessageData:
        """Return the message in such bytes.

        Raises:
            DecodeError: they are not a message; the text shows nothing of them.
        """
        try:
            message = self._decode(data)
            _check_fields(message)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            # Our own text, since Dramatiq's would put the whole message into the log.
            raise DecodeError(f"not a message ({len(data)} bytes)", b"", ValueError(type(error).__name__)) from None
        return message

    def _decode(self, data: bytes) -> MessageData:
        if not data.startswith(_MAGIC):
            decoded: dict[str, Any] = json.loads(data)
            return decoded
        head, begin = read_head(data, len(_MAGIC))
        message: dict[str, Any] = json.loads(head)
        sizes = [argument[_MARK] for argument in message["args"] if _is_mark(argument)]
        parts = iter(read_parts(data, begin, sizes))
        message["args"] = [Sealed(next(parts)) if _is_mark(argument) else argument for argument in message["args"]]
        return message


def _check_fields(message: MessageData) -> None:
    """Raise TypeError for fields with which Dramatiq's consumers and workers would end by another error."""
    types = {name: type(message[name]) for name in _FIELDS}
    if types != _FIELDS or message.keys() != _FIELDS.keys():
        raise TypeError


def _is_mark(argument: object) -> bool:
    return isinstance(argument, dict) and _MARK in argument
