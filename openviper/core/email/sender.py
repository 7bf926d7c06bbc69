"""``send_email`` and its twins: what can fail because of the caller fails here, before a message leaves."""

import asyncio
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from openviper.core.email.addresses import Addresses
from openviper.core.email.attachments import AttachmentData, resolve_attachments
from openviper.core.email.delivery import Mailer, Receipt, current_mailer, serving_event_loop
from openviper.core.email.errors import InvalidMessage
from openviper.core.email.message import EmailMessageData, OutgoingMessage, PreparedMessage, prepare
from openviper.core.email.outbox import current_outbox
from openviper.core.email.plaintext import html_to_text
from openviper.core.email.schedule import Schedule
from openviper.core.email.serialiser import outgoing
from openviper.core.email.settings import EmailSettings

__all__ = ["compose", "ready", "send_email", "send_email_sync", "submit_email"]

P = ParamSpec("P")
T = TypeVar("T")

# Larger HTML is turned into text in a thread; below it the walk takes less than a thread would.
_HTML_ON_LOOP = 64 * 1024
# More than these are checked in a thread, which costs about a tenth of a millisecond by itself.
_ADDRESSES_ON_LOOP = 1000
_CHARACTERS_ON_LOOP = 1024 * 1024


async def submit_email(
    recipients: Addresses,
    subject: str | None = None,
    text: str | None = None,
    html: str | None = None,
    cc: Addresses | None = None,
    bcc: Addresses | None = None,
    attachments: Sequence[Any] | None = None,
    template: str | None = None,
    context: Mapping[str, Any] | None = None,
    fail_silently: bool | None = None,
    background: bool | None = None,
    sender: str | None = None,
    *,
    reply_to: Addresses | None = None,
    headers: Mapping[str, str] | None = None,
    envelope_sender: str | None = None,
    send_at: datetime | None = None,
    delay: float | timedelta | None = None,
    expires_at: datetime | None = None,
) -> Receipt:
    """Send an email and return what became of it.

    Args:
        recipients: One address or several, each ``user@example.com`` or ``Name <user@example.com>``.
        subject: May be left out only where ``template`` gives it in its ``subject`` block.
        text: Plain-text body. Left out, it is made from the HTML. ``""`` is a valid body.
        html: HTML body.
        cc: Copy recipients.
        bcc: Recipients who appear in the envelope only, never in the message.
        attachments: Paths, URLs, tuples, bytes, dicts or :class:`AttachmentData`, in any mixture.
        template: Name below ``TEMPLATES_DIR``: ``.txt``, ``.html``, ``.htm``, ``.md``, or a stem for a pair. A body
            given as ``text`` or ``html`` beats the template's.
        context: Values for the template.
        fail_silently: True returns a false receipt where a delivery error would be raised; None follows
            ``EMAIL["fail_silently"]``. Wrong input and wrong settings raise all the same.
        background: False delivers before the call returns, also inside a transaction; True asks for the queue; None
            follows ``EMAIL["use_background_worker"]``.
        sender: The From address; None is ``EMAIL["default_sender"]``.
        reply_to: Where answers go (RFC 5322 section 3.6.2).
        headers: Further header fields, such as ``List-Unsubscribe``. Those that another argument sets are refused.
        envelope_sender: The reverse-path that bounces go to (RFC 5321 section 2.3.1); None is the sender's address,
            ``""`` the null path.
        send_at: Not before this moment; a datetime with a time zone. Needs the queue.
        delay: Not before so many seconds, or a timedelta, have passed. Needs the queue; excludes ``send_at``.
        expires_at: The queue does not send it after this moment; what does not go through the queue leaves at once.

    Raises:
        InvalidMessage: something given cannot be sent; nothing was.
        QueueUnavailable: ``send_at`` or ``delay`` is given and the broker does not answer; nothing was queued.
        ImproperlyConfigured: a setting is missing or wrong; nothing was sent.
        DeliveryError: an inline delivery failed and ``fail_silently`` is off.
    """
    schedule = Schedule.make(send_at=send_at, delay=delay, expires_at=expires_at)
    mailer = await current_mailer()
    message = await compose(
        mailer,
        recipients=recipients,
        subject=subject,
        text=text,
        html=html,
        cc=cc,
        bcc=bcc,
        attachments=attachments,
        template=template,
        context=context,
        sender=sender,
        reply_to=reply_to,
        headers=headers,
        envelope_sender=envelope_sender,
    )
    silent = mailer.settings.fail_silently if fail_silently is None else fail_silently
    return await mailer.submit(message, background=background, fail_silently=silent, schedule=schedule)


def _with_parameters_of(model: Callable[P, object]) -> Callable[[Callable[..., T]], Callable[P, T]]:
    """Give a function that passes its arguments on the parameters of ``model``: for type checkers, editors, help()."""

    def decorate(function: Callable[..., T]) -> Callable[P, T]:
        function.__signature__ = inspect.signature(model).replace(  # type: ignore[attr-defined]
            return_annotation=inspect.signature(function).return_annotation
        )
        return function

    return decorate


