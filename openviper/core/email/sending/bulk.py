"""Send many messages: ``send_many`` delivers them at once and yields a receipt for each."""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from copy import deepcopy
from dataclasses import fields, replace
from itertools import count
from typing import Any

from openviper.core.email.delivery import Mailer, cancel, current_mailer, deliver_inline
from openviper.core.email.delivery.schedule import Schedule
from openviper.core.email.errors import EmailError, InvalidMessage
from openviper.core.email.events import DeliveryMode, Receipt
from openviper.core.email.message import EmailMessageData, OutgoingMessage, SendCancelled, keyword_hint
from openviper.core.email.sending.compose import compose, prepare_data
from openviper.core.email.sending.single import submit_email
from openviper.text import cut, shown

__all__ = ["send_many"]

Message = EmailMessageData | Mapping[str, Any]

# Several pipelined messages share a connection, so this many times more are prepared ahead, while they are small.
_PIPELINED = 20
_PIPELINED_BYTES = 256 * 1024

_OWN_KEYS = frozenset({"fail_silently", "background", "send_at", "delay", "expires_at", "timeout"})
_KEYS = inspect.signature(submit_email).parameters.keys()
_FIELDS = tuple(field.name for field in fields(EmailMessageData))


async def send_many(
    messages: Iterable[Message] | AsyncIterable[Message], *, pipeline: bool = False
) -> AsyncGenerator[Receipt, None]:
    """Deliver ``messages`` and yield a receipt for each, as soon as it is done.

    Every message is delivered inline, also in a request and inside ``transaction()``: none is deferred, queued or held.
    A message that is invalid or could not be delivered yields a receipt with ``error``; ``index`` identifies it.

    ``messages`` is read only as fast as receipts are consumed, so it may be endless: about twice ``EMAIL["pool_size"]``
    messages are in progress (with ``pipeline`` twenty times as many small ones). A plain iterable is read on the event
    loop, which it must not block; use an async one for what waits. An async generator is closed at the end.

    Leaving the loop early gives up unsent messages; those in progress may still be delivered. ``contextlib.aclosing``
    waits until none is in progress.

    Args:
        messages: :class:`EmailMessageData`, sent as they are, or dicts with the arguments of :func:`send_email`. One
            object may be refilled for the next message.
        pipeline: True sends small messages on a connection without waiting for replies, where the server offers
            PIPELINING (RFC 2920) and CHUNKING (RFC 3030). When such a connection breaks, several messages may be
            uncertain (``DeliveryError.uncertain``).

    Raises:
        TypeError: a message is of another type, or has an unknown argument.
        ImproperlyConfigured: a setting is missing or wrong.

    Other exceptions of ``messages`` are raised here as well; all of them after the receipts of earlier messages.
    """
    if isinstance(messages, Mapping | EmailMessageData):
        raise TypeError("send_many(): takes many messages; give a list, or one message to send_email()")
    run = _Run(await current_mailer(), messages, pipeline=pipeline)
    try:
        while (receipt := await run.next()) is not None:
            yield receipt
    finally:
        await run.aclose()


