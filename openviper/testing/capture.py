"""Takes the place of backends and broker, and keeps what it is given. Any thread and any event loop may send."""

import asyncio
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from openviper.core.email import (
    DeliveryError,
    DeliveryReport,
    EmailSettings,
    MessageEvent,
    Refusal,
    Way,
    subscribe,
)
from openviper.core.email.backends.interception import HeldMessage, Interceptor, interceptor_for
from openviper.core.email.events import publish
from openviper.core.email.message import OutgoingMessage
from openviper.testing.failures import Failure
from openviper.testing.message import SentMessage

__all__ = ["Capture", "Waiting"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that a transaction holds, and the loop on which it was sent."""

    message: SentMessage
    held: HeldMessage
    loop: asyncio.AbstractEventLoop


class Capture(Interceptor):
    """The store behind a mailbox."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._sent: list[SentMessage] = []
        self._failed: list[tuple[SentMessage, str]] = []
        self._held: dict[str, Waiting] = {}
        self._ways: dict[str, Way] = {}
        self._times: dict[str, tuple[float | None, float | None]] = {}
        self._under_way: set[str] = set()
        self._refused_for_now: set[str] = set()
        self._failures: list[Failure] = []
        self._changed: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._open = True
        self._unsubscribe = subscribe(self._listen)

    # What a mailbox asks

    @property
    def sent(self) -> list[SentMessage]:
        with self._lock:
            return list(self._sent)

    @property
    def failed(self) -> list[tuple[SentMessage, str]]:
        """With the last error's text."""
        with self._lock:
            return list(self._failed)

    @property
    def held(self) -> list[Waiting]:
        with self._lock:
            return list(self._held.values())

    def clear(self) -> None:
        with self._lock:
            self._sent.clear()
            self._failed.clear()

    def add_failure(self, failure: Failure) -> Callable[[], None]:
        """Fail as ``failure`` says; the newest counts first. Returns the function that ends it."""
        with self._lock:
            self._failures.insert(0, failure)

        def end() -> None:
            with self._lock:
                self._failures = [one for one in self._failures if one is not failure]

        return end

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until ``condition()`` holds; it is asked after each change. False: ``timeout`` seconds have passed."""
        changed = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._changed.add(changed)
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await changed[1].wait()
                    changed[1].clear()
        except TimeoutError:
            return condition()
        finally:
            with self._lock:
                self._changed.discard(changed)
        return True

    def take_alone(self, waiting: Waiting) -> None:
        """Deliver a held message whose event loop has ended, so that nobody else can."""
        if waiting.held.forget():
            with self._lock:
                self._held.pop(waiting.message.message_id, None)
                self._under_way.discard(waiting.message.message_id)
                self._sent.append(waiting.message)
            self._notify()

    def close(self) -> None:
        """End: what transactions still hold goes nowhere, what is on its way is still taken."""
        with self._lock:
            self._open = False
            held, self._held = self._held, {}
            self._under_way -= {name for name, waiting in held.items() if waiting.held.forget()}
            self._end_if_idle()

    # What the mail component asks

    @property
    def outstanding(self) -> Collection[str]:
        with self._lock:
            return frozenset(self._under_way)

    async def send(self, message: OutgoingMessage, settings: EmailSettings) -> DeliveryReport:
        with self._lock:
            refused = self._fail(message.envelope.recipients, settings)
            if any(refusal.temporary for refusal in refused.values()):
                self._refused_for_now.add(message.message_id)
            accepted = tuple(one for one in message.envelope.recipients if one not in refused)
            self._keep(message, accepted)
        self._notify()
        return DeliveryReport(accepted, refused, "250 kept by the test")

    async def enqueue(
        self, message: OutgoingMessage, settings: EmailSettings, *, due_at: float | None, expires_at: float | None
    ) -> None:
        with self._lock:
            for failure in self._failures:
                if failure.step == "broker" and failure.use_up():
                    raise failure.queue_error()
            self._ways[message.message_id] = Way.QUEUED
            self._times[message.message_id] = (due_at, expires_at)
        for left in range(settings.retries, -1, -1):
            rest = await self._work(message, settings, last=left == 0)
            if rest is None:
                return
            message = rest

    def hold(self, message: OutgoingMessage, held: HeldMessage) -> None:
        """Keep what commits, rolls back or forgets a held message."""
        waiting = Waiting(SentMessage.make(message, Way.HELD), held, asyncio.get_running_loop())
        with self._lock:
            self._ways[message.message_id] = Way.HELD
            self._held[message.message_id] = waiting
            self._under_way.add(message.message_id)
        self._notify()

    # Inside

    def _fail(self, recipients: tuple[str, ...], settings: EmailSettings) -> dict[str, Refusal]:
        for failure in self._failures:
            if failure.step == "broker" or (failure.step == "rcpt" and not failure.refuses(recipients)):
                continue
            if failure.use_up():
                error = failure.error(recipients, settings)
                if error is not None:
                    raise error
                return failure.refuses(recipients)
        return {}

    def _keep(self, message: OutgoingMessage, accepted: tuple[str, ...]) -> None:
        message_id = message.message_id
        for at, before in enumerate(self._sent):
            # A further attempt for those who were refused, not the same message sent twice.
            if before.message_id == message_id and not {*before.recipients} & {*accepted}:
                self._sent[at] = before.reaching(accepted)
                return
        due_at, expires_at = self._times.get(message_id, (None, None))
        way = self._ways.get(message_id, Way.INLINE)
        self._sent.append(SentMessage.make(message, way, accepted=accepted, due_at=due_at, expires_at=expires_at))

    async def _work(self, message: OutgoingMessage, settings: EmailSettings, *, last: bool) -> OutgoingMessage | None:
        """A worker's attempt; returns what is to be tried again."""
        publish("sending", message)
        try:
            report = await self.send(message, settings)
        except DeliveryError as error:
            again = error.temporary and not last and not (error.uncertain and settings.on_uncertain == "hold")
            publish("retrying" if again else "failed", message, str(error))
            return message if again else None
        publish("delivered", message, report.outcome, refused=tuple(report.refused))
        later = tuple(address for address, refusal in report.refused.items() if refusal.temporary)
        return message.for_recipients(later) if later and not last else None

    def _listen(self, event: MessageEvent) -> None:
        message_id = event.message_id
        if interceptor_for(message_id) is not self:
            return
        with self._lock:
            if event.kind != "held":
                self._held.pop(message_id, None)
            if event.kind == "deferred":
                self._ways[message_id] = Way.DEFERRED
            if event.kind in ("deferred", "retrying"):
                self._under_way.add(message_id)
                self._refused_for_now.discard(message_id)
            elif event.kind == "delivered" and message_id in self._refused_for_now:
                # For those who were refused a further attempt may follow; if so, it is announced at once.
                asyncio.get_running_loop().call_soon(self._settle, message_id)
            elif event.kind in ("delivered", "failed", "discarded"):
                self._under_way.discard(message_id)
            if event.kind == "failed":
                way = self._ways.get(message_id, Way.INLINE)
                self._failed.append((SentMessage.make(event.message, way), event.detail))
            self._end_if_idle()
        self._notify()

    def _settle(self, message_id: str) -> None:
        with self._lock:
            if message_id in self._refused_for_now:
                self._refused_for_now.discard(message_id)
                self._under_way.discard(message_id)
            self._end_if_idle()
        self._notify()

    def _end_if_idle(self) -> None:
        if not self._open and not self._under_way:
            self._unsubscribe()

    def _notify(self) -> None:
        with self._lock:
            for loop, event in tuple(self._changed):
                with suppress(RuntimeError):  # its loop has been closed
                    loop.call_soon_threadsafe(event.set)
