"""Limit the bytes of one attachment and of all together, while they are read."""

import threading

from openviper.core.email.errors import AttachmentRefused

__all__ = ["ByteLimit", "TotalLimit"]


class TotalLimit:
    """Limits the bytes of all attachments of a message; None sets no limit. Thread-safe."""

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._spent = 0
        self._lock = threading.Lock()

    @property
    def room(self) -> int | None:
        """Return how many bytes are left, or None without a limit."""
        return None if self._max_bytes is None else max(0, self._max_bytes - self._spent)

    def spend(self, count: int, filename: str) -> None:
        """Charge ``count`` bytes.

        Raises:
            AttachmentRefused: the sum is above the limit; ``filename`` is the one that passed it.
        """
        with self._lock:
            self._spent += count
        if self._max_bytes is not None and self._spent > self._max_bytes:
            raise AttachmentRefused(
                filename,
                f"all attachments together are larger than the limit of {self._max_bytes} bytes"
                """ (EMAIL["max_message_bytes"])""",
                too_large=True,
            )


class ByteLimit:
    """Limits the bytes of one attachment, which errors call ``filename``."""

    def __init__(self, filename: str, max_bytes: int, total: TotalLimit) -> None:
        self.filename = filename
        self.max_bytes = max_bytes
        self._total = total
        self._spent = 0

    @property
    def room(self) -> int:
        """Return how many bytes may still be read before the attachment is too large."""
        own = max(0, self.max_bytes - self._spent)
        shared = self._total.room
        return own if shared is None else min(own, shared)

    def announce(self, size: int) -> None:
        """Refuse a source that announces ``size`` bytes, if that is too large, before anything is read.

        Raises:
            AttachmentRefused: ``size`` is above the limit of this attachment or of the sum.
        """
        if size > self.max_bytes:
            raise AttachmentRefused(self.filename, f"has {size} bytes; {self._limit_text}", too_large=True)
        shared = self._total.room
        if shared is not None and size > shared:
            raise AttachmentRefused(
                self.filename,
                f"has {size} bytes; all attachments together may have only {shared} more"
                """ (EMAIL["max_message_bytes"])""",
                too_large=True,
            )

    def spend(self, count: int) -> None:
        """Charge ``count`` bytes that were read.

        Raises:
            AttachmentRefused: the attachment, or the sum of all, is too large.
        """
        self._spent += count
        if self._spent > self.max_bytes:
            raise AttachmentRefused(self.filename, f"is too large; {self._limit_text}", too_large=True)
        self._total.spend(count, self.filename)

    @property
    def _limit_text(self) -> str:
        return f"""the limit is {self.max_bytes} bytes (EMAIL["max_attachment_bytes"])"""