class _Run:
    """Reads messages in one task, and prepares and delivers each in a task of its own; ``next`` returns receipts."""

    def __init__(self, mailer: Mailer, messages: Iterable[Message] | AsyncIterable[Message], *, pipeline: bool) -> None:
        self._mailer = mailer
        self._transport = mailer.transport
        self._pipeline = pipeline and self._transport.pipelines
        self._ahead = 2 * mailer.settings.pool_size
        self._slots = asyncio.Semaphore(mailer.settings.pool_size)
        self._in_progress = 0  # read, and its receipt not returned yet
        self._preparing = 0
        self._bytes = 0  # of the messages that are prepared and not delivered
        self._receipts: deque[Receipt] = deque()
        self._error: BaseException | None = None
        self._closing = False
        self._more = asyncio.Event()  # something for next()
        self._less = asyncio.Event()  # something for the reader
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader = asyncio.create_task(self._read(messages))
        self._reader.add_done_callback(self._ended)

    async def next(self) -> Receipt | None:
        """Return the next receipt, or None after the last."""
        while not self._receipts:
            if self._reader.done() and not self._tasks:
                if self._error is not None:
                    raise self._error
                return None
            self._more.clear()
            await self._more.wait()
        self._in_progress -= 1
        self._less.set()
        return self._receipts.popleft()

    async def aclose(self) -> None:
        """Cancel what is in progress, and wait until it has ended."""
        self._closing = True
        tasks = [self._reader, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _has_room(self) -> bool:
        if self._in_progress < self._ahead:
            return True
        return (
            self._pipeline
            and self._in_progress < self._ahead * _PIPELINED
            and self._preparing < self._ahead
            and self._bytes < self._ahead * _PIPELINED_BYTES
        )

    async def _read(self, messages: Iterable[Message] | AsyncIterable[Message]) -> None:
        try:
            if isinstance(messages, AsyncIterable):
                await self._read_async(messages)
            else:
                for index, message in enumerate(messages):
                    self._start(index, message)
                    await self._wait_for_room()
        except Exception as error:  # noqa: BLE001 - raised to the caller after the receipts
            self._fail(error)

    async def _read_async(self, messages: AsyncIterable[Message]) -> None:
        iterator = aiter(messages)
        try:
            for index in count():
                try:
                    message = await anext(iterator)
                except StopAsyncIteration:
                    return
                self._start(index, message)
                await self._wait_for_room()
        finally:
            # Nobody else can close one that was made for this call, and what it holds may be a connection.
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()

    async def _wait_for_room(self) -> None:
        while not self._has_room:
            self._less.clear()
            await self._less.wait()

    def _start(self, index: int, message: Message) -> None:
        self._in_progress += 1
        self._preparing += 1
        task = asyncio.create_task(self._send(index, _snapshot(message)))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() and not self._closing and self._error is None:
            self._error = asyncio.CancelledError()  # by someone else: its message must not be missing in silence
        self._more.set()

    async def _send(self, index: int, message: Message) -> None:
        message_id = ""
        try:
            try:
                outgoing = await self._prepare(index, message)
            finally:
                self._preparing -= 1
                self._less.set()
            message_id = outgoing.message_id
            receipt = await self._deliver(outgoing)
        except SendCancelled as cancelled:
            receipt = cancel(cancelled, self._transport)
        except EmailError as error:
            receipt = Receipt(message_id, DeliveryMode.INLINE, error=error)
        except Exception as error:  # noqa: BLE001 - raised to the caller after the receipts
            self._fail(error)
            return
        if receipt.error is not None:
            _forget_frames(receipt.error)
        self._receipts.append(receipt._replace(index=index))

    async def _prepare(self, index: int, message: Message) -> OutgoingMessage:
        if isinstance(message, EmailMessageData):
            return await prepare_data(self._mailer, message)
        if not isinstance(message, Mapping):
            raise TypeError(
                f"send_many(): message {index} must be EmailMessageData or a dict, not {type(message).__name__}"
            )
        return await compose(self._mailer, **_arguments(index, message))

    async def _deliver(self, message: OutgoingMessage) -> Receipt:
        self._bytes += message.size
        try:
            if self._pipeline:
                return await deliver_inline(message, self._transport, pipeline=True)
            async with self._slots:  # waits here without a limit; in the pool the wait is limited
                return await deliver_inline(message, self._transport)
        finally:
            self._bytes -= message.size

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        if asyncio.current_task() is not self._reader:
            self._reader.cancel()


def _snapshot(message: Any) -> Any:
    """Copy a message and its lists, which a generator may refill for the next message."""
    if isinstance(message, EmailMessageData):
        return replace(message, **{name: _copy_of(getattr(message, name)) for name in _FIELDS})
    if isinstance(message, Mapping):
        return {key: _copy_of(value) for key, value in message.items()}
    return message


def _copy_of(value: Any) -> Any:
    if hasattr(value, "to_ical"):  # icalendar's are dicts, whose own copy would lack their components
        return deepcopy(value)
    return value.copy() if isinstance(value, list | dict) else value


def _arguments(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for ``compose``; a schedule or a mode other than inline is refused."""
    unknown = message.keys() - _KEYS
    if unknown or "recipients" not in message:
        problem = (
            f"has unknown arguments: {cut(', '.join(_with_hint(name) for name in sorted(unknown, key=str)), 1000)}"
            if unknown
            else "has no recipients"
        )
        raise TypeError(f"send_many(): message {index} {problem}")
    schedule = Schedule.make(**{key: message.get(key) for key in ("send_at", "delay", "expires_at")})
    if schedule.later:
        raise InvalidMessage("send_at, delay: send_many() delivers at once; use send_email()")
    if message.get("timeout") is not None:
        raise InvalidMessage("timeout: send_many() waits for its connections as long as needed; use send_email()")
    if message.get("background"):
        raise InvalidMessage("background: send_many() delivers inline; leave it out, or use send_email()")
    return {key: value for key, value in message.items() if key not in _OWN_KEYS}


def _with_hint(name: object) -> str:
    return f"{cut(shown(name))}{keyword_hint(name, _KEYS) if isinstance(name, str) else ''}"


def _forget_frames(error: BaseException | None) -> None:
    """Drop an error's frames, which would keep messages alive for as long as its receipt is kept."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
