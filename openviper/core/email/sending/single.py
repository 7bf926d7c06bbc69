"""Send one email: ``send_email`` and its twins. Mistakes of the caller raise here, before anything is sent."""

import asyncio
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from openviper import tracing
from openviper.core.email.addresses import Address, Addresses, AddressLike
from openviper.core.email.attachments import AttachmentInput
from openviper.core.email.delivery import (
    Deadline,
    cancel,
    current_mailer,
    current_settings,
    failed,
    mailer_if_open,
    serving_event_loop,
    submit,
)
from openviper.core.email.delivery.request_outbox import current_outbox
from openviper.core.email.delivery.schedule import AT_ONCE, Schedule
from openviper.core.email.errors import DeliveryError, DeliveryTimeout, InvalidMessage
from openviper.core.email.events import Receipt
from openviper.core.email.message import CalendarInput, SendCancelled, origin, with_keyword_hints
from openviper.core.email.message.tracing import traced_submission
from openviper.core.email.sending.compose import compose
from openviper.text import shown

# From tags to dsn: as one value, so that the call with all of them has at most 30.
_Labels = tuple[
    Sequence[str] | None,
    str | None,
    Mapping[str, str] | None,
    str | None,
    bool,
    str | int | None,
    str | Sequence[str] | None,
]

__all__ = ["send_email", "send_email_sync", "submit_email"]


