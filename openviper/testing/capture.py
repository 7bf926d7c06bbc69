"""Keep mail instead of sending it: a transport and a queue for tests. Any thread and any event loop may send."""

import asyncio
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from openviper.core.email import DeliveryMode, DeliveryReport, EmailSettings, Refusal
from openviper.core.email.delivery import HeldMessage, Transport
from openviper.core.email.delivery.last_mile import FIRST_ATTEMPT, attempt_delivery
from openviper.core.email.events import EventKind
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.message.serialiser import serialise_message
from openviper.core.email.message.storage import decode, encode
from openviper.core.email.queue import JobQueue, configured_broker
from openviper.core.email.queue.retry import DispatcherPolicy, Retry
from openviper.testing.failures import Failure
from openviper.testing.message import SentMessage

__all__ = ["Capture", "CaptureQueue", "CaptureTransport", "Waiting"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message that a transaction holds, and the loop on which it was sent."""

    message: SentMessage
    held: HeldMessage
    loop: asyncio.AbstractEventLoop


class Capture:
    """The store behind a mailbox."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._sent: list[SentMessage] = []
        self._failed: list[tuple[SentMessage, str]] = []
        self._held: dict[str, Waiting] = {}
        self._modes: dict[str, DeliveryMode] = {}
        self._times: dict[str, tuple[float | None, float | None]] = {}
        self._under_way: set[str] = set()
        self._refused_for_now: set[str] = set()
        self._failures: list[Failure] = []
        self._changed: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

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

    @property
    def outstanding(self) -> Collection[str]:
        """Ids of the messages that were accepted and are neither delivered nor given up."""
        with self._lock:
            return frozenset(self._under_way)

    def close(self) -> None:
        """End: what transactions still hold goes nowhere; what was accepted before is still kept here."""
        with self._lock:
            held, self._held = self._held, {}
            self._under_way -= {name for name, waiting in held.items() if waiting.held.forget()}

    # Called by the transport and the queue

    def deliver(self, message: OutgoingMessage, settings: EmailSettings) -> DeliveryReport:
        """Keep ``message``, or fail as a test has asked for.

        Raises:
            DeliveryError: a test has asked for it.
        """
        with self._lock:
            refused = self._fail(message.envelope.recipients, settings)
            if any(refusal.temporary for refusal in refused.values()):
                self._refused_for_now.add(message.message_id)
            accepted = tuple(one for one in message.envelope.recipients if one not in refused)
            self._keep(message, accepted)
        self._notify()
        return DeliveryReport(accepted, refused, "250 kept by the test")

    def accept_queued(self, message_id: str, due_at: float | None, expires_at: float | None) -> None:
        """Note that a message is queued; the times are Unix seconds.

        Raises:
            QueueUnavailable: a test has asked for it.
        """
        with self._lock:
            for failure in self._failures:
                if failure.step == "broker" and failure.use_up():
                    raise failure.queue_error()
            self._modes[message_id] = DeliveryMode.QUEUED
            self._times[message_id] = (due_at, expires_at)

    def hold(self, message: OutgoingMessage, held: HeldMessage) -> None:
        """Keep what releases, drops or forgets a held message."""
        waiting = Waiting(SentMessage.make(message, DeliveryMode.HELD), held, asyncio.get_running_loop())
        with self._lock:
            self._modes[message.message_id] = DeliveryMode.HELD
            self._held[message.message_id] = waiting
            self._under_way.add(message.message_id)
        self._notify()

    def note(self, kind: EventKind, message: OutgoingMessage, detail: str) -> None:
        """Follow the events of a captured message."""
        message_id = message.message_id
        with self._lock:
            if kind != "held":
                self._held.pop(message_id, None)
            if kind == "deferred":
                self._modes[message_id] = DeliveryMode.DEFERRED
            if kind in ("deferred", "retrying"):
                self._under_way.add(message_id)
                self._refused_for_now.discard(message_id)
            elif kind == "delivered" and message_id in self._refused_for_now:
                # For those who were refused a further attempt may follow; if so, it is announced at once.
                asyncio.get_running_loop().call_soon(self._settle, message_id)
            elif kind in ("delivered", "failed", "discarded"):
                self._under_way.discard(message_id)
            if kind == "failed":
                mode = self._modes.get(message_id, DeliveryMode.INLINE)
                self._failed.append((SentMessage.make(message, mode), detail))
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
        mode = self._modes.get(message_id, DeliveryMode.INLINE)
        self._sent.append(SentMessage.make(message, mode, accepted=accepted, due_at=due_at, expires_at=expires_at))

    def _settle(self, message_id: str) -> None:
        with self._lock:
            if message_id in self._refused_for_now:
                self._refused_for_now.discard(message_id)
                self._under_way.discard(message_id)
        self._notify()

    def _notify(self) -> None:
        with self._lock:
            for loop, event in tuple(self._changed):
                with suppress(RuntimeError):  # its loop has been closed
                    loop.call_soon_threadsafe(event.set)


class CaptureTransport(Transport):
    """Gives every message to a :class:`Capture`, in the place of the mailer's ``own`` transport."""

    immediate = True

    def __init__(self, capture: Capture, settings: EmailSettings, own: Transport | None = None) -> None:
        self._capture = capture
        self._settings = settings
        self.in_memory = own is not None and own.in_memory
        self._description = "a test" if own is None else own.describe()

    @property
    def queue(self) -> JobQueue | None:
        """The queue of the capture; None where the application would use none."""
        return None if self.in_memory or configured_broker() is None else CaptureQueue(self._capture)

    async def send(self, message: OutgoingMessage, *, pipeline: bool = False) -> DeliveryReport:  # noqa: ARG002
        """Keep the message.

        Raises:
            DeliveryError: a test has asked for it.
        """
        return self._capture.deliver(message, self._settings)

    def describe(self) -> str:
        """Return what the own transport says of itself."""
        return self._description

    def hold(self, message: OutgoingMessage, held: HeldMessage) -> None:
        """Keep what releases or drops the message."""
        super().hold(message, held)
        self._capture.hold(message, held)

    def publish(
        self, kind: EventKind, message: OutgoingMessage, detail: str = "", *, refused: tuple[str, ...] = ()
    ) -> None:
        """Publish the event, and note it."""
        super().publish(kind, message, detail, refused=refused)
        self._capture.note(kind, message, detail)


class _QueueWithoutPauses(DispatcherPolicy):
    """Retries as often as the dispatcher does, at once, and holds what is uncertain as the queue does."""

    def __init__(self, settings: EmailSettings) -> None:
        super().__init__((0.0,) * settings.retries)
        self.hold_uncertain = settings.on_uncertain == "hold"


class CaptureQueue(JobQueue):
    """Takes the place of the broker and its worker: what is queued is attempted at once, as a worker reads it."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    @property
    def address(self) -> str:
        """The address of the broker whose place it takes."""
        return configured_broker() or "no broker"

    @property
    def known(self) -> bool:
        """True: nobody has to be asked."""
        return True

    def available(self) -> bool:
        """True: a broker that a test lets fail fails when it is to take a message."""
        return True

    def consumers(self) -> int:
        """Return 1."""
        return 1

    async def enqueue(
        self,
        message: OutgoingMessage,
        settings: EmailSettings,
        *,
        due_at: float | None = None,
        expires_at: float | None = None,
    ) -> None:
        """Accept the message and attempt its delivery until it is done; retries follow without a pause.

        Raises:
            QueueUnavailable: a test has asked for it.
        """
        stored = await asyncio.to_thread(lambda: decode(encode(message.prepared)))
        message = await serialise_message(stored, max_message_bytes=settings.max_message_bytes)
        self._capture.accept_queued(message.message_id, due_at, expires_at)
        transport = CaptureTransport(self._capture, settings)
        policy = _QueueWithoutPauses(settings)
        progress = FIRST_ATTEMPT
        while True:
            decision = await attempt_delivery(message, transport, progress, policy, mode=DeliveryMode.QUEUED)
            if not isinstance(decision, Retry):
                return
            progress = decision.progress
            if progress.left is not None:
                message = message.for_recipients(progress.left)
