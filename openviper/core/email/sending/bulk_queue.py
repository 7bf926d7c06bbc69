"""Queue the messages of a ``send_many`` in batches: while one batch is on its way, the next one is prepared."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import Any, NamedTuple

from openviper.core.email.delivery import Mailer, cancel
from openviper.core.email.delivery.enqueueing import enqueue_many
from openviper.core.email.delivery.schedule import Schedule
from openviper.core.email.errors import EmailError
from openviper.core.email.events import DeliveryMode, Receipt, listening
from openviper.core.email.message import OutgoingMessage, SendCancelled
from openviper.core.email.queue import JobQueue
from openviper.core.email.sending.bulk_messages import Defaults, Message, copy_message, forget_frames, prepare_for_queue

__all__ = ["QueueRun"]

_MOST, _MOST_BYTES = 200, 1024 * 1024  # of a batch
_PREPARERS = 4  # messages whose attachments are loaded at the same time
_YIELD_EVERY = 0.002  # seconds for which preparing may keep the event loop


class _Prepared(NamedTuple):
    position: int
    message: OutgoingMessage
    schedule: Schedule


class QueueRun:
    """Prepares messages in a few tasks; ``next`` enqueues what is ready and returns the receipts."""

    def __init__(
        self,
        mailer: Mailer,
        queue: JobQueue,
        messages: Iterable[Message] | AsyncIterable[Message],
        defaults: Defaults,
    ) -> None:
        self._mailer = mailer
        self._transport = mailer.transport
        self._queue = queue
        self._source = _Source(messages, defaults.values())
        self._preparing = 0
        self._idle: set[asyncio.Task[None]] = set()  # preparers that have no message
        self._ready: list[_Prepared] = []
        self._bytes = 0  # of the ready messages
        self._receipts: list[Receipt] = []  # of messages that are not to be queued
        self._error: BaseException | None = None
        self._closing = False
        self._yielded = time.monotonic()
        self._more = asyncio.Event()  # something for next()
        self._less = asyncio.Event()  # room for the preparers
        self._enqueueing: asyncio.Task[list[Receipt]] | None = None
        self._preparers = {asyncio.create_task(self._prepare_all()) for _ in range(_PREPARERS)}
        for task in self._preparers:
            task.add_done_callback(self._ended)

    async def next(self) -> list[Receipt]:
        """Enqueue what is ready and return the receipts, in the order of the batch; none after the last."""
        while not self._ready and not self._receipts:
            if not self._preparers:
                if self._error is not None:
                    raise self._error
                return []
            self._more.clear()
            await self._more.wait()
        batch, self._ready, self._bytes = self._ready, [], 0
        receipts, self._receipts = self._receipts, []
        self._less.set()
        if batch:
            receipts += await self._enqueue(batch)
        return receipts

    async def aclose(self) -> None:
        """Stop preparing, and wait until the batch on its way is accepted or refused."""
        self._closing = True
        tasks = [*self._preparers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._enqueueing is not None:
            await asyncio.wait([self._enqueueing])
        await self._source.aclose()

    async def _enqueue(self, batch: list[_Prepared]) -> list[Receipt]:
        # A task of its own: the broker accepts the batch although the caller is cancelled, and aclose() waits for it.
        self._enqueueing = asyncio.create_task(self._enqueue_batch(batch))
        receipts = await asyncio.shield(self._enqueueing)
        self._enqueueing = None
        for receipt in receipts:
            forget_frames(receipt.error)
        return receipts

    async def _enqueue_batch(self, batch: list[_Prepared]) -> list[Receipt]:
        # The outbox inserts by the caller's own session, which the messages may be read from.
        async with self._source.paused() if self._queue.held else nullcontext():
            return await enqueue_many(self._queue, self._transport, batch, self._mailer.settings)

    @property
    def _has_room(self) -> bool:
        waiting = len(self._ready) + len(self._receipts) + self._preparing
        return waiting < _MOST and self._bytes < _MOST_BYTES

    async def _prepare_all(self) -> None:
        try:
            while self._error is None:
                taken = self._source.take_now() if self._has_room else None
                if taken is None and (taken := await self._take()) is None:
                    return
                await self._prepare(*taken)
                self._more.set()
                if time.monotonic() - self._yielded > _YIELD_EVERY:
                    await asyncio.sleep(0)
                    self._yielded = time.monotonic()
        except Exception as error:  # noqa: BLE001 - raised to the caller after the receipts
            self._error = self._error or error
            for task in self._idle:
                task.cancel()

    async def _take(self) -> tuple[int, Message] | None:
        """Return the next message when there is room for it, or None after the last."""
        task = asyncio.current_task()
        assert task is not None, "called in a coroutine"
        self._idle.add(task)
        try:
            while not self._has_room:
                self._less.clear()
                await self._less.wait()
            return await self._source.take()
        finally:
            self._idle.discard(task)

    async def _prepare(self, index: int, message: Message) -> None:
        self._preparing += 1
        try:
            serialised = self._queue.reads_content or self._transport.observed or listening()
            prepared, schedule = await prepare_for_queue(self._mailer, index, message, serialised=serialised)
        except SendCancelled as cancelled:
            self._receipts.append(cancel(cancelled, self._transport)._replace(mode=DeliveryMode.QUEUED, index=index))
        except EmailError as error:
            forget_frames(error)
            self._receipts.append(Receipt("", DeliveryMode.QUEUED, error=error, index=index))
        else:
            self._ready.append(_Prepared(index, prepared, schedule))
            self._bytes += prepared.size
        finally:
            self._preparing -= 1

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._preparers.discard(task)
        if task.cancelled() and not self._closing and self._error is None:
            self._error = asyncio.CancelledError()  # by someone else: its message must not be missing in silence
        self._more.set()


_END: Any = object()


class _Source:
    """Hands out messages with their indexes, copied, since one object may be refilled for the next message."""

    def __init__(self, messages: Iterable[Message] | AsyncIterable[Message], defaults: Mapping[str, Any]) -> None:
        self._defaults = defaults
        self._index = 0
        self._ended = False
        self._lock = asyncio.Lock()
        self._waiting: AsyncIterator[Message] | None = None
        self._plain: Iterator[Message] | None = None
        if isinstance(messages, AsyncIterable):
            self._waiting = aiter(messages)
        else:
            self._plain = iter(messages)

    def take_now(self) -> tuple[int, Message] | None:
        """Return the next message of a plain iterable; None after the last, and of an async one."""
        return None if self._ended or self._plain is None else self._numbered(next(self._plain, _END))

    async def take(self) -> tuple[int, Message] | None:
        """Return the next message, or None after the last."""
        if self._waiting is None:
            return self.take_now()
        async with self._lock:
            return None if self._ended else self._numbered(await anext(self._waiting, _END))

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Read no message of an async iterable during a block."""
        async with self._lock:
            yield

    def _numbered(self, message: Message | None) -> tuple[int, Message] | None:
        if message is _END:
            self._ended = True
            return None
        self._index += 1
        return self._index - 1, copy_message(message, self._defaults)

    async def aclose(self) -> None:
        """Close an async generator, which nobody else can if it was made for this call."""
        if isinstance(self._waiting, AsyncGenerator):
            await self._waiting.aclose()
