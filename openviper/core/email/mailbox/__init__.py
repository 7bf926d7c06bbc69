"""The inbox page of development: shows the mail that this process sends. It observes and changes nothing."""

from openviper.core.email.mailbox.app import Inbox
from openviper.core.email.mailbox.guard import PATH, is_inbox_path
from openviper.core.email.mailbox.recording import start_recording

__all__ = ["PATH", "Inbox", "is_inbox_path", "start_recording"]
