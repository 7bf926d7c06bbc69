"""Deliver the mail of requests after their responses, with retries and within bounds."""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Mapping
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Any

from openviper.core.email.backends.attempt import Attempt, mark_offered
from openviper.core.email.delivery.keyed_send import KeyedSend, report_duplicate
from openviper.core.email.delivery.last_mile import FIRST_ATTEMPT, attempt_delivery, fail_attempt, missing_recipients
from openviper.core.email.delivery.outbox import StoredMessage
from openviper.core.email.delivery.transport import Transport
from openviper.core.email.errors import DuplicateKey, EmailError, KeysUnavailable
from openviper.core.email.events import NOTHING, DeliveryMode, Receipt
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue.job import Progress
from openviper.core.email.queue.retry import Decision, DispatcherPolicy, Retry, RetryPolicy
from openviper.core.email.settings import DEFAULT_MAILER

__all__ = ["Delivery", "Dispatcher"]

logger = logging.getLogger("openviper.email")


@dataclass(slots=True, eq=False)
class Delivery:
    """A message that the dispatcher delivers.

    ``admitted`` resolves when there is room for it, ``done`` when no further attempt is made here; neither has an
    error. ``stored``: its row in the outbox, whose relay makes the attempts after a first one that fails. ``keyed``:
    its idempotency key, which may not be claimed yet; None without one.
    """

    message: OutgoingMessage
    transport: Transport
    done: asyncio.Future[None]
    admitted: asyncio.Future[None]
    progress: Progress = FIRST_ATTEMPT
    last_attempt: bool = False
    timer: asyncio.TimerHandle | None = None
    attempt: Attempt = field(default_factory=Attempt)
    stored: StoredMessage | None = None
    keyed: KeyedSend | None = None


class Dispatcher:
    """Delivers accepted messages in tasks of its own, those of each mailer in the order accepted.

    At most ``concurrency`` are sent at a time, and of a mailer in ``mailers`` at most as many as it says there: the
    mail of one mailer does not wait for that of another.

    A temporary failure is retried after each of ``retry_delays`` (seconds); a final one is logged once with its message
    id. The dispatcher is full from ``max_messages`` messages or ``max_bytes`` of content on; what it accepts then is
    kept all the same, and is admitted when there is room. ``allow_partial`` is the setting.
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

    def accept(
        self,
        message: OutgoingMessage,
        transport: Transport,
        stored: StoredMessage | None = None,
        keyed: KeyedSend | None = None,
    ) -> Delivery:
        """Take over ``message``: from here on the dispatcher delivers it, whatever becomes of the caller's task."""
        loop = asyncio.get_running_loop()
        delivery = Delivery(message, transport, loop.create_future(), loop.create_future(), stored=stored, keyed=keyed)
        if stored is not None:
            delivery.progress = stored.progress
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

    async def drain(self, timeout: float) -> None:
        """Deliver what is left within ``timeout`` seconds, then close; what could not be is logged one by one.

        A message that waits for its retry gets one attempt at once, and so does one that fails meanwhile.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        self._draining = True
        self._resume_interrupted()
        for delivery in tuple(self._waiting):
            self._retry_last(delivery)
        # In rounds, since the last tasks of an application may still send.
        while (pending := self._pending()) and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait([delivery.done for delivery in pending], timeout=left)
        self.closed = True
        for delivery in self._pending():
            unsent = "it was not sent again" if delivery.progress.uncertain else "it was not sent"
            maybe_sent = delivery in self._sending.values() and not delivery.attempt.nothing_sent
            reason = "it was being sent and may have been delivered" if maybe_sent else unsent
            self._abandon(delivery, f"the shutdown_timeout of {timeout:g} s has passed; {reason}")
        tasks = list(self._sending)
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
        places = (*self._sending.values(), *self._waiting, *ready, *self._arriving)
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
        if delivery.stored is not None and not await delivery.stored.is_ours():
            logger.warning("message %s is left to the process that has taken it over", delivery.message.message_id)
            if not delivery.done.done():
                self._finish(delivery)
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

    def _send(self, delivery: Delivery) -> Coroutine[Any, Any, Decision]:
        return attempt_delivery(
            delivery.message,
            delivery.transport,
            delivery.progress,
            self._policy_for(delivery),
            mode=DeliveryMode.DEFERRED,
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
        logger.error(
            "message %s was not delivered after %d attempt(s): %s",
            delivery.message.message_id,
            delivery.progress.attempts + (delivery in self._sending.values()) if attempts is None else attempts,
            reason,
        )
        delivery.transport.publish("failed", missing_recipients(delivery.message, delivery.progress), reason)
        if delivery.keyed is not None and delivery.keyed.claimed:
            sending = delivery in self._sending.values() and not delivery.attempt.nothing_sent
            delivery.keyed.cut_short(uncertain=sending or delivery.progress.uncertain)
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
