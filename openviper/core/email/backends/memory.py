"""Keep messages in memory instead of sending them, for tests and for trying an application out."""

from collections import deque
from collections.abc import Iterator
from threading import Lock

from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings

__all__ = ["KEPT_BYTES", "KEPT_MESSAGES", "MemoryBackend", "MessageStore", "sent"]

KEPT_MESSAGES = 1000
KEPT_BYTES = 64 * 1024**2


class MessageStore:
    """Messages in the order in which they were sent. Thread-safe.

    At most ``KEPT_MESSAGES`` messages and ``KEPT_BYTES`` bytes of content are kept: the oldest are dropped, the newest
    is kept whatever its size.
    """

    def __init__(self) -> None:
        self._messages: deque[OutgoingMessage] = deque()
        self._size = 0
        self._lock = Lock()

    def add(self, message: OutgoingMessage) -> None:
        """Add ``message`` as the newest, and drop the oldest ones above the limits."""
        with self._lock:
            self._messages.append(message)
            self._size += message.size
            while len(self._messages) > 1 and (len(self._messages) > KEPT_MESSAGES or self._size > KEPT_BYTES):
                self._size -= self._messages.popleft().size

    def clear(self) -> None:
        """Drop all messages."""
        with self._lock:
            self._messages.clear()
            self._size = 0

    def __iter__(self) -> Iterator[OutgoingMessage]:
        with self._lock:
            return iter(tuple(self._messages))

    def __len__(self) -> int:
        return len(self._messages)

    def __getitem__(self, index: int) -> OutgoingMessage:
        return self._messages[index]


sent = MessageStore()
"""All messages sent through any ``MemoryBackend`` of this process.

The backend that ``send_email`` uses belongs to an event loop and may no longer exist after a request in another thread
or after ``asyncio.run()``; this store remains. Clear it at the start of a test.
"""


class MemoryBackend(EmailBackend):
    """Backend that accepts every recipient and keeps ``messages``; ``sent`` has those of the whole process."""

    keeps_mail = True

    def __init__(self, settings: EmailSettings) -> None:
        super().__init__(settings)
        self.messages = MessageStore()

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Keep ``message``."""
        self.messages.add(message)
        sent.add(message)
        return DeliveryReport(accepted=message.envelope.recipients, response="kept in memory")