@with_keyword_hints
async def submit_email(
    recipients: Addresses,
    subject: str | None = None,
    text: str | None = None,
    html: str | None = None,
    cc: Addresses | None = None,
    bcc: Addresses | None = None,
    attachments: AttachmentInput | Iterable[Any] | None = None,
    template: str | None = None,
    context: Mapping[str, Any] | None = None,
    fail_silently: bool | None = None,
    background: bool | None = None,
    sender: AddressLike | None = None,
    *,
    reply_to: Addresses | None = None,
    headers: Mapping[str, str | Sequence[str]] | None = None,
    envelope_sender: str | Address | None = None,
    send_at: datetime | None = None,
    delay: float | timedelta | None = None,
    expires_at: datetime | None = None,
    date: datetime | None = None,
    in_reply_to: str | Sequence[str] | None = None,
    references: str | Sequence[str] | None = None,
    calendar: CalendarInput | None = None,
    calendar_attachment: bool = False,
    timeout: float | timedelta | None = None,
    tags: Sequence[str] | None = None,
    ref: str | None = None,
    metadata: Mapping[str, str] | None = None,
    stream: str | None = None,
    unsubscribe: bool = False,
    recipient_id: str | int | None = None,
    mailer: str | None = None,
    sensitive: bool = False,
    key: str | None = None,
    dsn: str | Sequence[str] | None = None,
) -> Receipt:
    """Send an email and return its receipt.

    Args:
        recipients: One address or several. Each is text (``user@example.com``, ``Name <user@example.com>``), a pair
            ``(name, address)`` with any name, or an :class:`Address`. Put a pair inside a list.
        subject: May be left out only if ``template`` sets it in a ``subject`` block.
        text: Plain-text body. If left out, it is made from the HTML. ``""`` is a valid body.
        html: HTML body.
        cc: Copy recipients.
        bcc: Recipients who appear in the envelope only, never in the message.
        attachments: One item or a list of items: paths, URLs, bytes, uploads, files opened in binary mode, async
            iterators, functions, messages, ``(filename, content)``, dicts or :class:`AttachmentData`, in any mixture.
            All are read before the call returns.
        template: Name of a ``.txt``, ``.html``, ``.htm`` or ``.md`` file below ``TEMPLATES_DIR``; a name without
            an extension means every file with that stem. A body given as ``text`` or ``html`` replaces the template's.
        context: Values for the template.
        fail_silently: True returns a falsy result instead of raising a delivery error; None follows
            ``EMAIL["fail_silently"]``. Wrong input and wrong settings still raise.
        background: False delivers before the call returns, even inside a transaction; True asks for the queue; None
            follows ``EMAIL["use_background_worker"]``.
        sender: The From address, as text, a pair or an ``Address``; None uses ``EMAIL["default_sender"]``.
        reply_to: Addresses that replies go to (RFC 5322 section 3.6.2).
        headers: Additional header fields, such as ``X-Priority``. Fields that another argument sets are refused. A list
            of values makes one line per value, or a single line if the header's syntax has a separator.
        envelope_sender: The reverse-path that bounces go to (RFC 5321 section 2.3.1); None uses the sender's address,
            and ``""`` is the null path.
        send_at: Earliest time of delivery, a datetime with a time zone. Needs the queue.
        delay: Time to wait before delivery, in seconds or as a timedelta. Needs the queue; cannot be combined with
            ``send_at``.
        expires_at: Time after which no attempt begins, in any delivery mode; the message is then given up.
        date: The Date header, a datetime with a time zone; None is the current time. It does not delay delivery.
        in_reply_to: Message id (``<unique@example.com>``) of the message that this one answers, or a list of ids.
        references: Message ids of the thread, oldest first; None uses the ids in ``in_reply_to``.
        calendar: An invitation, an update or a cancellation (RFC 6047): text, bytes, or an object with ``to_ical()``.
            It becomes the last alternative part, whose method is the calendar's METHOD property.
        calendar_attachment: True also attaches the calendar as a file.
        timeout: Longest time that the whole call may take, in seconds or as a timedelta: loading, rendering, and an
            inline delivery or the broker's answer. It does not limit what happens after the call. None: only the limits
            in the settings apply.
        tags: Words that group messages, for events and logs; they are kept with the message but are not part of it.
        ref: Your own reference to the message, such as an order number; kept with the message in the same way.
        metadata: Additional values by name; kept with the message in the same way.
        stream: Kind of mail that a reader can opt out of, such as ``"news"``; it is passed to ``EMAIL["suppress"]``.
        unsubscribe: True adds the headers for one-click unsubscribe (RFC 8058), with which the message's only recipient
            opts out of its ``stream``, and passes the link to the template as ``unsubscribe_url``.
        recipient_id: Your own identifier for the recipient in the unsubscribe link; None uses the address, which can be
            read in the link.
        mailer: A name in ``EMAIL["mailers"]``; None is the default mailer.
        sensitive: True for a message with a secret, such as a password-reset link: its bodies and attachments are
            dropped when a worker gives the message up, and are hidden in events and, without ``DEBUG``, on the inbox
            page.
        key: Your own name for this one message, such as ``"order-7-confirmation"``, at most 200 characters. Another
            send with the same key within ``EMAIL["key_ttl"]``, from any process if keys are shared, sends nothing and
            returns the first send's receipt with ``duplicate`` True. None: every call sends.
        dsn: Events for which the server is asked to notify the envelope sender (RFC 3461): ``"failure,delay"``, or a
            list of such words. They are ``failure``, ``delay``, ``success``, ``never``, and ``full`` for the whole
            message in a failure notice instead of only its header. A server that does not offer notices gets the
            message without the request, and the receipt's ``dsn`` is False. None leaves the choice to the servers.

    Raises:
        InvalidMessage: an argument cannot be sent; nothing was sent.
        DuplicateKey: ``key`` was used for another message; nothing was sent.
        KeysUnavailable: it cannot be determined whether ``key`` was used, so the message was not sent.
        QueueUnavailable: ``send_at`` or ``delay`` is given and the broker does not answer; nothing was queued.
        ImproperlyConfigured: a setting is missing or wrong; nothing was sent.
        DeliveryError: an inline delivery failed and ``fail_silently`` is off.
        DeliveryTimeout: ``timeout`` has passed; ``uncertain`` is True if the message may still have been accepted,
            False if nothing was sent. Not raised with ``fail_silently``.
    """
    sending = _submit(
        recipients,
        subject,
        text,
        html,
        cc,
        bcc,
        attachments,
        template,
        context,
        fail_silently,
        background,
        sender,
        reply_to,
        headers,
        envelope_sender,
        send_at,
        delay,
        expires_at,
        date,
        in_reply_to,
        references,
        calendar,
        calendar_attachment,
        timeout,
        (
            tags,
            ref,
            metadata,
            stream,
            unsubscribe,
            recipient_id,
            dsn,
        ),
        mailer,
        sensitive,
        key,
    )
    return await (sending if tracing.tracer is None else traced_submission(tracing.tracer, sending))


