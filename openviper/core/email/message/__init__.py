"""Messages: given by the application, checked and completed, and written as bytes (RFC 5322, RFC 2045-2049)."""

from openviper.core.email.message.before_send import Cancel, SendCancelled, apply_before_send
from openviper.core.email.message.calendar import Calendar, CalendarInput
from openviper.core.email.message.fingerprint import Given, KeyedCall, identify_call, identify_data, with_key
from openviper.core.email.message.keywords import keyword_hint, with_keyword_hints
from openviper.core.email.message.misplaced import ORDER, is_address_like, misplaced_argument
from openviper.core.email.message.model import (
    Chunks,
    CleanChunks,
    Content,
    DsnRequest,
    EmailMessageData,
    Envelope,
    OutgoingMessage,
    PreparedMessage,
    fill_data,
    lengths,
)
from openviper.core.email.message.prepare import (
    NoSender,
    build_message,
    check_message,
    inline_given,
    new_message_id,
    prepare_message,
)
from openviper.core.email.message.unsubscribe import UnsubscribeRequest, add_unsubscribe, make_link

__all__ = [
    "ORDER",
    "Calendar",
    "CalendarInput",
    "Cancel",
    "Chunks",
    "CleanChunks",
    "Content",
    "DsnRequest",
    "EmailMessageData",
    "Envelope",
    "Given",
    "KeyedCall",
    "NoSender",
    "OutgoingMessage",
    "PreparedMessage",
    "SendCancelled",
    "UnsubscribeRequest",
    "add_unsubscribe",
    "apply_before_send",
    "build_message",
    "check_message",
    "fill_data",
    "identify_call",
    "identify_data",
    "inline_given",
    "is_address_like",
    "keyword_hint",
    "lengths",
    "make_link",
    "misplaced_argument",
    "new_message_id",
    "prepare_message",
    "with_key",
    "with_keyword_hints",
]