@_with_parameters_of(submit_email)
async def send_email(*args: Any, **kwargs: Any) -> bool:
    """Send an email; the arguments and errors are those of :func:`submit_email`.

    Returns True when the message was delivered or accepted for delivery, False when the delivery failed silently.
    """
    return bool(await submit_email(*args, **kwargs))


@_with_parameters_of(send_email)
def send_email_sync(*args: Any, **kwargs: Any) -> bool:
    """:func:`send_email` for code that is not async: a sync endpoint in the thread pool, a script, a shell.

    In a thread that serves a request the message takes the request's way, on the request's event loop. In another
    thread of a process that serves applications on one event loop it is delivered there, before the call returns.
    Elsewhere it is delivered over a connection that is closed again: a script that sends many messages does better in
    one ``asyncio.run``.

    Raises:
        RuntimeError: called on an event loop, which it would block; use ``await send_email(...)`` there.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("send_email_sync() would block the event loop: use 'await send_email(...)' here")
    loop = _serving_loop()
    if loop is None:
        return asyncio.run(send_email(*args, **kwargs))
    # The callback that starts the coroutine copies this thread's context, so outbox and transaction are found.
    return asyncio.run_coroutine_threadsafe(send_email(*args, **kwargs), loop).result()


async def compose(
    mailer: Mailer,
    *,
    recipients: Addresses,
    subject: str | None = None,
    text: str | None = None,
    html: str | None = None,
    cc: Addresses | None = None,
    bcc: Addresses | None = None,
    attachments: Sequence[Any] | None = None,
    template: str | None = None,
    context: Mapping[str, Any] | None = None,
    sender: str | None = None,
    reply_to: Addresses | None = None,
    headers: Mapping[str, str] | None = None,
    envelope_sender: str | None = None,
) -> OutgoingMessage:
    """The message of :func:`submit_email`'s arguments, ready to leave; raises what is wrong with them."""
    text, html, subject = await _bodies(mailer, template, context, text, html, subject)
    data = EmailMessageData(
        recipients=recipients,
        subject=subject,
        text=text,
        html=html,
        cc=() if cc is None else cc,
        bcc=() if bcc is None else bcc,
        attachments=[] if attachments is None else await _attachments(mailer.settings, attachments),
        sender=sender,
        reply_to=() if reply_to is None else reply_to,
        headers=headers or {},
        envelope_sender=envelope_sender,
    )
    return await ready(mailer, data)


async def ready(mailer: Mailer, data: EmailMessageData) -> OutgoingMessage:
    """``data`` as it is, checked, completed and serialised.

    Raises:
        InvalidMessage: a value cannot be sent as given.
        ImproperlyConfigured: no sender is given, and none is set.
    """
    settings = mailer.settings
    message = await asyncio.to_thread(_checked, data, settings) if _is_long(data) else _checked(data, settings)
    return await outgoing(message, max_message_bytes=settings.max_message_bytes)


def _checked(data: EmailMessageData, settings: EmailSettings) -> PreparedMessage:
    return prepare(data, default_sender=settings.default_sender, auto_submitted=settings.auto_submitted)


def _is_long(data: EmailMessageData) -> bool:
    """Whether checking takes milliseconds; what has no length is for the check itself."""
    try:
        addresses = len(data.recipients) + len(data.cc) + len(data.bcc)  # type: ignore[arg-type]
        return addresses > _ADDRESSES_ON_LOOP or len(data.text or "") + len(data.html or "") > _CHARACTERS_ON_LOOP
    except TypeError:
        return False


def _serving_loop() -> asyncio.AbstractEventLoop | None:
    outbox = current_outbox()
    if outbox is not None and outbox.loop.is_running():
        return outbox.loop
    if "anyio" in sys.modules:
        from anyio import from_thread  # heavy, and there is nothing to ask unless someone uses it

        with suppress(RuntimeError):  # not one of AnyIO's worker threads
            return from_thread.run_sync(asyncio.get_running_loop)
    return serving_event_loop()


async def _bodies(
    mailer: Mailer,
    template: str | None,
    context: Any,
    text: str | None,
    html: str | None,
    subject: str | None,
) -> tuple[str | None, str | None, str]:
    if context is not None and not isinstance(context, Mapping):
        raise InvalidMessage(f"context: must be a mapping of names to values, not {type(context).__name__}")
    if template is not None:
        rendered = await mailer.renderer.render(template, context)
        text = rendered.text if text is None else text
        html = rendered.html if html is None else html
        subject = rendered.subject if subject is None else subject
    elif context:
        raise InvalidMessage("context is given without a template: name the template, or leave the context out")
    if subject is None:
        raise InvalidMessage("subject is missing: give one, or a template with a 'subject' block")
    if text is None and isinstance(html, str):  # of another type it is refused with the rest
        text = html_to_text(html) if len(html) <= _HTML_ON_LOOP else await asyncio.to_thread(html_to_text, html)
    return text, html, subject


async def _attachments(settings: EmailSettings, attachments: Sequence[Any]) -> list[AttachmentData]:
    return await resolve_attachments(
        attachments,
        max_bytes=settings.max_attachment_bytes,
        max_total_bytes=settings.max_message_bytes,
        dirs=settings.attachment_dirs,
        allowed_hosts=settings.attachment_hosts,
    )
