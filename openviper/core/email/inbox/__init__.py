"""The inbox page for development: shows the mail that this process sends. It observes and changes nothing."""

from openviper.core.email.inbox.app import Inbox, make_store
from openviper.core.email.inbox.erasing import erase_from_folder
from openviper.core.email.inbox.folder_store import start_recording
from openviper.core.email.inbox.guard import PATH, is_inbox_path

__all__ = ["PATH", "Inbox", "erase_from_folder", "is_inbox_path", "make_store", "start_recording"]
