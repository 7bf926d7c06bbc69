"""Note where a message was sent from, for the inbox page: the template, the names of its values, the line of code.

The note travels in ``extra``, so that the page shows it of queued mail, too. It has no values.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from openviper.core.email.message.model import OutgoingMessage, PreparedMessage, read_only

__all__ = ["Origin", "read_origin", "record_origins", "recorders", "with_origin"]

_EXTRA_ORIGIN = "origin"
_MOST_NAMES, _LONGEST = 100, 500  # of a context, and characters of each text

# The modules between the application and this one.
_SENDING = ("openviper.core.email.sending", "openviper.core.email.message")
_NO_CALLER = ("openviper", "asyncio", "concurrent", "uvloop")  # such as a task that begins with the send

recorders: list[object] = []
"""One entry for each inbox that records; empty in production, where a send notes nothing."""


class Origin(NamedTuple):
    """Where a message was sent from.

    ``template`` is None without one, ``names`` are those of its values; ``code`` is ``file:line in function``, None
    where the send began a task or a thread.
    """

    template: str | None = None
    names: tuple[str, ...] = ()
    code: str | None = None


def record_origins() -> Callable[[], None]:
    """Note the origin of each message of this process until the returned function is called."""
    recorder = object()
    recorders.append(recorder)
    return lambda: recorders.remove(recorder)


def with_origin(message: OutgoingMessage, template: str | None, context: Mapping[Any, Any] | None) -> OutgoingMessage:
    """Return ``message`` with its origin; the caller is looked for above the frames of the sending functions."""
    names = [name[:_LONGEST] for name in context or () if isinstance(name, str)][:_MOST_NAMES]
    origin = {"template": template and template[:_LONGEST], "names": names, "code": _find_caller()}
    extra = read_only({**message.prepared.extra, _EXTRA_ORIGIN: origin})
    return message._replace(prepared=message.prepared._replace(extra=extra))


def read_origin(message: PreparedMessage) -> Origin:
    """Return the origin that a message carries; an empty one where it carries none, or another version's.

    The file of the code is relative to the working folder if it is below. Asks the system for it: use a thread.
    """
    found = message.extra.get(_EXTRA_ORIGIN)
    if not isinstance(found, Mapping):
        return Origin()
    template, names, code = found.get("template"), found.get("names"), found.get("code")
    return Origin(
        template if isinstance(template, str) else None,
        tuple([name for name in names if isinstance(name, str)]) if isinstance(names, list | tuple) else (),
        code.removeprefix(f"{Path.cwd()}{os.sep}") if isinstance(code, str) else None,
    )


def _find_caller() -> str | None:
    frame = sys._getframe(1)  # inspect.stack() reads files
    while frame.f_globals.get("__name__", "").startswith(_SENDING):
        if frame.f_back is None:
            return None
        frame = frame.f_back
    if frame.f_globals.get("__name__", "").partition(".")[0] in _NO_CALLER:
        return None
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"[:_LONGEST]
