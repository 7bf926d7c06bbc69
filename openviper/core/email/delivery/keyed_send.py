"""Claim the idempotency key of a send before its message leaves, keep the claim meanwhile, and record the result."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, Self

from openviper.core.email.backends.attempt import Attempt, mark_offered
from openviper.core.email.delivery.transport import Transport
from openviper.core.email.errors import DeliveryError, DuplicateKey, EmailError, KeysUnavailable, QueueUnavailable
from openviper.core.email.events import DeliveryMode, Receipt
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue.keys import (
    KEY_LEASE,
    KeyClaim,
    KeyRecord,
    KeyStore,
    answer_duplicate,
    claim_for,
    describe_duplicate,
    encode_receipt,
)
from openviper.core.email.queue.retry import Decision, Done, GiveUp
from openviper.loops import PerLoop, at_loop_end
from openviper.text import shown

__all__ = ["KeyedSend", "record_pending", "report_dropped", "report_duplicate"]

logger = logging.getLogger("openviper.email")

_RENEW_EVERY = KEY_LEASE / 3
_REPEAT_AFTER = 1.0  # seconds between two attempts to record a result
_REPEATS = 300
_LAST_WAIT = 2.0  # seconds for which the end of an event loop waits for results that are not recorded yet


class KeyedSend:
    """The key of one send, from the hand-over to the result.

    Its claim is renewed for as long as this process has the message. A result that cannot be recorded at once is
    recorded in the background, because a later send would be taken for a new one once the claim has expired.
    """

    def __init__(self, message: OutgoingMessage, claim: KeyClaim, store: KeyStore) -> None:
        self.claimed = False
        self._recipients = frozenset(message.envelope.recipients)
        self._claim = claim
        self._store = store

    @classmethod
    def of(
        cls, message: OutgoingMessage, transport: Transport, *, ttl: float, due_at: float | None = None
    ) -> Self | None:
        """Return the keyed send of a message; None if it has no key.

        ``ttl``: seconds to keep the key of a sent one, from ``due_at`` on if it is to be sent later.
        """
        claim = claim_for(message.prepared, ttl=ttl, due_at=due_at)
        return None if claim is None else cls(message, claim, transport.key_store)

    @property
    def store(self) -> KeyStore:
        """Return where its key is kept."""
        return self._store

    @property
    def current_claim(self) -> KeyClaim:
        """Return the claim as it is to be renewed."""
        return self._claim

    async def claim(self, *, sending: bool = False) -> Receipt | None:
        """Claim the key; return the receipt of the send that has it, or None if it is ours.

        ``sending``: an attempt follows at once, after which nobody may take the key over unasked.

        Raises:
            DuplicateKey: the other send was given something else.
            KeysUnavailable: the store does not answer; the key is not claimed.
        """
        self._claim = self._claim._replace(sending=sending)
        claiming = asyncio.ensure_future(self._store.claim(self._claim))
        try:
            record = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            claiming.add_done_callback(self._release_late, context=Context())
            raise
        except QueueUnavailable as error:
            raise KeysUnavailable(
                f"key: it is unknown whether {shown(self._claim.name)} was used before ({error}); nothing was sent",
                temporary=True,
            ) from error
        if record is not None:
            return self.answer(record)
        self.claimed = True
        _keeper().add(self)
        return None

    def answer(self, record: KeyRecord) -> Receipt:
        """Return the receipt for this send, whose key another one has.

        Raises:
            DuplicateKey: that one was given something else.
        """
        return answer_duplicate(self._claim, record)

    async def begin(self) -> Receipt | None:
        """Claim the key for an attempt, anew if it was lost meanwhile; see ``claim``.

        Raises:
            DuplicateKey: another send has it, and was given something else.
            KeysUnavailable: the store does not answer.
        """
        if self.claimed and await self._mark(sending=True):
            return None
        self._forget()
        return await self.claim(sending=True)

    async def wait(self) -> None:
        """Note that no attempt is being made, and that another one follows; nothing was sent so far."""
        try:
            await self._mark(sending=False)
        except KeysUnavailable as error:  # the next attempt begins by asking again
            logger.debug("%s", error)

    async def settle(self, receipt: Receipt) -> None:
        """Record the result, or free the key if nobody has the message."""
        await asyncio.shield(self.settle_soon(receipt))

    async def settle_decision(self, decision: Decision) -> None:
        """Record what a decision of the dispatcher makes of the key."""
        result = Receipt(self._claim.message_id, DeliveryMode.DEFERRED)
        if isinstance(decision, Done):
            await self.settle(result)
        elif isinstance(decision, GiveUp):
            missing = decision.progress.missing
            reached = missing is not None and not self._recipients <= {*missing}
            if not reached:
                result = result._replace(error=DeliveryError(decision.reason, uncertain=decision.uncertain))
            await self.settle(result)
        elif decision.progress.uncertain:
            # It may have been sent, so the claim stays as it is.
            return
        else:
            await self.wait()

    async def record(self, sending: Awaitable[Receipt]) -> Receipt:
        """Await what sends the message, record its result, and return it; free the key if it raises.

        Raises:
            Exception: what ``sending`` raises.
        """
        attempt = Attempt()
        try:
            with attempt.active():
                mark_offered()
                receipt = await sending
        except Exception:  # of a broker that has not accepted it, or of a backend that is no delivery error
            await self.release()
            raise
        except BaseException:  # cancelled
            self.cut_short(uncertain=not attempt.nothing_sent)
            raise
        await self.settle(receipt)
        return receipt

    async def release(self) -> None:
        """Free the key: nothing was sent, and nothing will be."""
        await asyncio.shield(self.release_soon())

    def settle_soon(self, receipt: Receipt) -> "asyncio.Task[None]":
        """Do what ``settle`` does where it cannot be awaited."""
        error = receipt.error
        if error is not None and not (isinstance(error, DeliveryError) and error.uncertain):
            return self.release_soon()
        return self._record(lambda: self._store.finish(self._claim, encode_receipt(receipt)))

    def release_soon(self) -> "asyncio.Task[None]":
        """Do what ``release`` does where it cannot be awaited."""
        return self._record(lambda: self._store.release(self._claim))

    def cut_short(self, *, uncertain: bool) -> None:
        """Free the key of a message that is not sent any more, or record that it may have been sent."""
        error = DeliveryError("the attempt was cut short", uncertain=uncertain)
        self.settle_soon(Receipt(self._claim.message_id, DeliveryMode.INLINE, error=error))

    async def _mark(self, *, sending: bool) -> bool:
        """True when the claim is still ours; it is renewed."""
        self._claim = self._claim._replace(sending=sending)
        try:
            async with _keeper().renewing:
                (owned,) = await self._store.renew([self._claim])
        except QueueUnavailable as error:
            raise KeysUnavailable(
                f"key: it is unknown whether {shown(self._claim.name)} was used meanwhile ({error})", temporary=True
            ) from error
        return owned

    def _record(self, record: Callable[[], Awaitable[None]]) -> "asyncio.Task[None]":
        self._forget()
        return _keeper().run(self._repeat(record))

    async def _repeat(self, record: Callable[[], Awaitable[None]]) -> None:
        try:
            await record()
        except QueueUnavailable as error:
            logger.warning("the key of message %s is not recorded yet: %s", self._claim.message_id, error)
            _keeper().run(self._repeat_often(record))

    async def _repeat_often(self, record: Callable[[], Awaitable[None]]) -> None:
        for _ in range(_REPEATS):
            await asyncio.sleep(_REPEAT_AFTER)
            try:
                await record()
            except QueueUnavailable:
                continue
            return
        logger.error("the key of message %s was not recorded: a later send with it may send", self._claim.message_id)

    def _forget(self) -> None:
        self.claimed = False
        _keeper().discard(self)

    def _release_late(self, claiming: "asyncio.Future[KeyRecord | None]") -> None:
        """Free a key whose claim was answered after nobody waited for it any more."""
        if not claiming.cancelled() and claiming.exception() is None and claiming.result() is None:
            self.release_soon()


class _Keeper:
    """Renews the claims of one event loop, and keeps the tasks that record results."""

    def __init__(self) -> None:
        self._sends: set[KeyedSend] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.renewing = asyncio.Lock()  # a renewal of all must not overtake that of one which has begun to send

    def add(self, send: KeyedSend) -> None:
        """Renew the claim of ``send`` from now on."""
        self._sends.add(send)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_RENEW_EVERY, self._renew_all, context=Context())

    def discard(self, send: KeyedSend) -> None:
        """Renew it no more."""
        self._sends.discard(send)
        if not self._sends and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run ``work`` in a task of its own, which the end of the loop waits for."""
        # An empty context: the task may outlive the request and must not see its outbox or transaction.
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard, context=Context())
        return task

    async def drain(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds until results are recorded."""
        deadline = asyncio.get_running_loop().time() + timeout
        while self._tasks and (left := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(tuple(self._tasks), timeout=left)

    async def close(self) -> None:
        """Wait for what is nearly done, and give up the rest."""
        await self.drain(_LAST_WAIT)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _renew_all(self) -> None:
        self._timer = None
        self.run(self._renew())
        for send in tuple(self._sends):
            self.add(send)

    async def _renew(self) -> None:
        async with self.renewing:
            by_store: dict[KeyStore, list[KeyClaim]] = {}
            for send in self._sends:
                by_store.setdefault(send.store, []).append(send.current_claim)
            for store, claims in by_store.items():
                try:
                    await store.renew(claims)
                except QueueUnavailable as error:
                    logger.warning("the claims of %d keys are not renewed: %s", len(claims), error)


def report_duplicate(message: OutgoingMessage, transport: Transport, receipt: Receipt) -> None:
    """Log and publish that ``message`` is not sent, because an earlier send has its key."""
    detail = describe_duplicate(message.message_id, receipt)
    logger.info("message %s is not sent: %s", message.message_id, detail)
    transport.publish("duplicate", message, detail)


def report_dropped(message: OutgoingMessage, transport: Transport, claim: KeyClaim, record: KeyRecord) -> None:
    """Log and publish that ``message`` is not sent: the send of ``record`` has its key, perhaps with other content."""
    error: EmailError | None
    try:
        receipt = answer_duplicate(claim, record)
        error = receipt.error
    except DuplicateKey as found:
        error = found
    if error is None:
        report_duplicate(message, transport, receipt)
        return
    logger.error("message %s is not sent: %s", claim.message_id, error)
    transport.publish("failed", message, str(error))


_keepers: PerLoop[_Keeper] = PerLoop()


def _keeper() -> _Keeper:
    found = _keepers.get()
    if found is None:
        found = _Keeper()
        _keepers.set(found)
        at_loop_end(found.close)
    return found


async def record_pending(timeout: float) -> None:
    """Wait up to ``timeout`` seconds until the results of this event loop's keyed sends are recorded."""
    found = _keepers.get()
    if found is not None:
        await found.drain(timeout)
