"""``send_many``: many messages in one go, delivered at once, each with a receipt of its own."""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from dataclasses import fields, replace
from itertools import count
from typing import Any

from openviper.core.email.delivery import Mailer, current_mailer, deliver_inline
from openviper.core.email.delivery.schedule import Schedule
from openviper.core.email.errors import EmailError, InvalidMessage
from openviper.core.email.events import DeliveryMode, Receipt
from openviper.core.email.message import EmailMessageData, OutgoingMessage
from openviper.core.email.sending.compose import compose, prepare_data
from openviper.core.email.sending.single import submit_email

__all__ = ["send_many"]

Message = EmailMessageData | Mapping[str, Any]

# Overlapped messages are many to a connection: so many more are prepared ahead, while they are small.
_OVERLAPPED = 20
_OVERLAPPED_BYTES = 256 * 1024

_OWN_KEYS = frozenset({"fail_silently", "background", "send_at", "delay", "expires_at"})
_KEYS = inspect.signature(submit_email).parameters.keys()
_FIELDS = tuple(field.name for field in fields(EmailMessageData))


async def send_many(
    messages: Iterable[Message] | AsyncIterable[Message], *, pipeline: bool = False
) -> AsyncGenerator[Receipt, None]:
    """Deliver ``messages`` and yield a receipt for each, in the order in which they are done.

    Every message leaves inline, also in a request and inside ``transaction()``: none is deferred, queued or held. A
    message that is not valid, or is not delivered, is a receipt with ``error``; ``index`` says which one it was.

    ``messages`` is read as far as receipts are taken, so it may be endless: about twice ``EMAIL["pool_size"]`` are
    prepared or under way (with ``pipeline`` twenty times as many small ones). A plain iterable is read on the event
    loop, which it must not block; use an async one for what waits. An async generator is closed at the end.

    Leaving the loop early gives up what has not been sent; what is on its way to the server at that moment may still
    arrive. ``contextlib.aclosing`` waits until everything is at rest.

    Args:
        messages: :class:`EmailMessageData`, sent as they are, or dicts with the arguments of :func:`send_email`. The
            object of one message may be filled anew for the next.
        pipeline: True lets small messages follow each other on a connection without waiting for answers, where the
            server offers PIPELINING and CHUNKING. When such a connection breaks, more messages than one may be
            uncertain (``DeliveryError.uncertain``).

    Raises:
        TypeError: a message is of another type, or has an unknown argument.
        ImproperlyConfigured: a setting is missing or wrong.

    Whatever else is raised by ``messages`` is raised here as well; in each case after the receipts of the messages that
    were read before.
    """
    run = _Run(await current_mailer(), messages, pipeline=pipeline)
    try:
        while (receipt := await run.next()) is not None:
            yield receipt
    finally:
        await run.aclose()


