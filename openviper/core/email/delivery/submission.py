"""Sending a prepared message the way that fits, or holding it until the open transaction is committed."""

import asyncio
import logging
from dataclasses import dataclass, replace

from openviper.core.email.backends.interception import HeldMessage, interceptor_for
from openviper.core.email.delivery.current import current_mailer
from openviper.core.email.delivery.mailer import Mailer
from openviper.core.email.delivery.mode import choose_way
from openviper.core.email.delivery.request_outbox import RequestOutbox, current_outbox
from openviper.core.email.delivery.schedule import AT_ONCE, Schedule
from openviper.core.email.errors import InvalidMessage, QueueUnavailable
from openviper.core.email.events import Receipt, Way, publish
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue import QueueService
from openviper.db.transaction import current_record, hold

__all__ = ["submit"]

logger = logging.getLogger("openviper.email")


async def submit(
    mailer: Mailer,
    message: OutgoingMessage,
    *,
    background: bool | None,
    fail_silently: bool,
    schedule: Schedule = AT_ONCE,
) -> Receipt:
    """Send ``message`` the way that fits, or hold it while a transaction is open.

    Raises:
        DeliveryError: the inline attempt failed and ``fail_silently`` is off.
        InvalidMessage: ``schedule`` asks for later, and there is no broker to keep the message until then.
        QueueUnavailable: likewise, and the broker does not answer.
    """
    if not mailer.here and (loop := mailer.loop) is not None:
        # A thread of a request has a loop of its own, which may end before the message is on its way.
        elsewhere = submit(mailer, message, background=background, fail_silently=fail_silently, schedule=schedule)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(elsewhere, loop))
    if not _only_inline(mailer, background, schedule):
        way = await _Submission(mailer, message, background, current_outbox(), schedule).leave()
        if way is not Way.INLINE:
            return Receipt(message.message_id, way)
    receipt = await mailer.attempt(message)
    if receipt.error is not None:
        if not fail_silently:
            raise receipt.error
        logger.warning("message %s was not delivered (fail_silently): %s", message.message_id, receipt.error)
    return receipt


def _only_inline(mailer: Mailer, background: bool | None, schedule: Schedule) -> bool:
    """True where that is plain at once: asked for, or nothing is there that the message could wait in or be given to.

    As in most scripts. ``_Submission.leave`` would come to the same end.
    """
    if schedule.later or background:
        return False
    if background is False:
        return True
    if current_outbox() is not None or current_record() is not None:
        return False
    use = mailer.settings.use_background_worker
    return use is False or (use is None and mailer.queue is None)


@dataclass(slots=True, eq=False)
class _Submission:
    """A message, what its sender asked for, and the request that he serves."""

    mailer: Mailer
    message: OutgoingMessage
    background: bool | None
    outbox: RequestOutbox | None
    schedule: Schedule

    async def leave(self) -> Way:
        """Hold, queue or defer it, whichever comes first. ``INLINE``: none of them, it is still here."""
        if self.schedule.later:
            await self._check_that_it_can_wait()
        if self.background is not False and self._hold():
            return Way.HELD
        service = self._broker()
        if service is not None and await self._enqueue(service):
            return Way.QUEUED
        return Way.DEFERRED if self._defer(room=not self.mailer.dispatcher.full) else Way.INLINE

    async def _check_that_it_can_wait(self) -> None:
        """Raise what is wrong with sending it later."""
        mailer = self.mailer
        if self.background is False or (self.background is None and mailer.settings.use_background_worker is False):
            raise InvalidMessage("send_at, delay: only the queue keeps a message until then, and it is not to be used")
        service = mailer.queue
        if service is None:
            raise InvalidMessage('send_at, delay: no broker can keep the message until then; set TASKS["broker"]')
        if not await asyncio.to_thread(service.detector.available):
            raise QueueUnavailable(
                f"send_at, delay: the broker ({service.settings.address}) does not answer, and nothing else can keep "
                "the message until then"
            )

    def _hold(self) -> bool:
        """True when it now waits for the commit of the transaction that is open here."""
        if current_record() is None:
            return False
        held = HeldMessage(self.release, self.drop)
        if not hold(held.release, held.drop):
            return False
        publish("held", self.message)
        interceptor = interceptor_for(self.message.message_id)
        if interceptor is not None:
            interceptor.hold(self.message, held)
        return True

    def _broker(self) -> QueueService | None:
        """Where it is to be queued; None when it goes another way."""
        if self._way(broker=True) is not Way.QUEUED:
            return None  # and TASKS are not read, which may be wrong where nobody uses them
        service = self.mailer.queue
        if service is None and self._asked_for and not self.mailer.in_memory:
            logger.warning("message %s is not queued: TASKS names no real broker", self.message.message_id)
        return service

    async def _enqueue(self, service: QueueService) -> bool:
        """True when the broker has taken it.

        Raises:
            QueueUnavailable: it did not, and the message cannot go another way because it must wait.
        """
        mailer, message, schedule = self.mailer, self.message, self.schedule
        detector = service.detector
        try:
            if not (detector.available() if detector.known else await asyncio.to_thread(detector.available)):
                raise QueueUnavailable(f"the broker ({service.settings.address}) does not answer")
            await service.enqueue(message, mailer.settings, due_at=schedule.due_at, expires_at=schedule.expires_at)
        except QueueUnavailable as error:
            if schedule.later:
                raise
            logger.log(
                logging.WARNING if self._asked_for else logging.DEBUG,
                "message %s is not queued: %s",
                message.message_id,
                error,
            )
            return False
        publish("queued", message)
        return True

    def _defer(self, *, room: bool) -> bool:
        """True when it now waits for the end of the response; ``room``: the dispatcher has room for it."""
        if self.outbox is None or self._way(broker=False, room=room) is not Way.DEFERRED:
            return False
        self.outbox.add(self.mailer.dispatcher, self.message)
        return True

    async def release(self) -> None:
        """Send it after the commit.

        The commit stands whatever happens to the mail, so nothing here raises a delivery error, and a full dispatcher
        is waited for after the response instead of holding the response up.
        """
        if self.mailer.closed or not self.mailer.here:
            # Sent by a thread whose own loop, and this mailer with it, has ended before the transaction.
            await replace(self, mailer=await current_mailer()).release()
            return
        try:
            service = self._broker()
            if service is not None and await self._enqueue(service):
                return
        except QueueUnavailable as error:
            logger.error("message %s was not queued, and it must wait: it is lost: %s", self.message.message_id, error)
            publish("failed", self.message, str(error))
            return
        if not self._defer(room=True):
            (handed,) = self.mailer.dispatcher.hand_over((self.message,))
            await asyncio.shield(handed.done)

    def drop(self) -> None:
        """Forget it: the transaction was rolled back."""
        logger.info("message %s is discarded: its transaction was rolled back", self.message.message_id)
        publish("discarded", self.message, "the transaction was rolled back")

    @property
    def _asked_for(self) -> bool:
        """True when the queue was asked for, not only taken because it is there."""
        return bool(self.background) or self.mailer.settings.use_background_worker is True

    def _way(self, *, broker: bool, room: bool = False) -> Way:
        return choose_way(
            background=self.background,
            use_background_worker=self.mailer.settings.use_background_worker,
            broker=broker,
            in_request=self.outbox is not None and not self.mailer.closed,
            room=room,
        )
