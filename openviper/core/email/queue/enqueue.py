"""Queue one message, whatever the settings say, and answer whether mail would be queued."""

import logging
from collections.abc import Callable

from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.events import Circumstances, DeliveryMode, Receipt, publish
from openviper.core.email.message import (
    EmailMessageData,
    NoSender,
    OutgoingMessage,
    add_unsubscribe,
    apply_before_send,
    identify_data,
    prepare_message,
    with_key,
)
from openviper.core.email.message.redaction import is_sensitive, redact
from openviper.core.email.queue.keys import (
    KeyRecord,
    answer_duplicate,
    claim_for,
    describe_duplicate,
    encode_receipt,
)
from openviper.core.email.queue.service import JobQueue, current_key_store, current_queue
from openviper.core.email.settings import EmailSettings, settings_origin
from openviper.exceptions import ImproperlyConfigured

__all__ = ["enqueue_email_job", "prepare_alone", "worker_available"]

logger = logging.getLogger("openviper.email")


def worker_available() -> bool:
    """True when mail would be queued: a real broker (Redis or RabbitMQ) is configured in ``TASKS`` and answers.

    Returns the result of the last probe, which is renewed in the background every few seconds while this is called.
    Only the very first call asks the broker itself, and blocks for a second at most; an application does so at startup.
    """
    service = current_queue()
    return service is not None and service.available()


async def enqueue_email_job(data: EmailMessageData) -> Receipt:
    """Check ``data`` and queue it, whatever ``use_background_worker`` says. Never delivers the message here.

    Raises:
        DeliveryError: an earlier send with its key may have been delivered; nothing was queued.
        DuplicateKey: another message has its key.
        InvalidMessage: it cannot be sent as given, or its Message-ID is that of another message to the same recipients.
        QueueUnavailable: no real broker is configured, or it did not accept the message.
    """
    given: object = data
    if not isinstance(given, EmailMessageData):
        raise TypeError(
            f"enqueue_email_job() takes one EmailMessageData, not {type(given).__name__}; write "
            "EmailMessageData(recipients=..., subject=..., text=...)"
        )
    service = current_queue()
    if service is None:
        raise QueueUnavailable(
            f'no message broker is configured: set TASKS["broker"] to "redis" or "rabbitmq"; {settings_origin()}'
        )
    settings = EmailSettings.from_settings()
    try:
        message, cancelled = await prepare_alone(data, settings)
    except NoSender as error:
        raise ImproperlyConfigured(f"{error}; {settings_origin()}") from None
    if cancelled is not None:
        return Receipt(message.message_id, DeliveryMode.QUEUED, cancelled=cancelled)
    receipt = await _enqueue(service, message, settings)
    if receipt.error is not None:
        raise receipt.error
    detail = describe_duplicate(message.message_id, receipt) if receipt.duplicate else ""
    if detail:
        logger.info("message %s is not sent: %s", message.message_id, detail)
    publish(
        "duplicate" if receipt.duplicate else "queued",
        message,
        detail,
        circumstances=Circumstances(DeliveryMode.QUEUED),
        listeners=settings.functions("listeners"),
        redact=_redaction(message),
    )
    return receipt


async def prepare_alone(data: EmailMessageData, settings: EmailSettings) -> tuple[OutgoingMessage, str | None]:
    """Prepare ``data`` by the settings, for code without a mailer; return why ``before_send`` cancelled it, or None.

    The event of a cancelled message is published.

    Raises:
        InvalidMessage: it cannot be sent as given.
        NoSender: neither it nor the settings name a sender.
        ImproperlyConfigured: it asks for an unsubscribe link, whose settings are missing.
    """
    cancelled = call = None
    if data.key is not None:
        data, call = await identify_data(data)
    if data.unsubscribe is not False or data.recipient_id is not None:
        data = add_unsubscribe(data, settings.of_mailer(data.mailer))
    if settings.before_send:
        data, cancelled = await apply_before_send(settings.functions("before_send"), data)
    own = settings.of_mailer(data.mailer)
    message = await prepare_message(
        data,
        default_sender=own.default_sender,
        auto_submitted=own.auto_submitted,
        max_message_bytes=own.max_message_bytes,
        inline_css=own.inline_css,
        labels=own,
    )
    if cancelled is not None:
        listeners = settings.functions("listeners")
        publish("cancelled", message, cancelled, listeners=listeners, redact=_redaction(message))
    elif call is not None:
        message = with_key(message, call)
    return message, cancelled


def _redaction(message: OutgoingMessage) -> Callable[[OutgoingMessage], OutgoingMessage] | None:
    return redact if is_sensitive(message.prepared) else None


async def _enqueue(service: JobQueue, message: OutgoingMessage, settings: EmailSettings) -> Receipt:
    """Queue ``message`` with its key, and return its receipt, or that of the send which has the key."""
    claim = claim_for(message.prepared, ttl=settings.key_ttl)
    store = None if claim is None or service.keeps_keys else current_key_store()
    accepted: bool | KeyRecord | None = None
    if claim is not None and store is not None:
        accepted = await store.claim(claim)
    if accepted is None:
        try:
            accepted = await service.enqueue(message, settings)
        except BaseException:
            if claim is not None and store is not None:
                await store.release(claim)
            raise
    receipt = Receipt(message.message_id, DeliveryMode.QUEUED, duplicate=accepted is False)
    if claim is not None and not isinstance(accepted, bool):
        return answer_duplicate(claim, accepted)
    if claim is not None and store is not None:
        await store.finish(claim, encode_receipt(receipt))
    return receipt
