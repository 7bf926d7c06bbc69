"""Send a prepared message in the delivery mode that fits, or hold it until the open transaction is committed."""

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from openviper import tracing
from openviper.core.email.delivery.current import current_mailer
from openviper.core.email.delivery.deadline import Deadline
from openviper.core.email.delivery.enqueueing import EnqueueTransport, enqueue, queued_at
from openviper.core.email.delivery.held import HeldMessage
from openviper.core.email.delivery.keyed_send import KeyedSend, report_duplicate
from openviper.core.email.delivery.last_mile import FIRST_ATTEMPT, attempt_delivery
from openviper.core.email.delivery.mailer import Mailer
from openviper.core.email.delivery.mode import choose_mode
from openviper.core.email.delivery.outbox import Outbox, StoredMessage
from openviper.core.email.delivery.request_outbox import RequestOutbox, current_outbox
from openviper.core.email.delivery.schedule import AT_ONCE, Schedule
from openviper.core.email.delivery.transport import Transport
from openviper.core.email.errors import (
    DeliveryError,
    DeliveryTimeout,
    DuplicateKey,
    EmailError,
    InvalidMessage,
    KeysUnavailable,
    QueueUnavailable,
)
from openviper.core.email.events import NOTHING, Circumstances, DeliveryMode, Receipt
from openviper.core.email.message import OutgoingMessage, SendCancelled
from openviper.core.email.message.tracing import start_hold
from openviper.core.email.queue.retry import Decision, Done, InlinePolicy
from openviper.core.email.settings import EmailSettings
from openviper.db.transaction import current_record, hold
from openviper.tracing import Span

if TYPE_CHECKING:
    from openviper.db.outbox.commit import StoredSend

__all__ = ["cancel", "deliver_inline", "failed", "submit"]

logger = logging.getLogger("openviper.email")

_INLINE = DeliveryMode.INLINE  # a look-up in an enumeration costs as much as a call, at each send
_POLICY = InlinePolicy()


async def submit(
    mailer: Mailer,
    message: OutgoingMessage,
    *,
    background: bool | None,
    fail_silently: bool,
    schedule: Schedule = AT_ONCE,
    deadline: Deadline | None = None,
) -> Receipt:
    """Send ``message`` in the delivery mode that fits, or hold it while a transaction is open.

    At ``deadline`` an inline delivery or the wait for the broker ends, as a failed delivery.

    Raises:
        DeliveryError: the inline attempt failed and ``fail_silently`` is off.
        InvalidMessage: ``schedule`` asks for later, and there is no broker to keep the message until then; or the
            broker does not take messages of this size.
        QueueUnavailable: likewise, and the broker does not answer.
    """
    if not mailer.here and (loop := mailer.loop) is not None:
        # A thread of a request has a loop of its own, which may end before the message is on its way.
        elsewhere = submit(
            mailer, message, background=background, fail_silently=fail_silently, schedule=schedule, deadline=deadline
        )
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(elsewhere, loop))
    transport, outbox = mailer.transport, current_outbox()
    mode = _fitting_mode(mailer, transport, message, background, outbox)
    later = schedule is not AT_ONCE and schedule.later
    keyed = None
    if message.prepared.must is not NOTHING:
        keyed = KeyedSend.of(message, transport, ttl=mailer.settings.key_ttl, due_at=schedule.due_at)
    if mode is not _INLINE or later or background or mailer.settings.use_background_worker or keyed is not None:
        submission = _Submission(mailer, transport, message, background, outbox, schedule, keyed)
        left = await _leave(submission, mode, deadline, fail_silently=fail_silently)
        if left is not None:
            return left
    time_limit = None if deadline is None else deadline.left
    if keyed is None:
        decision = await attempt_delivery(
            message, transport, FIRST_ATTEMPT, _POLICY, mode=_INLINE, time_limit=time_limit
        )
        receipt = _receipt(message, decision)
    else:
        receipt = await keyed.record(_deliver(message, transport, time_limit=time_limit))
    if receipt.error is not None:
        if deadline is not None and isinstance(receipt.error, DeliveryTimeout) and not deadline.left:
            late = deadline.error(uncertain=receipt.error.uncertain)
            late.__cause__ = receipt.error
            return failed(late, message.message_id, fail_silently=fail_silently)
        remedy = transport.remedy(receipt.error, message.mailer)
        if not fail_silently:
            if remedy:
                receipt.error.add_note(f"-> {remedy}")
            raise receipt.error
        logger.warning(
            "message %s was not delivered (fail_silently): %s%s",
            message.message_id,
            receipt.error,
            f"; {remedy}" if remedy else "",
        )
    return receipt