async def _submit(
    recipients: Addresses,
    subject: str | None = None,
    text: str | None = None,
    html: str | None = None,
    cc: Addresses | None = None,
    bcc: Addresses | None = None,
    attachments: AttachmentInput | Iterable[Any] | None = None,
    template: str | None = None,
    context: Mapping[str, Any] | None = None,
    fail_silently: bool | None = None,
    background: bool | None = None,
    sender: AddressLike | None = None,
    reply_to: Addresses | None = None,
    headers: Mapping[str, str | Sequence[str]] | None = None,
    envelope_sender: str | Address | None = None,
    send_at: datetime | None = None,
    delay: float | timedelta | None = None,
    expires_at: datetime | None = None,
    date: datetime | None = None,
    in_reply_to: str | Sequence[str] | None = None,
    references: str | Sequence[str] | None = None,
    calendar: CalendarInput | None = None,
    calendar_attachment: bool = False,
    timeout: float | timedelta | None = None,
    labels: _Labels = (None, None, None, None, False, None, None),
    mailer: str | None = None,
    sensitive: bool = False,
    key: str | None = None,
) -> Receipt:
    """Submit what ``submit_email`` is given, all by position.

    The compiler packs a call of more than 30 values, of which each name counts twice, into a tuple and a dict. By name
    this one would cost 2 % of a send.
    """
    schedule = AT_ONCE
    if send_at is not None or delay is not None or expires_at is not None:
        schedule = Schedule.make(send_at=send_at, delay=delay, expires_at=expires_at)
    if fail_silently is not None or background is not None:
        _check_flag(fail_silently, name="fail_silently")
        _check_flag(background, name="background")
    deadline = None if timeout is None else Deadline.after(timeout)
    loop_mailer = mailer_if_open()
    if loop_mailer is None:
        opening = current_mailer()
        try:
            loop_mailer = await opening if deadline is None else await deadline.before(opening)
        except DeliveryError as error:  # of the deadline, or of a backend that cannot be opened
            silent = current_settings().fail_silently if fail_silently is None else fail_silently
            return failed(error, "", fail_silently=silent)
    tags, ref, metadata, stream, unsubscribe, recipient_id, dsn = labels
    composing = compose(  # by position: binding twenty names would cost 2 % of a send
        loop_mailer,
        recipients,
        subject,
        text,
        html,
        cc,
        bcc,
        attachments,
        template,
        context,
        sender,
        reply_to,
        headers,
        envelope_sender,
        date,
        in_reply_to,
        references,
        calendar,
        calendar_attachment,
        tags,
        ref,
        metadata,
        stream,
        unsubscribe,
        recipient_id,
        mailer,
        sensitive,
        key,
        dsn,
    )
    silent = loop_mailer.settings.fail_silently if fail_silently is None else fail_silently
    try:
        message = await composing if deadline is None else await deadline.before(composing)
    except SendCancelled as cancelled:
        return cancel(cancelled, loop_mailer.transport)
    except DeliveryTimeout as error:
        if deadline is None:
            raise
        return failed(error, "", fail_silently=silent)
    if origin.recorders:
        message = origin.with_origin(message, template, context)
    return await submit(
        loop_mailer, message, background=background, fail_silently=silent, schedule=schedule, deadline=deadline
    )


def _check_flag(value: object, *, name: str) -> None:
    """Refuse text, which is true whatever it says."""
    if value is not None and not isinstance(value, bool):
        raise InvalidMessage(f"{name}: must be True, False or None, not {shown(value)}")


@with_keyword_hints
async def send_email(
    recipients: Addresses,
    subject: str | None = None,
    text: str | None = None,
    html: str | None = None,
    cc: Addresses | None = None,
    bcc: Addresses | None = None,
    attachments: AttachmentInput | Iterable[Any] | None = None,
    template: str | None = None,
    context: Mapping[str, Any] | None = None,
    fail_silently: bool | None = None,
    background: bool | None = None,
    sender: AddressLike | None = None,
    *,
    reply_to: Addresses | None = None,
    headers: Mapping[str, str | Sequence[str]] | None = None,
    envelope_sender: str | Address | None = None,
    send_at: datetime | None = None,
    delay: float | timedelta | None = None,
    expires_at: datetime | None = None,
    date: datetime | None = None,
    in_reply_to: str | Sequence[str] | None = None,
    references: str | Sequence[str] | None = None,
    calendar: CalendarInput | None = None,
    calendar_attachment: bool = False,
    timeout: float | timedelta | None = None,
    tags: Sequence[str] | None = None,
    ref: str | None = None,
    metadata: Mapping[str, str] | None = None,
    stream: str | None = None,
    unsubscribe: bool = False,
    recipient_id: str | int | None = None,
    mailer: str | None = None,
    sensitive: bool = False,
    key: str | None = None,
    dsn: str | Sequence[str] | None = None,
) -> bool:
    """Send an email and return whether it was delivered or accepted for delivery.

    Works like :func:`submit_email`, with the same arguments and errors. False means that the delivery failed and
    ``fail_silently`` was set, or that another send with the same ``key`` has not ended yet.
    """
    sending = _submit(
        recipients,
        subject,
        text,
        html,
        cc,
        bcc,
        attachments,
        template,
        context,
        fail_silently,
        background,
        sender,
        reply_to,
        headers,
        envelope_sender,
        send_at,
        delay,
        expires_at,
        date,
        in_reply_to,
        references,
        calendar,
        calendar_attachment,
        timeout,
        (
            tags,
            ref,
            metadata,
            stream,
            unsubscribe,
            recipient_id,
            dsn,
        ),
        mailer,
        sensitive,
        key,
    )
    receipt = await (sending if tracing.tracer is None else traced_submission(tracing.tracer, sending))
    return bool(receipt)


