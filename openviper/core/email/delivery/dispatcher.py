"""Deliver the mail of requests after their responses, with retries and within bounds."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from openviper.core.email.backends.attempt import Attempt, mark_offered
from openviper.core.email.delivery.keyed_send import KeyedSend, report_dropped, report_duplicate
from openviper.core.email.delivery.last_mile import (
    FIRST_ATTEMPT,
    attempt_delivery,
    fail_attempt,
    missing_recipients,
    record_end,
)
from openviper.core.email.delivery.outbox import StoredMessage
from openviper.core.email.delivery.pause.watch import PauseWatch
from openviper.core.email.delivery.transport import Transport
from openviper.core.email.errors import DuplicateKey, EmailError, KeysUnavailable, QueueUnavailable
from openviper.core.email.events import NOTHING, Circumstances, DeliveryMode, Receipt
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue import QueueEntry
from openviper.core.email.queue.job import AddResult, Progress
from openviper.core.email.queue.keys import KeyRecord
from openviper.core.email.queue.retry import Decision, DispatcherPolicy, Postpone, Retry, RetryPolicy
from openviper.core.email.settings import DEFAULT_MAILER
from openviper.text import counted

__all__ = ["Delivery", "Dispatcher"]

logger = logging.getLogger("openviper.email")

_MOST, _MOST_BYTES = 100, 1024 * 1024  # of a batch that is given to the broker at shutdown
_RELAYED = 1.0  # seconds after which the relay looks at what is left to it
_LEAST = 2.0  # seconds that the broker has for it, however short shutdown_timeout is


@dataclass(slots=True, eq=False)
class Delivery:
    """A message that the dispatcher delivers.

    ``admitted`` resolves when there is room for it, ``done`` when no further attempt is made here; neither has an
    error. ``stored``: its row in the outbox, whose relay makes the attempts after a first one that fails. ``keyed``:
    its idempotency key, which may not be claimed yet; None without one. ``paused``: sending is paused, and it
    waits here until it may be sent. ``since``: when it was sent (Unix seconds), for events.
    """

    message: OutgoingMessage
    transport: Transport
    done: asyncio.Future[None]
    admitted: asyncio.Future[None]
    progress: Progress = FIRST_ATTEMPT
    last_attempt: bool = False
    paused: bool = False
    settled: asyncio.Future[None] | None = None
    timer: asyncio.TimerHandle | None = None
    attempt: Attempt = field(default_factory=Attempt)
    stored: StoredMessage | None = None
    keyed: KeyedSend | None = None
    since: float | None = None

    def wait_settled(self) -> "asyncio.Future[None]":
        """Return a future that resolves when it is done, or waits for the end of a pause: whichever comes first.

        Nobody should wait for the end of a pause, which may be hours away.
        """
        if self.settled is None:
            self.settled = self.done.get_loop().create_future()
            self.done.add_done_callback(lambda _: self.settle())
            if self.paused:
                self.settle()
        return self.settled

    def settle(self) -> None:
        """Resolve what ``wait_settled`` has returned, if it was asked for."""
        if self.settled is not None and not self.settled.done():
            self.settled.set_result(None)


class Dispatcher:
    """Delivers accepted messages in tasks of its own, those of each mailer in the order accepted.

    At most ``concurrency`` are sent at a time, and of a mailer in ``mailers`` at most as many as it says there: the
    mail of one mailer does not wait for that of another.

    A temporary failure is retried after each of ``retry_delays`` (seconds); a final one is logged once with its message
    id. The dispatcher is full from ``max_messages`` messages or ``max_bytes`` of content on; what it accepts then is
    kept all the same, and is admitted when there is room. ``allow_partial`` is the setting.

    While sending is paused, messages wait within these bounds and no attempt is counted; those in the outbox are left
    to its relay. At shutdown they are given to the broker; what it does not take is logged as lost, and never sent.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        max_messages: int,
        max_bytes: int,
        retry_delays: tuple[float, ...],
        allow_partial: bool = True,
        mailers: Mapping[str, int] = NOTHING,
    ) -> None:
        self._concurrency = {DEFAULT_MAILER: concurrency, **mailers}
        self._busy = dict.fromkeys(self._concurrency, 0)
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._policy = DispatcherPolicy(retry_delays, allow_partial=allow_partial)
        self._no_retries = DispatcherPolicy((), allow_partial=allow_partial)
        self._without_pauses = DispatcherPolicy((0.0,) * len(retry_delays), allow_partial=allow_partial)
        self._arriving: deque[Delivery] = deque()
        self._ready: dict[str, deque[Delivery]] = {name: deque() for name in self._concurrency}
        self._waiting: set[Delivery] = set()
        self._sending: dict[asyncio.Task[None], Delivery] = {}
        self._interrupted: list[Delivery] = []  # their tasks were cancelled from outside
        self._paused: dict[Delivery, None] = {}  # in order
        self._handing_over: asyncio.Task[None] | None = None
        self._messages = 0
        self._bytes = 0
        self._draining = False
        self.closed = False

    @property
    def full(self) -> bool:
        """True when a new message would have to wait for room."""
        return bool(self._arriving) or self._messages >= self._max_messages or self._bytes >= self._max_bytes

    def has_room(self, size: int) -> bool:
        """True when a new message of ``size`` bytes need not wait, and is not larger than ``max_bytes`` by itself."""
        return size <= self._max_bytes and not self.full

    @property
    def pending(self) -> int:
        """Count the messages that are accepted and not done."""
        return self._messages + len(self._arriving)

    @property
    def pending_bytes(self) -> int:
        """Count the bytes of content of those messages."""
        return self._bytes + sum(delivery.message.size for delivery in self._arriving)

    def accept(
        self,
        message: OutgoingMessage,
        transport: Transport,
        stored: StoredMessage | None = None,
        keyed: KeyedSend | None = None,
        expires_at: float | None = None,
        since: float | None = None,
    ) -> Delivery:
        """Take over ``message``: from here on the dispatcher delivers it, whatever becomes of the caller's task.

        No attempt begins after ``expires_at`` (Unix seconds); None sets no limit. ``since``: when it was sent; None:
        now.
        """
        loop = asyncio.get_running_loop()
        delivery = Delivery(message, transport, loop.create_future(), loop.create_future(), stored=stored, keyed=keyed)
        delivery.since = time.time() if since is None else since
        if stored is not None:
            delivery.progress = stored.progress
        if expires_at is not None:
            delivery.progress = replace(delivery.progress, expires_at=expires_at)
        if self.closed:
            self._abandon(delivery, "the application has shut down; it was not sent")
        else:
            self._arriving.append(delivery)
            self._admit()
        return delivery

    def retry_now(self, message_id: str) -> bool:
        """Retry a waiting message at once; False when none with this id waits.

        This attempt is an additional one: a further failure is followed by the delay that was cut short.
        """
        for delivery in self._waiting:
            if delivery.message.message_id == message_id and delivery.timer is not None:
                delivery.timer.cancel()
                delivery.progress = replace(delivery.progress, attempts=delivery.progress.attempts - 1)
                self._retry(delivery)
                return True
        return False

    async def drain(self, timeout: float, *, deadline: float | None = None) -> None:
        """Deliver what is left within ``timeout`` seconds, then close; what could not be is logged one by one.

        ``deadline`` is the loop's time at which these are over; None: they begin now.

        A message that waits for its retry gets one attempt at once, and so does one that fails meanwhile. One that may
        not be sent, because sending is paused, is given to the broker.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout if deadline is None else deadline
        self._draining = True
        self._resume_interrupted()
        for delivery in tuple(self._waiting):
            self._retry_last(delivery)
        self._hand_over_paused()
        if self._handing_over is not None:
            await asyncio.wait([self._handing_over], timeout=max(deadline - loop.time(), _LEAST))
        # In rounds, since the last tasks of an application may still send.
        while (pending := self._pending()) and (left := deadline - loop.time()) > 0:
            await asyncio.wait([delivery.done for delivery in pending], timeout=left)
        self.closed = True
        for delivery in self._pending():
            if delivery.paused:
                self._abandon(delivery, "sending is paused, and the broker did not accept it in time; it was not sent")
                continue
            unsent = "it was not sent again" if delivery.progress.uncertain else "it was not sent"
            maybe_sent = delivery in self._sending.values() and not delivery.attempt.nothing_sent
            reason = "it was being sent and may have been delivered" if maybe_sent else unsent
            self._abandon(delivery, f"the shutdown_timeout of {timeout:g} s has passed; {reason}")
        tasks = [*self._sending, *([] if self._handing_over is None else [self._handing_over])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _resume_interrupted(self) -> None:
        """Attempt again what a cancelled task has not sent, and report what it may have sent.

        The end of an event loop cancels all tasks, also where a server ends without the application's shutdown.
        """
        interrupted, self._interrupted = self._interrupted, []
        for delivery in interrupted:
            if delivery.attempt.nothing_sent:
                self._retry_last(delivery)
            else:
                reason = "the event loop ended while it was being sent; it may have been delivered"
                self._abandon(delivery, reason, attempts=delivery.progress.attempts + 1)

    def _pending(self) -> list[Delivery]:
        ready = [delivery for each in self._ready.values() for delivery in each]
        places = (*self._sending.values(), *self._waiting, *self._paused, *ready, *self._arriving)
        # Once each: a message whose attempt has just ended may already wait for the next one.
        return list(dict.fromkeys(delivery for delivery in places if not delivery.done.done()))

    def _admit(self) -> None:
        while self._arriving:
            size = self._arriving[0].message.size
            # A message larger than the whole bound still passes, alone.
            if self._messages and (self._messages >= self._max_messages or self._bytes + size > self._max_bytes):
                break
            delivery = self._arriving.popleft()
            self._messages += 1
            self._bytes += size
            delivery.admitted.set_result(None)
            self._ready[self._mailer_of(delivery)].append(delivery)
        self._start()

    def _start(self) -> None:
        for mailer, ready in self._ready.items():
            while ready and self._busy[mailer] < self._concurrency[mailer]:
                delivery = ready.popleft()
                pause = delivery.transport.pause
                if pause is not None and pause.on and (error := pause.error(delivery.message.mailer)) is not None:
                    chosen = Circumstances(DeliveryMode.DEFERRED)
                    delivery.transport.publish("paused", delivery.message, str(error), circumstances=chosen)
                    self._hold(delivery, pause)
                    continue
                self._busy[mailer] += 1
                # An empty context: the task outlives the request and must not see its outbox or transaction.
                task = asyncio.get_running_loop().create_task(self._attempt(delivery), context=Context())
                self._sending[task] = delivery
                task.add_done_callback(self._ended, context=Context())

    def _ended(self, task: asyncio.Task[None]) -> None:
        delivery = self._sending.pop(task)
        self._busy[self._mailer_of(delivery)] -= 1
        if task.cancelled() and not delivery.done.done():
            self._interrupted.append(delivery)
            if self._draining and not self.closed:
                self._resume_interrupted()
        if not self.closed:
            self._start()

    def _mailer_of(self, delivery: Delivery) -> str:
        """Return the mailer whose mail it waits with; an unknown one fails in its attempt."""
        mailer = delivery.message.mailer
        return mailer if mailer in self._ready else DEFAULT_MAILER

    async def _attempt(self, delivery: Delivery) -> None:
        if delivery.stored is not None and not await self._begin(delivery, delivery.stored):
            return
        delivery.attempt = Attempt()
        delivery.attempt.activate()
        if delivery.keyed is None:
            decision: Decision | None = await self._send(delivery)
        else:
            decision = await self._send_keyed(delivery, delivery.keyed)
        if not delivery.done.done():  # else the end of the drain has cut the attempt short and reported it
            if decision is None:
                self._finish(delivery)
            else:
                self._follow(delivery, decision)

    async def _begin(self, delivery: Delivery, stored: StoredMessage) -> bool:
        """True if the attempt may be made: the row is ours, and the outbox has noted what it has to note."""
        delivery.attempt = Attempt()
        try:
            with delivery.attempt.active():
                begun = await stored.begin()
        except QueueUnavailable as error:
            logger.info("message %s is left to the relay: %s", delivery.message.message_id, error)
            if not delivery.done.done():
                self._give_to_relay(delivery, stored, str(error))
            return False
        if not begun:
            logger.warning("message %s is left to the process that has taken it over", delivery.message.message_id)
            if not delivery.done.done():
                self._finish(delivery)
        return begun

    def _give_to_relay(self, delivery: Delivery, stored: StoredMessage, reason: str) -> None:
        if delivery.keyed is not None and delivery.keyed.claimed:  # the outbox has accepted the message
            delivery.keyed.settle_soon(Receipt(delivery.message.message_id, DeliveryMode.DEFERRED))
        stored.settle(Retry(delivery.progress, _RELAYED, reason))
        self._finish(delivery)

    def _send(self, delivery: Delivery) -> Coroutine[Any, Any, Decision]:
        return attempt_delivery(
            delivery.message,
            delivery.transport,
            delivery.progress,
            self._policy_for(delivery),
            mode=DeliveryMode.DEFERRED,
            since=delivery.since,
        )

    async def _send_keyed(self, delivery: Delivery, keyed: KeyedSend) -> Decision | None:
        """Attempt the delivery if its key is ours; None if another send has it, and the message is dropped."""
        message, transport = delivery.message, delivery.transport
        delivery.attempt.waiting = True
        failure: EmailError | None = None
        duplicate = None
        try:
            duplicate = await keyed.begin()
        except (KeysUnavailable, DuplicateKey) as error:
            failure = error
        if duplicate is not None:
            failure = duplicate.error
            if failure is None:
                report_duplicate(message, transport, duplicate)
                if delivery.stored is not None:
                    delivery.stored.delete()
                return None
        if failure is not None:
            policy = self._policy_for(delivery)
            return fail_attempt(message, transport, delivery.progress, policy, failure, mode=DeliveryMode.DEFERRED)
        if delivery.stored is not None:  # the outbox has accepted it
            await keyed.settle(Receipt(message.message_id, DeliveryMode.DEFERRED))
        mark_offered()
        decision = await self._send(delivery)
        if delivery.stored is None and not delivery.done.done():
            await keyed.settle_decision(decision)
        return decision

    def _policy_for(self, delivery: Delivery) -> RetryPolicy:
        if delivery.stored is not None:
            return delivery.stored.policy
        if delivery.last_attempt:
            return self._no_retries
        return self._without_pauses if self._draining or delivery.transport.immediate else self._policy

    def _follow(self, delivery: Delivery, decision: Decision) -> None:
        if isinstance(decision, Postpone):
            assert delivery.transport.pause is not None, "it has just stopped the message"
            self._hold(delivery, delivery.transport.pause)
            return
        if delivery.stored is not None:
            delivery.stored.settle(decision)
        if delivery.stored is not None or not isinstance(decision, Retry):
            self._finish(delivery)
            return
        delivery.progress = decision.progress
        if decision.progress.pending is not None:
            delivery.message = delivery.message.for_recipients(decision.progress.pending)
        self._waiting.add(delivery)
        if self._draining:
            self._retry_last(delivery)
        else:
            loop = asyncio.get_running_loop()
            delivery.timer = loop.call_later(decision.delay, self._retry, delivery, context=Context())

    def _hold(self, delivery: Delivery, pause: PauseWatch) -> None:
        """Keep a message that may not be sent until ``pause`` says that something has changed."""
        first = not self._paused
        delivery.paused = True
        self._paused[delivery] = None
        delivery.settle()
        if delivery.stored is not None:
            # Not at once: what is finished admits others, and so on.
            asyncio.get_running_loop().call_soon(self._leave_to_relay, context=Context())
        if first:
            self._await_change(pause)
        if self._draining:
            self._hand_over_paused()

    def _await_change(self, pause: PauseWatch) -> None:
        # An empty context: what may be sent then must not see a request's transaction.
        loop = asyncio.get_running_loop()
        pause.call_at_change(partial(loop.call_soon_threadsafe, self._changed, pause, context=Context()))
        loop.call_soon(self._release_paused, pause, context=Context())  # it may have changed just before

    def _changed(self, pause: PauseWatch) -> None:
        if self._paused and not self.closed:
            self._await_change(pause)

    def _release_paused(self, pause: PauseWatch) -> None:
        """Send what may be sent again."""
        if self.closed or self._handing_over is not None:
            return
        released = [each for each in self._paused if not pause.on or pause.find(each.message.mailer) is None]
        for delivery in reversed(released):
            del self._paused[delivery]
            delivery.paused = False
            self._ready[self._mailer_of(delivery)].appendleft(delivery)
        if released:
            self._start()

    def _leave_to_relay(self) -> None:
        """Leave to the outbox's relay what it keeps and may not be sent, so that it fills no memory here.

        A key that is not claimed yet keeps a message here: the relay claims none.
        """
        for delivery in tuple(self._paused):
            keyed = delivery.keyed
            if delivery.stored is None or (keyed is not None and not keyed.claimed):
                continue
            del self._paused[delivery]
            delivery.paused = False
            self._give_to_relay(delivery, delivery.stored, "sending is paused")

    def _hand_over_paused(self) -> None:
        self._leave_to_relay()
        for delivery in [each for each in self._paused if each.stored is not None]:
            del self._paused[delivery]
            self._abandon(delivery, "sending is paused")
        if self._paused and self._handing_over is None:
            self._handing_over = asyncio.get_running_loop().create_task(self._enqueue_paused(), context=Context())

    async def _enqueue_paused(self) -> None:
        """Give what may not be sent to what keeps it over the shutdown, in batches."""
        while batch := _batch(self._paused):
            transport = batch[0].transport
            entries = [QueueEntry(each.message, progress=each.progress) for each in batch]
            results: Sequence[AddResult]
            try:
                results = await transport.enqueue_unsent(entries)
            except QueueUnavailable as error:
                results = [error] * len(batch)
            for delivery, result in zip(batch, results, strict=True):
                if delivery.done.done():
                    continue  # the drain took too long, and has reported it
                del self._paused[delivery]
                if isinstance(result, KeyRecord):
                    assert delivery.keyed is not None, "only a message with a key has another one's record"
                    report_dropped(delivery.message, transport, delivery.keyed.current_claim, result)
                    self._finish(delivery)
                elif isinstance(result, bool):
                    logger.info("message %s is queued: sending is paused", delivery.message.message_id)
                    if delivery.keyed is not None:  # a queue that keeps keys has recorded it as well
                        delivery.keyed.settle_soon(Receipt(delivery.message.message_id, DeliveryMode.QUEUED))
                    self._finish(delivery)
                else:
                    self._abandon(delivery, f"sending is paused, and it was not sent: {result}")
        self._handing_over = None

    def _retry_last(self, delivery: Delivery) -> None:
        if delivery.timer is not None:
            delivery.timer.cancel()
        delivery.last_attempt = True
        self._retry(delivery)

    def _retry(self, delivery: Delivery) -> None:
        self._waiting.discard(delivery)
        self._ready[self._mailer_of(delivery)].append(delivery)
        self._admit()

    def _abandon(self, delivery: Delivery, reason: str, *, attempts: int | None = None) -> None:
        """Report a message of which no further attempt can be made here; ``attempts`` None: those that are known of."""
        if delivery.stored is not None:
            waits = delivery not in self._sending.values() or delivery.attempt.nothing_sent
            delivery.stored.abandon(nothing_sent=attempts is None and waits)
            logger.info("message %s stays in the outbox, for the relay: %s", delivery.message.message_id, reason)
            self._finish(delivery)
            return
        if delivery.progress.uncertain:
            reason += "; an earlier attempt may have delivered it"
        made = delivery.progress.attempts + (delivery in self._sending.values()) if attempts is None else attempts
        logger.error(
            "message %s was not delivered after %s: %s",
            delivery.message.message_id,
            counted(made, "attempt"),
            reason,
        )
        missing, chosen = missing_recipients(delivery.message, delivery.progress), Circumstances(DeliveryMode.DEFERRED)
        sending = delivery in self._sending.values() and not delivery.attempt.nothing_sent
        uncertain = sending or delivery.progress.uncertain
        # With ``attempts`` its task was cancelled while it was being sent.
        maybe_sent = sending or attempts is not None
        record_end(delivery.message, delivery.transport, delivery.progress, "uncertain" if maybe_sent else "failed")
        delivery.transport.publish("failed", missing, reason, circumstances=chosen)
        if delivery.keyed is not None and delivery.keyed.claimed:
            delivery.keyed.cut_short(uncertain=uncertain)
        self._finish(delivery)

    def _finish(self, delivery: Delivery) -> None:
        if delivery.admitted.done():
            self._messages -= 1
            self._bytes -= delivery.message.size
        else:
            delivery.admitted.set_result(None)
        delivery.done.set_result(None)
        if not self.closed:
            self._admit()


def _batch(paused: Iterable[Delivery]) -> list[Delivery]:
    """Return the first messages of one transport, about a megabyte of them."""
    batch: list[Delivery] = []
    size = 0
    for delivery in paused:
        if batch and (delivery.transport is not batch[0].transport or size >= _MOST_BYTES or len(batch) == _MOST):
            break
        batch.append(delivery)
        size += delivery.message.size
    return batch
