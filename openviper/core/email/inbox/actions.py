"""What the buttons of the inbox page do with a message."""

from dataclasses import replace
from datetime import UTC, datetime

from openviper.core.email.delivery import Mailer
from openviper.core.email.inbox.store import Entry, Store
from openviper.core.email.message import OutgoingMessage, new_message_id
from openviper.core.email.message.serialiser import serialise_message

__all__ = ["retry", "send_again"]


async def send_again(message: OutgoingMessage, mailer: Mailer) -> str:
    """Send a copy to all of its recipients as a message of its own, after the response; returns its Message-ID."""
    prepared = message.prepared
    message_id = new_message_id(prepared.sender)
    copy = await serialise_message(
        replace(prepared, message_id=message_id, date=datetime.now(UTC)),
        max_message_bytes=mailer.settings.max_message_bytes,
    )
    mailer.deliver_soon(copy, "sent again from the inbox page")
    return message_id


async def retry(entry: Entry, store: Store, mailer: Mailer) -> bool:
    """Try once more, now, to deliver to those who have not got it.

    False when there is nothing to try, or another process has the message.
    """
    if entry.state == "retrying":
        return mailer.dispatcher.retry_now(entry.prepared.message_id)
    if entry.state != "failed" and not (entry.state == "delivered" and entry.missed):
        return False
    message = await store.load(entry.key)
    if message is None:
        return False
    if entry.state == "delivered":
        message = message.for_recipients(entry.missed)
    mailer.deliver_soon(message, "retried from the inbox page")
    return True
