"""Test an application's mail: ``capture_mail`` for any test runner, and the fixture ``mailbox`` for pytest."""

from typing import TYPE_CHECKING

from openviper.lazy import lazy_names

if TYPE_CHECKING:
    from openviper.testing.mailbox import Mailbox, capture_mail
    from openviper.testing.message import SentMessage
else:
    # pytest loads the plugin in every project that has the package installed, so the import must cost nothing.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Mailbox": "openviper.testing.mailbox",
            "SentMessage": "openviper.testing.message",
            "capture_mail": "openviper.testing.mailbox",
        },
    )

__all__ = ["Mailbox", "SentMessage", "capture_mail"]