async def _leave(
    submission: "_Submission", mode: DeliveryMode, deadline: Deadline | None, *, fail_silently: bool
) -> Receipt | None:
    """Return the receipt of a message that is not to be delivered here; None if it is.

    Raises:
        DeliveryError: the deadline has passed, its key cannot be claimed, or an earlier send with it is uncertain; and
            ``fail_silently`` is off.
        EmailError: as of ``_Submission.leave``.
    """
    message_id = submission.message.message_id
    leaving = submission.leave(mode)
    try:
        if deadline is not None:
            leaving = deadline.before(leaving, uncertain=lambda: submission.offered)
        receipt = await leaving
    except (DeliveryTimeout, KeysUnavailable) as error:
        return failed(error, message_id, fail_silently=fail_silently)
    if receipt is not None and isinstance(receipt.error, DeliveryError):
        silent = failed(receipt.error, message_id, fail_silently=fail_silently)
        return silent._replace(message_id=receipt.message_id, refused=receipt.refused, duplicate=True)
    return receipt


def failed(error: DeliveryError, message_id: str, *, fail_silently: bool) -> Receipt:
    """Return the receipt of a message that was not delivered in time, or raise; ``message_id`` "" for one not made."""
    if not fail_silently:
        raise error
    logger.warning("message %s was not delivered (fail_silently): %s", message_id or "(not made yet)", error)
    return Receipt(message_id, _INLINE, error=error)


def cancel(cancelled: SendCancelled, transport: Transport) -> Receipt:
    """Publish that ``before_send`` cancelled a message, and return its receipt, which is true."""
    message = cancelled.message
    logger.info("message %s is cancelled by before_send: %s", message.message_id, cancelled.reason)
    transport.publish("cancelled", message, cancelled.reason)
    return Receipt(message.message_id, _INLINE, cancelled=cancelled.reason)


async def deliver_inline(
    message: OutgoingMessage, transport: Transport, settings: EmailSettings, *, pipeline: bool = False
) -> Receipt:
    """Deliver ``message`` now; a failed delivery is a receipt with the error.

    Raises:
        DuplicateKey: another message has its key.
        KeysUnavailable: what keeps its key does not answer.
        Exception: what a backend raised that is not a delivery error.
    """
    if message.prepared.must is not NOTHING:
        keyed = KeyedSend.of(message, transport, ttl=settings.key_ttl)
        if keyed is not None:
            duplicate = await keyed.claim(sending=True)
            if duplicate is None:
                return await keyed.record(_deliver(message, transport, pipeline=pipeline))
            if duplicate.error is None:
                report_duplicate(message, transport, duplicate)
            return duplicate
    return await _deliver(message, transport, pipeline=pipeline)


async def _deliver(
    message: OutgoingMessage, transport: Transport, *, pipeline: bool = False, time_limit: float | None = None
) -> Receipt:
    decision = await attempt_delivery(
        message, transport, FIRST_ATTEMPT, _POLICY, mode=_INLINE, pipeline=pipeline, time_limit=time_limit
    )
    return _receipt(message, decision)


