"""Messages as the package itself prepares them, each with an id of its own."""

from openviper.core.email.message import EmailMessageData, OutgoingMessage, check_message
from openviper.core.email.message.serialiser import serialise_message

__all__ = ["make_outgoing"]


async def make_outgoing(*to: str, subject: str = "Hello", text: str = "Hello, world") -> OutgoingMessage:
    data = EmailMessageData(list(to) or ["user@example.test"], subject, text=text, sender="shop@example.test")
    return await serialise_message(check_message(data, default_sender=None), max_message_bytes=10**6)
