"""Warn when a server runs an application without the mail layer that this process has made for it."""

import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType

__all__ = ["Wrappers", "known_server", "server_frames", "wrappers"]

logger = logging.getLogger("openviper.email")

_SERVERS = frozenset({"uvicorn", "hypercorn", "granian", "gunicorn"})


@dataclass(slots=True)
class Wrappers:
    """Remembers whether this process has wrapped an application, and whether a server has called a wrapper since.

    ``configured``: the source text of the call that gave settings of its own, "" without one.
    """

    made: bool = False
    reached: bool = False
    warned: bool = False
    configured: str = ""

    def note(self, call: str, settings: Mapping[str, object] | None) -> None:
        """Note that ``call`` has wrapped an application, or is going to, with ``settings`` or without."""
        self.made = True
        if settings:
            self.configured = call

    def unreached_settings(self) -> str | None:
        """Return, for an error about a missing setting, why the settings of the wrapper do not hold; None if they do.

        It is that a server runs another application than the wrapped one.
        """
        if not self.configured or self.reached or (server := known_server()) is None:
            return None
        return (
            f"mail was set up by {self.configured}, but {server} runs an application without it: give {server} the "
            f"wrapped one (app = EmailMiddleware(api, settings), then `{server} module:app`), or attach mail to the "
            "one that it runs: Email(settings).attach(api)"
        )

    def warn_if_unreached(self) -> None:
        """Warn, once, when a server runs this event loop and has called none of the wrappers that were made.

        Called where a send opens mail by itself, so that later sends cost nothing.
        """
        if not self.made or self.reached or self.warned or (server := known_server()) is None:
            return
        self.warned = True
        logger.warning(
            "%s runs an application to which mail is not attached, so requests wait for the mail "
            "server: give it the wrapped one (app = EmailMiddleware(api), then `%s module:app`), or attach mail to the "
            "one that it runs: Email().attach(api) (docs: troubleshooting#slow)",
            server,
            server,
        )


wrappers = Wrappers()


def known_server() -> str | None:
    """Return the name of the ASGI server that runs the current event loop; None in scripts, workers and tests.

    It is the one that was started: gunicorn, also where its worker is uvicorn's.
    """
    return next((package for package, _ in reversed(list(server_frames()))), None)


def server_frames() -> Iterator[tuple[str, FrameType]]:
    """Yield the ASGI servers among the calls below the running task, by name and frame, the innermost first.

    A server that starts its loop itself is among them.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in _SERVERS:
            yield package, frame
