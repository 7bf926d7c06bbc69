"""Send many messages: ``send_many`` delivers or queues them and yields a receipt for each."""

import asyncio
import warnings
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sized
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from openviper.core.email.delivery import Mailer, cancel, current_mailer, deliver_inline
from openviper.core.email.delivery.enqueueing import require_queue
from openviper.core.email.errors import EmailError
from openviper.core.email.events import DeliveryMode, Receipt
from openviper.core.email.message import EmailMessageData, OutgoingMessage, SendCancelled
from openviper.core.email.sending.bulk_messages import Defaults, Message, copy_message, forget_frames, prepare_inline
from openviper.core.email.sending.bulk_queue import QueueRun

__all__ = ["BulkProgress", "send_many"]

# Several pipelined messages share a connection, so this many times more are prepared ahead, while they are small.
_PIPELINED = 20
_PIPELINED_BYTES = 256 * 1024


class BulkProgress(NamedTuple):
    """Progress of a ``send_many`` run: how many messages have a receipt, how many of these failed, and the total.

    ``total`` is None if ``messages`` has no length.
    """

    done: int
    failed: int
    total: int | None


def send_many(
    messages: Iterable[Message] | AsyncIterable[Message],
    *,
    background: bool = False,
    pipeline: bool = False,
    progress: Callable[[BulkProgress], object] | None = None,
    mailer: str | None = None,
    stream: str | None = None,
    unsubscribe: bool = False,
) -> AsyncGenerator[Receipt, None]:
    """Deliver ``messages``, or queue them, and yield a receipt for each as soon as it is done.

    Every message is delivered inline, even in a request or inside ``transaction()``: none is deferred or held. With
    ``background``, all are queued in batches instead, and a receipt means that the broker or the database outbox has
    accepted the message. The outbox is used inside ``transaction()``, as part of it, and outside one if no broker
    answers. A message that is invalid, could not be delivered or was not accepted yields a receipt with ``error`` set;
    ``index`` identifies the message.

    ``messages`` is read only as fast as receipts are consumed, so it may be endless: about twice ``EMAIL["pool_size"]``
    messages are in progress (with ``pipeline``, twenty times as many small ones); with ``background``, two batches of
    200 messages or about 1 MB. A plain iterable is read on the event loop, which it must not block; use an async
    iterable if reading has to wait. An async generator is closed at the end.

    Leaving the loop early gives up unsent messages; those in progress may still be delivered. Use
    ``contextlib.aclosing`` to wait until none is in progress.

    Args:
        messages: :class:`EmailMessageData`, sent as they are, or dicts with the arguments of :func:`send_email`. The
            same object may be changed and reused for the next message.
        background: True queues the messages for the workers, and never delivers them inline. A message may set
            ``send_at``, ``delay`` and ``expires_at`` in this mode only. If the broker fails during the run, the
            messages that it has not accepted get receipts with :class:`QueueUnavailable`, and later ones are queued
            once it answers again.
        pipeline: True sends small messages on a connection without waiting for replies, if the server offers PIPELINING
            (RFC 2920) and CHUNKING (RFC 3030). When such a connection breaks, several messages may be uncertain
            (``DeliveryError.uncertain``). It has no effect with ``background``.
        progress: Function called on the event loop with a :class:`BulkProgress` before each receipt is yielded, or once
            per batch with ``background``. It must not block; an exception in it ends the run and is raised to the
            caller.
        mailer: A name in ``EMAIL["mailers"]``, for messages that do not set one; None is the default mailer.
        stream: The stream for messages that do not set one.
        unsubscribe: Default for messages that do not set it. With True, each message has the headers and the link with
            which its recipient opts out of its stream (see :func:`submit_email`).

    Raises:
        InvalidMessage: there is no mailer of that name.
        TypeError: a message has the wrong type or an unknown argument.
        ImproperlyConfigured: a setting is missing or wrong.
        InvalidMessage: ``background`` was used inside ``transaction()`` without ``EMAIL["outbox"]``, so a rollback
            could not undo the queueing; nothing was read.
        QueueUnavailable: ``background`` was used, but there is neither an outbox nor a broker that answers; nothing was
            read.
        DeliveryError: your own backend cannot be opened; nothing was read.

    Exceptions that ``messages`` raises are raised to the caller as well. Every error is raised after the receipts of
    earlier messages.
    """
    defaults = Defaults(mailer, stream, unsubscribe)
    return _Receipts(_receipts(messages, defaults, background=background, pipeline=pipeline, progress=progress))


