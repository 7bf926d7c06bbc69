"""Capture mail instead of sending it: a transport and a queue for tests, usable in any thread and event loop."""

import asyncio
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from openviper.core.email import DeliveryMode, DeliveryReport, EmailSettings, Refusal
from openviper.core.email.delivery import HeldMessage, Transport
from openviper.core.email.delivery.last_mile import FIRST_ATTEMPT, attempt_delivery
from openviper.core.email.delivery.recipients import RecipientRules
from openviper.core.email.delivery.transport import NO_ATTEMPT
from openviper.core.email.events import Circumstances, EventKind
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.message.serialiser import serialise_message
from openviper.core.email.message.storage import decode, encode
from openviper.core.email.queue import QUEUE, JobQueue, configured_broker
from openviper.core.email.queue.keys import KeyStore, ProcessKeyStore
from openviper.core.email.queue.retry import DispatcherPolicy, Retry
from openviper.testing.failures import Failure
from openviper.testing.message import SentMessage

__all__ = ["Capture", "CaptureQueue", "CaptureTransport", "PendingMessage"]


@dataclass(frozen=True, slots=True)
class PendingMessage:
    """A message that a transaction holds, and the event loop on which it was sent."""

    message: SentMessage
    held: HeldMessage
    loop: asyncio.AbstractEventLoop


