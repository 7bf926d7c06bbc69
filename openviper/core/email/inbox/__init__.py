"""The inbox page of development: shows the mail that this process sends. It observes and changes nothing."""

from openviper.core.email.inbox.app import Inbox
from openviper.core.email.inbox.guard import PATH, is_inbox_path
from openviper.core.email.inbox.recording import start_recording

__all__ = ["PATH", "Inbox", "is_inbox_path", "start_recording"]
