"""The inbox page of development: shows the mail that this process sends. It observes and changes nothing."""

from openviper.core.email.mailbox.app import PATH, Inbox, is_inbox_path

__all__ = ["PATH", "Inbox", "is_inbox_path"]