def _receipt(message: OutgoingMessage, decision: Decision) -> Receipt:
    """Return the receipt of an inline attempt; raises an error that is not a delivery error."""
    if isinstance(decision, Done):
        report = decision.report
        receipt = Receipt(
            message.message_id, _INLINE, report.accepted, report.refused, report.response, None, None, report.suppressed
        )
        return receipt if report.dsn is None else receipt._replace(dsn=report.dsn)
    error = decision.error
    if not isinstance(error, DeliveryError):
        assert error is not None, "a report is done with one attempt"
        raise error
    return Receipt(message.message_id, _INLINE, refused=error.refused, error=error)


def _fitting_mode(
    mailer: Mailer,
    transport: Transport | None,
    message: OutgoingMessage,
    background: bool | None,
    outbox: RequestOutbox | None,
    *,
    held_before: bool = False,
) -> DeliveryMode:
    return choose_mode(
        background,
        mailer.settings.use_background_worker,
        in_transaction=not held_before and current_record() is not None,
        transport=transport,
        # After the commit a full dispatcher is waited for, after the response.
        can_defer=outbox is not None
        and not mailer.closed
        and (held_before or mailer.dispatcher.has_room(message.size)),
    )


@dataclass(slots=True, eq=False)
class _Submission:
    """A message on its way into a delivery mode.

    ``keyed``: its idempotency key, claimed here where that can still be told to the caller.
    ``held_before``: its transaction has ended, so that it is not held again. ``broker_failed``: the broker did not
    accept it. ``offered``: the broker may have accepted it. ``stored``: its row, which the commit inserts. ``taken``:
    that row once it has been inserted. ``hold_span``: in a trace, the wait for the commit.
    """

    mailer: Mailer
    transport: Transport
    message: OutgoingMessage
    background: bool | None
    outbox: RequestOutbox | None
    schedule: Schedule
    keyed: KeyedSend | None = None
    held_before: bool = False
    broker_failed: bool = False
    offered: bool = False
    stored: "StoredSend | None" = None
    taken: StoredMessage | None = None
    hold_span: Span | None = None

    def choose_mode(self) -> DeliveryMode:
        """Return the mode that fits now."""
        transport = None if self.broker_failed else self.transport
        return _fitting_mode(
            self.mailer, transport, self.message, self.background, self.outbox, held_before=self.held_before
        )

    async def leave(self, mode: DeliveryMode) -> Receipt | None:
        """Hold, queue or defer it as ``mode`` says, or as the mode that fits when that fails; return its receipt.

        None: it is still to be delivered, inline or after a commit, and what is to be claimed for that is claimed.
        A duplicate's receipt: it is not to be sent at all.

        Raises:
            DuplicateKey: another message has its key.
            InvalidMessage: it must wait, and nothing can keep it until then.
            KeysUnavailable: it is to be delivered inline, and what keeps its key does not answer.
            QueueUnavailable: it must wait, and the broker does not answer.
        """
        outbox = self._outbox
        if self.schedule.later and not self.held_before:
            await self._check_that_it_can_wait(outbox)
        if mode is DeliveryMode.HELD and outbox is not None:
            self.stored = await outbox.prepare(self.message, self.schedule)
        receipt = None
        while True:
            if mode is DeliveryMode.HELD and not self._hold():
                self.held_before = True  # the transaction has ended in this very moment
            elif mode is DeliveryMode.QUEUED and (receipt := await self._enqueue()) is None:
                self.broker_failed = True
            else:
                break
            mode = self.choose_mode()
        if mode is DeliveryMode.HELD:
            return Receipt(self.message.message_id, mode, duplicate=None)
        if receipt is None and outbox is not None and self.schedule.later:
            return await self._store(outbox)
        if receipt is None:
            self._warn_without_broker()
            if self.keyed is not None and not self.held_before:
                receipt = await self._claim(self.keyed, mode)
        self._report(receipt)
        return self._defer() if receipt is None and mode is DeliveryMode.DEFERRED else receipt

    async def _store(self, outbox: Outbox) -> Receipt:
        """Store it for the relay, which sends it when it is due; return its receipt, or a duplicate's."""
        duplicate = None if self.keyed is None else await self.keyed.claim()
        if duplicate is not None:
            self._report(duplicate)
            return duplicate
        storing = self._store_for_relay(outbox)
        return await (storing if self.keyed is None else self.keyed.record(storing))

    async def _store_for_relay(self, outbox: Outbox) -> Receipt:
        await outbox.store_for_relay([(self.message, self.schedule)])
        self.transport.publish("queued", self.message)
        return Receipt(self.message.message_id, DeliveryMode.QUEUED)

    def _report(self, receipt: Receipt | None) -> None:
        """Publish a duplicate, and drop its row."""
        if receipt is not None and receipt.duplicate and receipt.error is None:
            report_duplicate(self.message, self.transport, receipt)
            if (row := self._row) is not None:
                row.delete()

    def _defer(self) -> Receipt:
        assert self.outbox is not None, "deferred means in a request"
        expires_at = self.schedule.expires_at
        self.outbox.add(self.mailer.dispatcher, self.message, self.transport, self._row, self.keyed, expires_at)
        unknown = self.keyed is not None and not self.keyed.claimed
        return Receipt(self.message.message_id, DeliveryMode.DEFERRED, duplicate=None if unknown else False)

    async def _claim(self, keyed: KeyedSend, mode: DeliveryMode) -> Receipt | None:
        """Claim its key for a delivery in ``mode``; return a duplicate's receipt."""
        try:
            return await keyed.claim(sending=mode is DeliveryMode.INLINE)
        except KeysUnavailable as error:
            if mode is DeliveryMode.INLINE:
                raise
            # The dispatcher asks again before each attempt.
            logger.warning("message %s waits until its key can be claimed: %s", self.message.message_id, error)
            return None

    @property
    def _outbox(self) -> Outbox | None:
        """Return the outbox that keeps it; None without one, and for mail that is only captured."""
        return self.mailer.outbox if self.transport.durable else None

    @property
    def _row(self) -> StoredMessage | None:
        """Return its row, once a commit has stored it."""
        if self.taken is None and self.stored is not None and self.mailer.outbox is not None:
            self.taken = self.mailer.outbox.taken(self.stored)
        return self.taken

    def _warn_without_broker(self) -> None:
        """Warn when the queue was asked for and there is none."""
        wanted = self._asked_for and self.background is not False
        if wanted and not self.transport.in_memory and self.transport.queue is None:
            logger.warning(
                'message %s is not queued: TASKS names no real broker; set TASKS["broker"] to "redis" or "rabbitmq"',
                self.message.message_id,
            )

    async def release(self) -> None:
        """Send it after the commit.

        The commit stands whatever happens to the mail, so nothing here raises a delivery error.
        """
        mailer = self.mailer
        if self.hold_span is not None:
            self.hold_span.end()
        if mailer.closed and self._row is not None:
            logger.info("message %s stays in the outbox, for the relay", self.message.message_id)
            return
        if mailer.closed or not mailer.here:
            # Sent by a thread whose own loop, and this mailer with it, has ended before the transaction.
            mailer = await current_mailer()
            transport = self.transport if self.transport is not self.mailer.own_transport else mailer.own_transport
            await replace(self, mailer=mailer, transport=transport, taken=None, hold_span=None).release()
            return
        self.held_before = True
        if (row := self._row) is not None and row.for_relay:
            self.transport.publish("queued", self.message)  # the relay takes it when it is due
            return
        try:
            receipt = await self.leave(self.choose_mode())
        except QueueUnavailable as error:
            logger.warning("message %s is not queued yet, although it must wait: %s", self.message.message_id, error)
            await self._dispatch(EnqueueTransport(self.transport, mailer.settings, self.schedule, self.keyed), None)
            return
        except DuplicateKey as error:
            self._drop_refused(error)
            return
        if receipt is None:
            await self._dispatch(self.transport, self.keyed)
        elif receipt.error is not None:
            self._drop_refused(receipt.error)

    def _drop_refused(self, error: EmailError) -> None:
        """Report, after the commit, a message that its key keeps from being sent."""
        logger.error("message %s is not sent: %s", self.message.message_id, error)
        self.transport.record(self.message, "failed")
        self.transport.publish("failed", self.message, str(error), circumstances=Circumstances(DeliveryMode.HELD))
        if (row := self._row) is not None:
            row.delete()

    async def _dispatch(self, transport: Transport, keyed: KeyedSend | None) -> None:
        """Have the dispatcher deliver it: after the response in a request, else before this returns."""
        dispatcher, expires_at = self.mailer.dispatcher, self.schedule.expires_at
        if self.outbox is not None and not self.mailer.closed:
            self.outbox.add(dispatcher, self.message, transport, self._row, keyed, expires_at)
            return
        row = self._row
        await dispatcher.accept(self.message, transport, row, keyed, expires_at).wait_settled()
        if row is not None:
            await row.recorded()  # a script may end now

    def drop(self) -> None:
        """Discard it: the transaction was rolled back."""
        logger.info("message %s is discarded: its transaction was rolled back", self.message.message_id)
        if self.hold_span is not None:
            self.hold_span.set("email.outcome", "discarded")
            self.hold_span.end()
        chosen = Circumstances(DeliveryMode.HELD)
        self.transport.publish("discarded", self.message, "the transaction was rolled back", circumstances=chosen)

    async def _check_that_it_can_wait(self, outbox: Outbox | None) -> None:
        if outbox is not None and self.background is not False:
            return
        if self.background is False or (
            self.background is None and self.mailer.settings.use_background_worker is False
        ):
            raise InvalidMessage(
                "send_at, delay: only the queue can keep a message until then, but use_background_worker is False"
                if self.background is None
                else "send_at, delay: only the queue can keep a message until then, but background is False"
            )
        queue = self.transport.queue
        if queue is None:
            raise InvalidMessage('send_at, delay: no broker can keep the message until then; set TASKS["broker"]')
        if not await queue.answers():
            raise QueueUnavailable(
                f"send_at, delay: the broker ({queue.address}) does not answer, and nothing else can keep the message "
                "until then"
            )

    def _hold(self) -> bool:
        """True when it now waits for the commit of the transaction that is open here."""
        held = HeldMessage(self.release, self.drop)
        if not hold(held.release, held.drop, self.stored):
            return False
        if tracing.tracer is not None:
            self.hold_span = start_hold(tracing.tracer, self.message)
        self.transport.hold(self.message, held)
        return True

    async def _enqueue(self) -> Receipt | None:
        """Return its receipt once the broker has accepted it, or a duplicate's; None if it goes another way.

        Raises:
            DuplicateKey: another message has its key.
            InvalidMessage: it is too large for the broker, or its Message-ID is that of another message to the same
                recipients, and no commit has promised it.
            QueueUnavailable: the broker did not accept it, and it has no other mode because it must wait.
        """
        queue, schedule = self.transport.queue, self.schedule
        assert queue is not None, "queued means that there is a queue"
        self.offered = True
        offered_at = time.time()
        try:
            if (row := self._row) is not None and not await row.begin():
                raise QueueUnavailable("another process has taken it over")
            receipt = await enqueue(queue, self.message, self.mailer.settings, schedule, self.keyed)
        except (QueueUnavailable, InvalidMessage) as error:
            self.offered = False
            if isinstance(error, DuplicateKey) or (isinstance(error, InvalidMessage) and not self.held_before):
                raise
            if schedule.later and self._outbox is None:
                raise QueueUnavailable(str(error)) from error
            level = logging.WARNING if self._asked_for else logging.DEBUG
            logger.log(level, "message %s is not queued: %s", self.message.message_id, error)
            return None
        if receipt.duplicate:
            return receipt
        if row is not None:
            row.delete()
        # A worker may have begun already, which must not seem earlier.
        self.transport.publish("queued", self.message, circumstances=queued_at(offered_at))
        return receipt

    @property
    def _asked_for(self) -> bool:
        """True when the queue was asked for, not only used because it is there."""
        return bool(self.background) or self.mailer.settings.use_background_worker is True
