"""Tests of an application's mail: ``capture_mail`` for any test runner; pytest has the fixture ``mailbox``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openviper.testing.mailbox import Mailbox, capture_mail
    from openviper.testing.message import SentMessage

__all__ = ["Mailbox", "SentMessage", "capture_mail"]

_LAZY = {
    "Mailbox": "openviper.testing.mailbox",
    "SentMessage": "openviper.testing.message",
    "capture_mail": "openviper.testing.mailbox",
}


def __getattr__(name: str) -> Any:
    # Lazy, because pytest loads the plugin beside it in every project that has the package installed.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value
