"""Test an application's mail.

``capture_mail`` and pytest's fixture ``mailbox`` capture the mail of this process; ``Inbox``, ``AsyncInbox`` and the
fixture ``inbox`` read that of a running server.
"""

from typing import TYPE_CHECKING

from openviper.lazy import lazy_names

if TYPE_CHECKING:
    from openviper.testing.inbox import AsyncInbox, Inbox, InboxMessage
    from openviper.testing.mailbox import Mailbox, capture_mail
    from openviper.testing.message import SentMessage
else:
    # pytest loads the plugin in every project that has the package installed, so the import must cost nothing.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "AsyncInbox": "openviper.testing.inbox",
            "Inbox": "openviper.testing.inbox",
            "InboxMessage": "openviper.testing.inbox",
            "Mailbox": "openviper.testing.mailbox",
            "SentMessage": "openviper.testing.message",
            "capture_mail": "openviper.testing.mailbox",
        },
    )

__all__ = ["AsyncInbox", "Inbox", "InboxMessage", "Mailbox", "SentMessage", "capture_mail"]