class _Receipts(AsyncGenerator[Receipt, None]):
    """The generator of a ``send_many``, which sends nothing before it is iterated: says so if it never is."""

    def __init__(self, receipts: AsyncGenerator[Receipt, None]) -> None:
        self._receipts = receipts
        self._used = False

    def __aiter__(self) -> AsyncGenerator[Receipt, None]:
        self._used = True
        return self._receipts  # itself, so that a receipt costs no further call

    def __anext__(self) -> Coroutine[Any, Any, Receipt]:
        return aiter(self).__anext__()

    def asend(self, value: None) -> Coroutine[Any, Any, Receipt]:
        return aiter(self).asend(value)

    def athrow(self, *error: Any) -> Coroutine[Any, Any, Receipt]:
        return aiter(self).athrow(*error)

    def aclose(self) -> Coroutine[Any, Any, None]:
        return aiter(self).aclose()

    def __del__(self) -> None:
        if not self._used:
            warnings.warn(f"send_many() was never iterated, so nothing was sent: {_LOOP}", RuntimeWarning, stacklevel=2)

    if not TYPE_CHECKING:  # type checkers know that it is not awaited

        def __await__(self):
            self._used = True
            raise TypeError(f"iterate over send_many() instead of awaiting it: {_LOOP}")


_LOOP = "async for receipt in send_many(...)"


async def _receipts(
    messages: Iterable[Message] | AsyncIterable[Message],
    defaults: Defaults,
    *,
    background: bool,
    pipeline: bool,
    progress: Callable[[BulkProgress], object] | None,
) -> AsyncGenerator[Receipt, None]:
    """Implement :func:`send_many`."""
    if isinstance(messages, Mapping | EmailMessageData):
        raise TypeError("send_many(): takes many messages; give a list, or one message to send_email()")
    loop_mailer = await current_mailer()
    run: _Run | QueueRun
    if background:
        loop_mailer.settings.of_mailer(defaults.mailer)
        run = QueueRun(loop_mailer, await require_queue(loop_mailer.transport, loop_mailer.outbox), messages, defaults)
    else:
        run = _Run(loop_mailer, messages, defaults, pipeline=pipeline)
    done = failed = 0
    total = len(messages) if isinstance(messages, Sized) else None
    try:
        while receipts := await run.next():
            done += len(receipts)
            failed += sum(receipt.error is not None for receipt in receipts)
            if progress is not None:
                progress(BulkProgress(done, failed, total))
            for receipt in receipts:
                yield receipt
    finally:
        await run.aclose()


class _Run:
    """Reads messages in one task, and prepares and delivers each in a task of its own; ``next`` returns receipts."""

    def __init__(
        self,
        mailer: Mailer,
        messages: Iterable[Message] | AsyncIterable[Message],
        defaults: Defaults,
        *,
        pipeline: bool,
    ) -> None:
        self._mailer = mailer
        self._defaults = defaults.values()
        pool_size = mailer.settings.of_mailer(defaults.mailer).pool_size
        self._transport = mailer.transport
        self._pipeline = pipeline and self._transport.pipelines
        self._ahead = 2 * pool_size
        self._slots = asyncio.Semaphore(pool_size)
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

    async def next(self) -> tuple[Receipt, ...]:
        """Return the next receipt, or none after the last."""
        while not self._receipts:
            if self._reader.done() and not self._tasks:
                if self._error is not None:
                    raise self._error
                return ()
            self._more.clear()
            await self._more.wait()
        self._in_progress -= 1
        self._less.set()
        return (self._receipts.popleft(),)

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
        task = asyncio.create_task(self._send(index, copy_message(message, self._defaults)))
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
                outgoing = await prepare_inline(self._mailer, index, message)
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
            forget_frames(receipt.error)
        self._receipts.append(receipt._replace(index=index))

    async def _deliver(self, message: OutgoingMessage) -> Receipt:
        self._bytes += message.size
        try:
            if self._pipeline:
                return await deliver_inline(message, self._transport, self._mailer.settings, pipeline=True)
            async with self._slots:  # waits here without a limit; in the pool the wait is limited
                return await deliver_inline(message, self._transport, self._mailer.settings)
        finally:
            self._bytes -= message.size

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        if asyncio.current_task() is not self._reader:
            self._reader.cancel()
