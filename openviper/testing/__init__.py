"""Tests of an application's mail: ``capture_mail`` for any test runner; pytest has the fixture ``mailbox``."""

from typing import TYPE_CHECKING

from openviper.lazy import lazy_names

if TYPE_CHECKING:
    from openviper.testing.mailbox import Mailbox, capture_mail
    from openviper.testing.message import SentMessage
else:
    # pytest loads the plugin beside it in every project that has the package installed, so nothing is imported yet.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Mailbox": "openviper.testing.mailbox",
            "SentMessage": "openviper.testing.message",
            "capture_mail": "openviper.testing.mailbox",
        },
    )

__all__ = ["Mailbox", "SentMessage", "capture_mail"]
