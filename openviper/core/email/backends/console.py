"""Prints messages for people: decoded, with what the recipients do not see, and safe for terminals."""

import asyncio
import sys
from threading import Lock
from typing import TextIO

from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.backends.console_view import View, render
from openviper.core.email.errors import DeliveryError
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings
from openviper.terminal import is_terminal

__all__ = ["ConsoleBackend"]


_writing = Lock()


class ConsoleBackend(EmailBackend):
    """Prints each message as one block; blocks of concurrent messages do not mix.

    ``stream`` None is ``sys.stdout`` as it is at the time of writing. A terminal gets colours where the extra ``rich``
    is installed. The writing is done in a thread, since a terminal or a pipe may block.
    """

    def __init__(self, settings: EmailSettings, stream: TextIO | None = None) -> None:
        super().__init__(settings)
        self._stream = stream

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Print ``message``.

        Raises:
            DeliveryError: there is no standard output, or it is closed.
        """
        try:
            await asyncio.to_thread(self._print, message)
        except (OSError, ValueError) as error:
            raise DeliveryError(f"ConsoleBackend: cannot write to the console: {error}") from error
        return DeliveryReport(accepted=message.envelope.recipients, response="printed")

    def _print(self, message: OutgoingMessage) -> None:
        stream = sys.stdout if self._stream is None else self._stream
        # None where a process has no standard output, whatever the type stubs say.
        if stream is None:
            raise ValueError("there is no standard output")
        text = (_coloured(message, stream) if is_terminal(stream) else None) or render(message)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        with _writing:
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()


def _coloured(message: OutgoingMessage, stream: TextIO) -> str | None:
    """The block with colours; None where rich is not installed. Slow the first time: use a thread."""
    try:
        from openviper.core.email.backends.console_colours import coloured
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        return None
    return coloured(View.of(message), stream)
