"""Tell a developer at startup what the log does not show without a configuration: delivery mode and inbox page."""

import logging
import sys

from openviper.core.email.inbox import PATH

__all__ = ["print_notice", "shows_info"]

_DEFAULT_ADDRESS = "http://127.0.0.1:8000"  # of uvicorn, hypercorn, granian and gunicorn alike


def print_notice(modes: str, *, inbox: bool) -> None:
    """Print ``modes``, the line about the delivery modes, and the inbox page's address on stderr.

    The server's address is not known at startup, so that the usual one is given. No logging handler is installed: how
    a log is shown is up to the application.
    """
    page = f"{PATH} of this application, such as {_DEFAULT_ADDRESS}{PATH}" if inbox else 'off: EMAIL["inbox"] is False'
    if sys.stderr is not None:  # as in a process without a console
        sys.stderr.write(f"openviper.email: {modes}\nopenviper.email: inbox page: {page}\n")


def shows_info(logger: logging.Logger) -> bool:
    """Return True if a handler shows the logger's messages of level INFO."""
    if not logger.isEnabledFor(logging.INFO):
        return False
    current: logging.Logger | None = logger
    while current is not None:
        if any(each.level <= logging.INFO and not isinstance(each, logging.NullHandler) for each in current.handlers):
            return True
        current = current.parent if current.propagate else None
    return False