class Capture:
    """Storage of captured mail, behind :class:`Mailbox`. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._sent: list[SentMessage] = []
        self._failed: list[tuple[SentMessage, str]] = []
        self._cancelled: list[tuple[SentMessage, str]] = []
        self._duplicates: list[tuple[SentMessage, str]] = []
        self.keys = ProcessKeyStore()
        self._held: dict[str, PendingMessage] = {}
        self._modes: dict[str, DeliveryMode] = {}
        self._times: dict[str, tuple[float | None, float | None]] = {}
        self._in_progress: set[str] = set()
        self._temporarily_refused: set[str] = set()
        self._failures: list[Failure] = []
        self._changed: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    @property
    def sent(self) -> list[SentMessage]:
        with self._lock:
            return list(self._sent)

    @property
    def failed(self) -> list[tuple[SentMessage, str]]:
        """Return the failed messages, each with its last error's text."""
        with self._lock:
            return list(self._failed)

    @property
    def cancelled(self) -> list[tuple[SentMessage, str]]:
        """Return the messages that ``before_send`` cancelled, each with the reason."""
        with self._lock:
            return list(self._cancelled)

    @property
    def duplicates(self) -> list[tuple[SentMessage, str]]:
        """Return the messages that were not sent, because an earlier one had their key, each with the reason."""
        with self._lock:
            return list(self._duplicates)

    @property
    def held(self) -> list[PendingMessage]:
        with self._lock:
            return list(self._held.values())

    def clear(self) -> None:
        with self._lock:
            self._sent.clear()
            self._failed.clear()
            self._cancelled.clear()
            self._duplicates.clear()

    def add_failure(self, failure: Failure) -> Callable[[], None]:
        """Make attempts fail as ``failure`` describes until the returned function is called.

        Of several failures the newest takes precedence.
        """
        with self._lock:
            self._failures.insert(0, failure)

        def end() -> None:
            with self._lock:
                self._failures = [other for other in self._failures if other is not failure]

        return end

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until ``condition()`` is true, which is checked after each change; False after ``timeout`` seconds."""
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

    def deliver_held(self, pending: PendingMessage) -> None:
        """Deliver a held message whose event loop has ended and can no longer release it."""
        if pending.held.forget():
            with self._lock:
                self._held.pop(pending.message.message_id, None)
                self._in_progress.discard(pending.message.message_id)
                self._sent.append(pending.message)
            self._notify()

    @property
    def outstanding(self) -> Collection[str]:
        """Return the ids of messages that were accepted and neither delivered nor failed for good."""
        with self._lock:
            return frozenset(self._in_progress)

    def close(self) -> None:
        """Stop capturing: discard held messages; messages accepted before are still captured."""
        with self._lock:
            held, self._held = self._held, {}
            self._in_progress -= {name for name, pending in held.items() if pending.held.forget()}

    def deliver(self, message: OutgoingMessage, settings: EmailSettings) -> DeliveryReport:
        """Capture ``message``, or fail if the test has requested it.

        Raises:
            DeliveryError: the test has requested it.
        """
        with self._lock:
            refused = self._fail(message.envelope.recipients, settings)
            if any(refusal.temporary for refusal in refused.values()):
                self._temporarily_refused.add(message.message_id)
            accepted = tuple(address for address in message.envelope.recipients if address not in refused)
            self._keep(message, accepted)
        self._notify()
        return DeliveryReport(accepted, refused, "250 captured by the test")

    def accept_queued(self, message_id: str, due_at: float | None, expires_at: float | None) -> None:
        """Record that a message is queued; the times are Unix seconds.

        Raises:
            QueueUnavailable: the test has requested it.
        """
        with self._lock:
            for failure in self._failures:
                if failure.step == "broker" and failure.consume():
                    raise failure.make_queue_error()
            self._modes[message_id] = DeliveryMode.QUEUED
            self._times[message_id] = (due_at, expires_at)

    def hold(self, message: OutgoingMessage, held: HeldMessage) -> None:
        """Record a held message, with the object that releases or discards it."""
        pending = PendingMessage(SentMessage.make(message, DeliveryMode.HELD), held, asyncio.get_running_loop())
        with self._lock:
            self._modes[message.message_id] = DeliveryMode.HELD
            self._held[message.message_id] = pending
            self._in_progress.add(message.message_id)
        self._notify()

    def record_event(
        self, kind: EventKind, message: OutgoingMessage, detail: str, refused: tuple[str, ...] = ()
    ) -> None:
        """Update the state of a captured message by one of its events."""
        message_id = message.message_id
        with self._lock:
            if kind != "held":
                self._held.pop(message_id, None)
            if kind == "deferred":
                self._modes[message_id] = DeliveryMode.DEFERRED
            if kind in ("deferred", "retrying"):
                self._in_progress.add(message_id)
                self._temporarily_refused.discard(message_id)
            elif kind == "delivered" and message_id in self._temporarily_refused:
                # A retry for the refused recipients may follow; if so, its event is published at once.
                asyncio.get_running_loop().call_soon(self._settle, message_id)
            elif kind in ("delivered", "failed", "discarded", "duplicate") or (
                kind == "suppressed" and len(refused) == len(message.envelope.recipients)
            ):
                self._in_progress.discard(message_id)
            if kind == "cancelled":
                self._cancelled.append((SentMessage.make(message, DeliveryMode.INLINE), detail))
            if kind == "duplicate":
                mode = self._modes.get(message_id, DeliveryMode.INLINE)
                self._duplicates.append((SentMessage.make(message, mode), detail))
            if kind == "failed":
                mode = self._modes.get(message_id, DeliveryMode.INLINE)
                self._failed.append((SentMessage.make(message, mode), detail))
        self._notify()

    def _fail(self, recipients: tuple[str, ...], settings: EmailSettings) -> dict[str, Refusal]:
        for failure in self._failures:
            if failure.step == "broker" or (failure.step == "rcpt" and not failure.find_refusals(recipients)):
                continue
            if failure.consume():
                error = failure.make_error(recipients, settings)
                if error is not None:
                    raise error
                return failure.find_refusals(recipients)
        return {}

    def _keep(self, message: OutgoingMessage, accepted: tuple[str, ...]) -> None:
        message_id = message.message_id
        for index, sent in enumerate(self._sent):
            # A retry for refused recipients, not the same message sent twice, and not the copy for redirect_to.
            if (
                sent.message_id == message_id
                and sent.outgoing.prepared.headers == message.prepared.headers
                and not {*sent.recipients} & {*accepted}
            ):
                self._sent[index] = sent.with_recipients(accepted)
                return
        due_at, expires_at = self._times.get(message_id, (None, None))
        mode = self._modes.get(message_id, DeliveryMode.INLINE)
        self._sent.append(SentMessage.make(message, mode, accepted=accepted, due_at=due_at, expires_at=expires_at))

    def _settle(self, message_id: str) -> None:
        with self._lock:
            if message_id in self._temporarily_refused:
                self._temporarily_refused.discard(message_id)
                self._in_progress.discard(message_id)
        self._notify()

    def _notify(self) -> None:
        with self._lock:
            for loop, event in tuple(self._changed):
                with suppress(RuntimeError):  # its loop has been closed
                    loop.call_soon_threadsafe(event.set)


class CaptureTransport(Transport):
    """Passes every message to a :class:`Capture`, in place of the mailer's ``own`` transport."""

    immediate = True
    observed = True

    def __init__(self, capture: Capture, settings: EmailSettings, own: Transport | None = None) -> None:
        self._capture = capture
        self._settings = settings
        self.in_memory = own is not None and own.in_memory
        self.listeners = settings.functions("listeners")
        self.rules = RecipientRules.from_settings(settings)
        self._description = "a test" if own is None else own.describe()

    @property
    def queue(self) -> JobQueue | None:
        """Return the capturing queue; None if the application would use no queue."""
        return None if self.in_memory or configured_broker() is None else CaptureQueue(self._capture)

    @property
    def key_store(self) -> KeyStore:
        """Return keys that no other test knows."""
        return self._capture.keys

    async def send(self, message: OutgoingMessage, *, pipeline: bool = False) -> DeliveryReport:  # noqa: ARG002
        """Capture the message.

        Raises:
            DeliveryError: the test has requested it.
        """
        return self._capture.deliver(message, self._settings)

    def describe(self) -> str:
        """Return the own transport's description."""
        return self._description

    def hold(self, message: OutgoingMessage, held: HeldMessage) -> None:
        """Hold the message, and record it as held."""
        super().hold(message, held)
        self._capture.hold(message, held)

    def publish(
        self,
        kind: EventKind,
        message: OutgoingMessage,
        detail: str = "",
        *,
        refused: tuple[str, ...] = (),
        circumstances: Circumstances = NO_ATTEMPT,
    ) -> None:
        """Publish the event, and record it."""
        super().publish(kind, message, detail, refused=refused, circumstances=circumstances)
        self._capture.record_event(kind, message, detail, refused)