@with_keyword_hints
def send_email_sync(
    recipients: Addresses,
    subject: str | None = None,
    text: str | None = None,
    html: str | None = None,
    cc: Addresses | None = None,
    bcc: Addresses | None = None,
    attachments: AttachmentInput | Iterable[Any] | None = None,
    template: str | None = None,
    context: Mapping[str, Any] | None = None,
    fail_silently: bool | None = None,
    background: bool | None = None,
    sender: AddressLike | None = None,
    *,
    reply_to: Addresses | None = None,
    headers: Mapping[str, str | Sequence[str]] | None = None,
    envelope_sender: str | Address | None = None,
    send_at: datetime | None = None,
    delay: float | timedelta | None = None,
    expires_at: datetime | None = None,
    date: datetime | None = None,
    in_reply_to: str | Sequence[str] | None = None,
    references: str | Sequence[str] | None = None,
    calendar: CalendarInput | None = None,
    calendar_attachment: bool = False,
    timeout: float | timedelta | None = None,
    tags: Sequence[str] | None = None,
    ref: str | None = None,
    metadata: Mapping[str, str] | None = None,
    stream: str | None = None,
    unsubscribe: bool = False,
    recipient_id: str | int | None = None,
    mailer: str | None = None,
    sensitive: bool = False,
    key: str | None = None,
    dsn: str | Sequence[str] | None = None,
) -> bool:
    """Send an email from code that is not async: a sync endpoint in the thread pool, a script, a shell.

    Takes the arguments of :func:`send_email` and returns its result. In a thread that serves a request, the message is
    sent in the request's delivery mode, on the request's event loop. In any other thread, if the process serves
    applications on one event loop, the message is delivered on that loop before the call returns. Elsewhere it is
    delivered over a connection that is opened for this call only: a script that sends many messages should await
    :func:`send_email` in one ``asyncio.run`` instead.

    Raises:
        RuntimeError: called on an event loop, which it would block; use ``await send_email(...)`` there.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("send_email_sync() would block the event loop: use 'await send_email(...)' here")
    sending = send_email(
        recipients,
        subject,
        text,
        html,
        cc,
        bcc,
        attachments,
        template,
        context,
        fail_silently,
        background,
        sender,
        reply_to=reply_to,
        headers=headers,
        envelope_sender=envelope_sender,
        send_at=send_at,
        delay=delay,
        expires_at=expires_at,
        date=date,
        in_reply_to=in_reply_to,
        references=references,
        calendar=calendar,
        calendar_attachment=calendar_attachment,
        timeout=timeout,
        tags=tags,
        ref=ref,
        metadata=metadata,
        stream=stream,
        unsubscribe=unsubscribe,
        recipient_id=recipient_id,
        mailer=mailer,
        sensitive=sensitive,
        key=key,
        dsn=dsn,
    )
    loop = _serving_loop()
    if loop is None:
        return asyncio.run(sending)
    # The callback that starts the coroutine copies this thread's context, so outbox and transaction are found.
    return asyncio.run_coroutine_threadsafe(sending, loop).result()


def _serving_loop() -> asyncio.AbstractEventLoop | None:
    outbox = current_outbox()
    if outbox is not None and outbox.loop.is_running():
        return outbox.loop
    if "anyio" in sys.modules:
        from anyio import from_thread  # heavy, and there is nothing to ask unless someone uses it

        with suppress(RuntimeError):  # not one of AnyIO's worker threads
            return from_thread.run_sync(asyncio.get_running_loop)
    return serving_event_loop()
