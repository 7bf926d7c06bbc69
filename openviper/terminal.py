"""Write to a terminal: escape what would drive it, and choose whether to colour."""

import os
import re
from typing import TextIO

from openviper.text import CONTROLS

__all__ = ["colour", "escape", "is_terminal"]

# Beside control characters: format characters that reorder or hide text, so that it looks like other text. Not those
# that scripts and emoji need (joiners, soft hyphen, tags).
_HIDING = "\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb"
_UNSAFE = re.compile(f"[{CONTROLS}{_HIDING}]")
_UNSAFE_IN_BODY = re.compile(f"(?![\t\n])[{CONTROLS}{_HIDING}]")


def escape(text: str, *, body: bool = False) -> str:
    r"""Return ``text`` with ``\x1b`` or ``\u202e`` in place of what would drive a terminal or reorder the line.

    ``body`` keeps line ends and tabs.
    """
    if body:
        return _UNSAFE_IN_BODY.sub(_escaped, text.replace("\r\n", "\n"))
    return _UNSAFE.sub(_escaped, text)


def is_terminal(stream: TextIO) -> bool:
    """True if ``stream`` is a terminal; False for what cannot say."""
    isatty = getattr(stream, "isatty", None)
    return isatty is not None and isatty()


def colour() -> bool | None:
    """Return the argument ``color`` of ``click.echo``: None colours on terminals only; see https://no-color.org."""
    return False if os.environ.get("NO_COLOR") else None


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