class _ImmediatePolicy(DispatcherPolicy):
    """Retries as often as the dispatcher but without delay, and holds uncertain deliveries as the queue does."""

    def __init__(self, settings: EmailSettings) -> None:
        super().__init__((0.0,) * settings.retries, allow_partial=settings.allow_partial)
        self.hold_uncertain = settings.on_uncertain == "hold"


class CaptureQueue(JobQueue):
    """Replaces the broker and its worker: queued messages are attempted at once, in the form that a worker reads."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    @property
    def address(self) -> str:
        """Return the address of the broker that this queue replaces."""
        return configured_broker() or "no broker"

    @property
    def known(self) -> bool:
        """True, because no broker has to be probed."""
        return True

    def available(self) -> bool:
        """True, because a failure that the test requests occurs in ``enqueue``."""
        return True

    def consumers(self, queue: str = QUEUE) -> int:  # noqa: ARG002
        """Return 1."""
        return 1

    async def enqueue(
        self,
        message: OutgoingMessage,
        settings: EmailSettings,
        *,
        due_at: float | None = None,
        expires_at: float | None = None,
    ) -> bool:
        """Accept the message and attempt its delivery until it is final; retries follow without delay. Return True.

        Raises:
            QueueUnavailable: the test has requested it.
        """
        stored = await asyncio.to_thread(lambda: decode(encode(message.prepared)))
        message = await serialise_message(stored, max_message_bytes=settings.max_message_bytes)
        self._capture.accept_queued(message.message_id, due_at, expires_at)
        transport = CaptureTransport(self._capture, settings)
        policy = _ImmediatePolicy(settings)
        progress = FIRST_ATTEMPT
        while True:
            decision = await attempt_delivery(message, transport, progress, policy, mode=DeliveryMode.QUEUED)
            if not isinstance(decision, Retry):
                return True
            progress = decision.progress
            if progress.pending is not None:
                message = message.for_recipients(progress.pending)
