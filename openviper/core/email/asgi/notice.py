"""Tell a developer at startup what the log does not show without a configuration: delivery mode and inbox page."""

import logging
import socket
import sys
from typing import Any

from starlette.types import Scope

from openviper.core.email.delivery.wrappers import server_frames
from openviper.core.email.inbox import PATH

__all__ = ["print_notice", "print_page", "served_address", "shows_info"]

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


def print_notice(modes: str, *, inbox: bool, address: str | None) -> None:
    """Print ``modes``, the line about the delivery modes, and the inbox page's address on stderr.

    ``address`` is the server's (``http://127.0.0.1:8000``); None: not known yet. No logging handler is installed: how a
    log is shown is up to the application.
    """
    _print(modes)
    if not inbox:
        _print('inbox page: off: EMAIL["inbox"] is False')
    else:
        _print(f"inbox page: {address}{PATH}" if address else f"inbox page: {PATH} of this application")


def print_page(scope: Scope) -> None:
    """Print the inbox page's address by the server's own of a request; nothing without one."""
    host, port = scope.get("server") or (None, None)
    if host and port:
        _print(f"inbox page: {_base_address(scope.get('scheme', 'http'), host, port)}{PATH}")


def served_address() -> str | None:
    """Return the address at which uvicorn is going to serve this process; None if it is not known before a request.

    uvicorn opens its port after the lifespan's startup, so that port 0 has no number yet.
    """
    for _, frame in server_frames():
        # Server.run(): the configuration of gunicorn's uvicorn worker has a port that nobody opens.
        if frame.f_globals["__name__"] != "uvicorn.server" or "sockets" not in frame.f_locals:
            continue
        server: Any = frame.f_locals.get("self")
        config = server.config
        scheme = "https" if config.is_ssl else "http"
        for listener in frame.f_locals.get("sockets") or ():
            if listener.family in (socket.AF_INET, socket.AF_INET6):
                return _base_address(scheme, *listener.getsockname()[:2])
            return None
        if config.port and config.uds is None and config.fd is None:
            return _base_address(scheme, config.host, config.port)
    return None


def _base_address(scheme: str, host: str, port: int) -> str:
    host = _WILDCARDS.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _print(line: str) -> None:
    if sys.stderr is not None:  # as in a process without a console
        sys.stderr.write(f"openviper.email: {line}\n")


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
