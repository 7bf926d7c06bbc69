"""Record the commands and replies of one transaction, for a message that fails (``EMAIL["protocol_log"]``)."""

import re

from openviper.core.email.backends.smtp.replies import Reply
from openviper.text import one_line, without_addresses

__all__ = ["ProtocolLog"]

_BDAT = re.compile(rb"BDAT ([0-9]+)", re.IGNORECASE)
_MOST = 8 * 1024  # characters
_BEGIN = 2 * 1024  # of them, kept from the beginning; the rest is the end, where the failure is


class ProtocolLog:
    """The dialogue of a transaction, without the message's content, and with addresses cut to their domains.

    It begins behind the login, so that it holds no secret.
    """

    __slots__ = ("_commands", "_replies")

    def __init__(self) -> None:
        self._commands: list[str] = []
        self._replies: list[str] = []

    def record_sent(self, data: bytes) -> None:
        """Record commands that were written together; content behind BDAT is left out."""
        position = 0
        while position < len(data):
            end = data.find(b"\r\n", position)
            line = data[position:] if end < 0 else data[position:end]
            position = len(data) if end < 0 else end + 2
            text = one_line(line.decode(errors="replace"))
            if (chunk := _BDAT.match(line)) is not None:
                size = int(chunk[1])
                position += size
                text += f" ({size} bytes of content)"
            self._commands.append(without_addresses(text))

    def record_reply(self, reply: Reply) -> None:
        """Record the reply to the first command that has none yet, or to the content."""
        self._replies.append(without_addresses(str(reply)))

    def text(self) -> str:
        """Return a line for each command and reply, at most 8 kB; longer ones lack their middle."""
        lines: list[str] = []
        for number in range(max(len(self._commands), len(self._replies))):
            if number < len(self._commands):
                lines.append(f"C: {self._commands[number]}")
            lines.append(f"S: {self._replies[number]}" if number < len(self._replies) else "S: (no reply)")
        text = "\n".join(lines)
        if len(text) <= _MOST:
            return text
        cut = "\n[...]\n"
        return f"{text[:_BEGIN]}{cut}{text[len(text) - (_MOST - _BEGIN - len(cut)) :]}"
