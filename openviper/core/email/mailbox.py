"""Keep the documented path ``openviper.core.email.mailbox.start_recording``."""

from openviper.core.email.inbox import start_recording

__all__ = ["start_recording"]
