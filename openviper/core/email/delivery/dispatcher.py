"""The dispatcher: delivers the mail of requests after their responses, with retries and within bounds."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context
from dataclasses import dataclass, field

from openviper.core.email.backends.attempt import Attempt
from openviper.core.email.backends.base import DeliveryReport
from openviper.core.email.backends.interception import interceptor_for
from openviper.core.email.errors import DeliveryError
from openviper.core.email.events import publish
from openviper.core.email.message import OutgoingMessage

__all__ = ["Deliver", "Dispatcher", "Handed"]

logger = logging.getLogger("openviper.email")

Deliver = Callable[[OutgoingMessage], Awaitable[DeliveryReport]]


@dataclass(slots=True, eq=False)
class Handed:
    """A message in the dispatcher's hands. ``done`` resolves, never with an error, when no further attempt is made.

    ``uncertain``: an attempt ended without anybody knowing whether the server took the message.
    """

    message: OutgoingMessage
    done: asyncio.Future[None]
    admitted: asyncio.Future[None]
    attempts: int = 0
    last_attempt: bool = False
    uncertain: bool = False
    timer: asyncio.TimerHandle | None = None
    attempt: Attempt = field(default_factory=Attempt)


class Dispatcher:
    """Delivers what it is handed in tasks of its own, at most ``concurrency`` at a time, first come first served.

    A temporary failure is tried again after each of ``retry_delays`` (seconds); a final one is logged once with its
    message id. It counts as full from ``max_messages`` messages or ``max_bytes`` of content on; what is handed over
    then is kept all the same, and its ``admitted`` future resolves when there is room for it.
    """

    def __init__(
        self,
        deliver: Deliver,
        *,
        concurrency: int,
        max_messages: int,
        max_bytes: int,
        retry_delays: tuple[float, ...],
    ) -> None:
        self._deliver = deliver
        self._concurrency = concurrency
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._retry_delays = retry_delays
        self._arriving: deque[Handed] = deque()
        self._ready: deque[Handed] = deque()
        self._waiting: set[Handed] = set()
        self._sending: dict[asyncio.Task[None], Handed] = {}
        self._messages = 0
        self._bytes = 0
        self._draining = False
        self.closed = False

    @property
    def full(self) -> bool:
        """True when a new message would have to wait for room."""
        return bool(self._arriving) or self._messages >= self._max_messages or self._bytes >= self._max_bytes

    @property
    def pending(self) -> int:
        """How many messages are in its hands."""
        return self._messages + len(self._arriving)

    def hand_over(self, messages: Iterable[OutgoingMessage]) -> list[Handed]:
        """Take ``messages``. From here on they are the dispatcher's, whatever becomes of the caller's task."""
        loop = asyncio.get_running_loop()
        handed = [Handed(message, loop.create_future(), loop.create_future()) for message in messages]
        if self.closed:
            for late in handed:
                self._fail(late, "the application has shut down; it was not sent")
            return handed
        self._arriving.extend(handed)
        self._admit()
        return handed

    def retry_now(self, message_id: str) -> bool:
        """Try a message at once that waits for its next attempt; False when none with this id waits.

        It is a try more than the message has: a further failure is followed by the delay that was cut short.
        """
        for handed in self._waiting:
            if handed.message.message_id == message_id and handed.timer is not None:
                handed.timer.cancel()
                handed.attempts -= 1
                self._retry(handed)
                return True
        return False

    async def drain(self, timeout: float) -> None:
        """Deliver what is left within ``timeout`` seconds, then close; what could not be is logged one by one.

        A message that waits for its retry gets one attempt at once, and so does one that fails meanwhile.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        self._draining = True
        for handed in tuple(self._waiting):
            self._retry_now(handed)
        # In rounds, since the last tasks of an application may still send.
        while (everything := self._everything()) and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait([handed.done for handed in everything], timeout=left)
        self.closed = True
        for handed in self._everything():
            sending = handed in self._sending.values() and not handed.attempt.nothing_sent
            unsent = "it was not sent again" if handed.uncertain else "it was not sent"
            reason = "it was being sent and may have been delivered" if sending else unsent
            self._fail(handed, f"the shutdown_timeout of {timeout:g} s has passed; {reason}")
        tasks = list(self._sending)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _everything(self) -> list[Handed]:
        places = (*self._sending.values(), *self._waiting, *self._ready, *self._arriving)
        # Once each: a message whose attempt has just ended may already wait for the next one.
        return list(dict.fromkeys(handed for handed in places if not handed.done.done()))

    def _admit(self) -> None:
        while self._arriving:
            size = self._arriving[0].message.size
            # A message larger than the whole bound still passes, alone.
            if self._messages and (self._messages >= self._max_messages or self._bytes + size > self._max_bytes):
                break
            handed = self._arriving.popleft()
            self._messages += 1
            self._bytes += size
            handed.admitted.set_result(None)
            self._ready.append(handed)
        self._start()

    def _start(self) -> None:
        while self._ready and len(self._sending) < self._concurrency:
            handed = self._ready.popleft()
            # An empty context: the task outlives the request and must not see its outbox or transaction.
            task = asyncio.get_running_loop().create_task(self._attempt(handed), context=Context())
            self._sending[task] = handed
            task.add_done_callback(self._ended, context=Context())

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        if not self.closed:
            self._start()

    async def _attempt(self, handed: Handed) -> None:
        handed.attempts += 1
        handed.attempt = Attempt()
        handed.attempt.follow()
        try:
            report = await self._deliver(handed.message)
        except DeliveryError as error:
            self._failed_attempt(handed, error)
        except Exception as error:  # one failing message may not stop the next; the traceback tells what it was
            logger.exception("message %s: delivery failed unexpectedly", handed.message.message_id)
            self._fail(handed, f"{type(error).__name__}")
        else:
            self._delivered(handed, report)

    def _delivered(self, handed: Handed, report: DeliveryReport) -> None:
        later = tuple(address for address, refusal in report.refused.items() if refusal.temporary)
        handed.uncertain |= any(refusal.uncertain for refusal in report.refused.values())
        if later and self._has_attempts_left(handed):
            handed.message = handed.message.for_recipients(later)
            self._schedule_retry(handed, f"{len(later)} of its recipients were refused for now")
        else:
            self._finish(handed)

    def _failed_attempt(self, handed: Handed, error: DeliveryError) -> None:
        if error.temporary and self._has_attempts_left(handed):
            handed.uncertain |= error.uncertain
            self._schedule_retry(handed, str(error))
        else:
            self._fail(handed, str(error))

    def _has_attempts_left(self, handed: Handed) -> bool:
        return not handed.last_attempt and handed.attempts <= len(self._retry_delays)

    def _schedule_retry(self, handed: Handed, reason: str) -> None:
        at_once = self._draining or interceptor_for(handed.message.message_id) is not None
        delay = 0.0 if at_once else self._retry_delays[handed.attempts - 1]
        logger.info(
            "message %s: attempt %d failed, next one in %g s: %s",
            handed.message.message_id,
            handed.attempts,
            delay,
            reason,
        )
        publish("retrying", handed.message, f"in {delay:g} s: {reason}")
        self._waiting.add(handed)
        if self._draining:
            self._retry_now(handed)
        else:
            handed.timer = asyncio.get_running_loop().call_later(delay, self._retry, handed, context=Context())

    def _retry_now(self, handed: Handed) -> None:
        if handed.timer is not None:
            handed.timer.cancel()
        handed.last_attempt = True
        self._retry(handed)

    def _retry(self, handed: Handed) -> None:
        self._waiting.discard(handed)
        self._ready.append(handed)
        self._admit()

    def _fail(self, handed: Handed, reason: str) -> None:
        if handed.done.done():  # its attempt was cut short by the end of the drain, which has reported it
            return
        if handed.uncertain:
            reason += "; an earlier attempt may have delivered it"
        logger.error(
            "message %s was not delivered after %d attempt(s): %s", handed.message.message_id, handed.attempts, reason
        )
        publish("failed", handed.message, reason)
        self._finish(handed)

    def _finish(self, handed: Handed) -> None:
        if handed.admitted.done():
            self._messages -= 1
            self._bytes -= handed.message.size
        else:
            handed.admitted.set_result(None)
        handed.done.set_result(None)
        if not self.closed:
            self._admit()
