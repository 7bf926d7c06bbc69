"""Print messages for people: decoded, with blind copies, and safe for terminals."""

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


_write_lock = Lock()


class ConsoleBackend(EmailBackend):
    """Backend that prints each message as one block, which never mixes with another.

    ``stream`` None means ``sys.stdout`` at the time of writing. A terminal gets colours if the extra ``rich`` is
    installed. A thread does the writing, because a terminal or a pipe may block.
    """

    keeps_mail = True

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
        # None if the process has no standard output, whatever the type stubs say.
        if stream is None:
            raise ValueError("there is no standard output")
        text = (_render_coloured(message, stream) if is_terminal(stream) else None) or render(message)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        with _write_lock:
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()


def _render_coloured(message: OutgoingMessage, stream: TextIO) -> str | None:
    """Render ``message`` with colours, None if rich is not installed. Slow at first: call it in a thread."""
    try:
        from openviper.core.email.backends.console_colours import render_coloured
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        return None
    return render_coloured(View.from_message(message), stream)
