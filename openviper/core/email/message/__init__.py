"""What is said and to whom, checked, completed and written as bytes."""

from openviper.core.email.message.model import (
    Chunks,
    CleanChunks,
    Content,
    EmailMessageData,
    Envelope,
    OutgoingMessage,
    PreparedMessage,
    lengths,
)
from openviper.core.email.message.prepare import new_message_id, prepare
from openviper.core.email.message.serialiser import build_message

__all__ = [
    "Chunks",
    "CleanChunks",
    "Content",
    "EmailMessageData",
    "Envelope",
    "OutgoingMessage",
    "PreparedMessage",
    "build_message",
    "lengths",
    "new_message_id",
    "prepare",
]