class _Run:
    """A task reads the messages, one for each message prepares and delivers it; ``next`` hands the receipts out."""

    def __init__(self, mailer: Mailer, messages: Iterable[Message] | AsyncIterable[Message], *, pipeline: bool) -> None:
        self._mailer = mailer
        self._transport = mailer.transport
        self._pipeline = pipeline and self._transport.pipelines
        self._ahead = 2 * mailer.settings.pool_size
        self._slots = asyncio.Semaphore(mailer.settings.pool_size)
        self._held = 0  # read, and the receipt not handed out yet
        self._preparing = 0
        self._bytes = 0  # of the messages that are ready and not delivered
        self._ready: deque[Receipt] = deque()
        self._error: BaseException | None = None
        self._closing = False
        self._more = asyncio.Event()  # something for next()
        self._less = asyncio.Event()  # something for the reader
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader = asyncio.create_task(self._read(messages))
        self._reader.add_done_callback(self._ended)

    async def next(self) -> Receipt | None:
        """The next receipt, or None after the last."""
        while not self._ready:
            if self._reader.done() and not self._tasks:
                if self._error is not None:
                    raise self._error
                return None
            self._more.clear()
            await self._more.wait()
        self._held -= 1
        self._less.set()
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Cancel what is not done, and wait for its end."""
        self._closing = True
        tasks = [self._reader, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _has_room(self) -> bool:
        if self._held < self._ahead:
            return True
        return (
            self._pipeline
            and self._held < self._ahead * _OVERLAPPED
            and self._preparing < self._ahead
            and self._bytes < self._ahead * _OVERLAPPED_BYTES
        )

    async def _read(self, messages: Iterable[Message] | AsyncIterable[Message]) -> None:
        try:
            if isinstance(messages, AsyncIterable):
                await self._read_async(messages)
            else:
                for index, message in enumerate(messages):
                    self._start(index, message)
                    await self._room()
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
                await self._room()
        finally:
            # Nobody else can close one that was made for this call, and what it holds may be a connection.
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()

    async def _room(self) -> None:
        while not self._has_room:
            self._less.clear()
            await self._less.wait()

    def _start(self, index: int, message: Message) -> None:
        self._held += 1
        self._preparing += 1
        task = asyncio.create_task(self._send(index, _as_it_is_now(message)))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() and not self._closing and self._error is None:
            self._error = asyncio.CancelledError()  # by someone else: its messages may not be missed in silence
        self._more.set()

    async def _send(self, index: int, message: Message) -> None:
        message_id = ""
        try:
            try:
                outgoing = await self._prepared(index, message)
            finally:
                self._preparing -= 1
                self._less.set()
            message_id = outgoing.message_id
            receipt = await self._delivered(outgoing)
        except EmailError as error:
            receipt = Receipt(message_id, DeliveryMode.INLINE, error=error)
        except Exception as error:  # noqa: BLE001 - raised to the caller after the receipts
            self._fail(error)
            return
        if receipt.error is not None:
            _forget_frames(receipt.error)
        self._ready.append(replace(receipt, index=index))

    async def _prepared(self, index: int, message: Message) -> OutgoingMessage:
        if isinstance(message, EmailMessageData):
            return await prepare_data(self._mailer.settings, message)
        if not isinstance(message, Mapping):
            raise TypeError(
                f"send_many(): message {index} must be EmailMessageData or a dict, not {type(message).__name__}"
            )
        return await compose(self._mailer, **_arguments(index, message))

    async def _delivered(self, message: OutgoingMessage) -> Receipt:
        self._bytes += message.size
        try:
            if self._pipeline:
                return await deliver_inline(message, self._transport, pipeline=True)
            async with self._slots:  # here they may wait for as long as it takes, in the pool only for a while
                return await deliver_inline(message, self._transport)
        finally:
            self._bytes -= message.size

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        if asyncio.current_task() is not self._reader:
            self._reader.cancel()


def _as_it_is_now(message: Any) -> Any:
    """A copy, as a generator may fill the same object, and the same lists in it, for the message that follows."""
    if isinstance(message, EmailMessageData):
        return replace(message, **{name: _own(getattr(message, name)) for name in _FIELDS})
    if isinstance(message, Mapping):
        return {key: _own(value) for key, value in message.items()}
    return message


def _own(value: Any) -> Any:
    return value.copy() if isinstance(value, list | dict) else value


def _arguments(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """What ``compose`` takes; what says when and in which mode the message is to leave can only say: now."""
    unknown = message.keys() - _KEYS
    if unknown or "recipients" not in message:
        problem = f"has unknown arguments: {', '.join(sorted(map(str, unknown)))}" if unknown else "has no recipients"
        raise TypeError(f"send_many(): message {index} {problem}")
    schedule = Schedule.make(**{key: message.get(key) for key in ("send_at", "delay", "expires_at")})
    if schedule.later:
        raise InvalidMessage("send_at, delay: send_many() delivers at once; use send_email()")
    if message.get("background"):
        raise InvalidMessage("background: send_many() delivers inline; leave it out, or use send_email()")
    return {key: value for key, value in message.items() if key not in _OWN_KEYS}


def _forget_frames(error: BaseException | None) -> None:
    """Receipts may be kept in number, and frames would keep messages alive."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
