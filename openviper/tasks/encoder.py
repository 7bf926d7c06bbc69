"""Encode Dramatiq messages with bytes in them: a JSON head, then the bytes as they are."""

import json
from typing import Any

from dramatiq.encoder import Encoder, JSONEncoder, MessageData
from dramatiq.errors import DecodeError

__all__ = ["BytesEncoder", "Sealed"]

# No JSON text begins with it, which tells the two forms apart.
_MAGIC = b"\x00OV1"
_LENGTH = 4
_MARK = "\x00sealed"


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
        return b"".join((_MAGIC, len(head).to_bytes(_LENGTH, "big"), head, *parts))

    def decode(self, data: bytes) -> MessageData:
        """Return the message in such bytes.

        Raises:
            DecodeError: they are not a message; the text shows nothing of them.
        """
        try:
            return self._decode(data)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            # Our own text, since Dramatiq's would put the whole message into the log.
            raise DecodeError(f"not a message ({len(data)} bytes)", b"", ValueError(type(error).__name__)) from None

    def _decode(self, data: bytes) -> MessageData:
        if not data.startswith(_MAGIC):
            decoded: dict[str, Any] = json.loads(data)
            return decoded
        start = len(_MAGIC) + _LENGTH
        end = start + int.from_bytes(data[len(_MAGIC) : start], "big")
        message: dict[str, Any] = json.loads(data[start:end])
        args = []
        for argument in message["args"]:
            if isinstance(argument, dict) and _MARK in argument:
                begin, end = end, end + argument[_MARK]
                args.append(Sealed(data[begin:end]))
                if len(args[-1]) != argument[_MARK]:
                    raise ValueError("cut short")
            else:
                args.append(argument)
        message["args"] = args
        return message
