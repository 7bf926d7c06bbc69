"""What a worker does with queued mail: one attempt for each ticket, and then what follows from it."""

import asyncio
import logging
import threading
import time
import traceback
from dataclasses import replace
from functools import lru_cache
from typing import Any

import dramatiq
from dramatiq import Broker, Middleware
from dramatiq.asyncio import get_event_loop_thread

from openviper.core.email.backends import EmailBackend, get_backend
from openviper.core.email.backends.base import DeliveryReport
from openviper.core.email.errors import DeliveryError, DeliveryTimeout, InvalidMessage, QueueUnavailable
from openviper.core.email.events import publish
from openviper.core.email.message import OutgoingMessage, PreparedMessage
from openviper.core.email.message.serialiser import outgoing
from openviper.core.email.message.storage import UnknownPayload, decode
from openviper.core.email.queue.decision import Again, Done, Failed, after_error, after_report
from openviper.core.email.queue.job import ACTOR, QUEUE, Held, Progress, Spool
from openviper.core.email.queue.service import queue_service
from openviper.core.email.settings import EmailSettings, settings_version
from openviper.loops import PerLoop, at_loop_end

__all__ = ["declare"]

logger = logging.getLogger("openviper.email")

# RabbitMQ takes a message away from a worker that has it for half an hour.
_LONGEST_ATTEMPT = 1500.0
_PROMOTE_EVERY = 0.5


def declare(broker: Broker) -> None:
    """Declare the actor of queued mail on ``broker``; may be called again."""
    if ACTOR in broker.actors:
        return
    broker.add_middleware(_Promoter())
    # Tries again by itself; Dramatiq's tries would come on top. Its time limit would end the wait for a broker that is
    # down, and what was done with the message would never be written down; an attempt has our own limit.
    make = dramatiq.actor(actor_name=ACTOR, queue_name=QUEUE, broker=broker, max_retries=0, time_limit=float("inf"))
    make(_deliver)


def _deliver(*ticket: Any) -> None:
    service = queue_service()
    assert service is not None, "a worker has a broker"
    held = service.spool.receive(*ticket)
    if held is not None:
        _settle(service.spool, held, _settings(settings_version()))


@lru_cache(maxsize=1)
def _settings(_version: int) -> EmailSettings:
    # For each message the environment would be looked through, and a worker's does not change.
    return EmailSettings.from_settings()


def _settle(spool: Spool, held: Held, settings: EmailSettings) -> None:
    outcome = _attempt(held, settings)
    if isinstance(outcome, Done):
        logger.debug("message %s: delivered", held.message_id)
        spool.sent(held, remember=max(3600.0, settings.retry_max_age))
    elif isinstance(outcome, Again):
        logger.info(
            "message %s: attempt %d failed, next one in %.0f s",
            held.message_id,
            outcome.progress.attempts,
            outcome.delay,
        )
        spool.again(held, outcome.progress, delay=outcome.delay)
    else:
        logger.error(
            "message %s %s delivered after %d attempt(s); `viperctl email failed show` says why",
            held.message_id,
            "may have been" if outcome.uncertain else "was not",
            outcome.progress.attempts,
        )
        spool.fail(held, outcome.progress, outcome.reason, keep=settings.failed_keep, uncertain=outcome.uncertain)


def _attempt(held: Held, settings: EmailSettings) -> Done | Again | Failed:
    thread = get_event_loop_thread()
    assert thread is not None, "the broker has the AsyncIO middleware"
    if held.repeated:  # that attempt may have delivered it, whatever comes of this one
        held = held._replace(progress=replace(held.progress, uncertain=True))
    try:
        if held.payload is None or held.damage:
            raise UnknownPayload(held.damage)
        return thread.run_coroutine(_send(decode(held.payload), held, settings))
    except UnknownPayload as error:
        return Failed(held.progress, f"cannot be read: {error}")
    except Exception as error:  # noqa: BLE001 - the message must be kept whatever happens
        return _after_error(held, error, settings)


def _not_sent(held: Held, settings: EmailSettings) -> Failed | None:
    """Why there is no attempt; None if there is one."""
    if held.progress.expires_at is not None and time.time() > held.progress.expires_at:
        return Failed(held.progress, "expired before it could be delivered")
    if held.repeated and settings.on_uncertain == "hold":
        return Failed(held.progress, "its worker died while it had it, perhaps after sending")
    return None


def _after_error(held: Held, error: Exception, settings: EmailSettings) -> Again | Failed:
    if isinstance(error, InvalidMessage):
        return Failed(held.progress, str(error))
    _log(held, error)
    return after_error(held.progress, error, settings)


def _log(held: Held, error: Exception) -> None:
    """Without the error's text, in which a server may repeat an address; it is kept with the message."""
    if isinstance(error, DeliveryError):
        code = f" {error.code}" if error.code is not None else ""
        logger.warning("message %s: %s%s", held.message_id, type(error).__name__, code)
    else:
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("message %s: unexpected %s\n%s", held.message_id, type(error).__name__, frames)


async def _send(prepared: PreparedMessage, held: Held, settings: EmailSettings) -> Done | Again | Failed:
    """Try once, and tell of it and of what follows."""
    message = await outgoing(prepared, max_message_bytes=settings.max_message_bytes)
    if held.progress.left is not None:
        message = message.for_recipients(held.progress.left)
    if (failed := _not_sent(held, settings)) is not None:
        publish("failed", _missing(message, failed.progress), failed.reason)
        return failed
    backend = await _backend(settings)
    publish("sending", message)
    try:
        report = await _in_time(backend, message)
    except Exception as error:  # noqa: BLE001 - a backend may be anybody's
        after = _after_error(held, error, settings)
        if isinstance(after, Again):
            left = after.progress.left
            publish("retrying", message if left is None else message.for_recipients(left), str(error))
        else:
            publish("failed", _missing(message, after.progress), str(error))
        return after
    outcome = after_report(held.progress, report, settings)
    publish("delivered", message, report.outcome, refused=tuple(report.refused))
    if isinstance(outcome, Again):
        later = outcome.progress.left or ()
        publish("retrying", message.for_recipients(later), f"{len(later)} of its recipients were refused for now")
    if isinstance(outcome, Failed) and outcome.progress.held:
        # Held in this attempt or an earlier one: that the others have it may not hide that these may lack it.
        publish("failed", _missing(message, outcome.progress), outcome.reason)
    return outcome


def _missing(message: OutgoingMessage, progress: Progress) -> OutgoingMessage:
    """Address ``message`` to those who are not known to have it."""
    return message if progress.missing is None else message.for_recipients(progress.missing)


async def _in_time(backend: EmailBackend, message: OutgoingMessage) -> DeliveryReport:
    try:
        async with asyncio.timeout(_LONGEST_ATTEMPT) as limit:
            return await backend.send(message)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DeliveryTimeout("the attempt took too long", temporary=True, uncertain=True) from error


_backends: PerLoop[tuple[EmailSettings, "asyncio.Task[EmailBackend]"]] = PerLoop()


async def _backend(settings: EmailSettings) -> EmailBackend:
    """The backend of the worker's loop, closed with the loop."""
    found = _backends.get()
    if found is None or found[0] != settings or (found[1].done() and found[1].exception() is not None):
        found = settings, asyncio.create_task(_open(settings))
        _backends.set(found)
    opening = found[1]
    return opening.result() if opening.done() else await asyncio.shield(opening)


async def _open(settings: EmailSettings) -> EmailBackend:
    backend = get_backend(settings=settings)
    await backend.open()
    at_loop_end(backend.aclose)
    return backend


class _Promoter(Middleware):
    """On Redis, gives out the tickets of mail whose time has come. RabbitMQ's delayed messages need none."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def after_worker_boot(self, _broker: Broker, worker: Any) -> None:
        service = queue_service()
        if QUEUE not in worker.consumers or service is None or service.settings.broker != "redis":
            return
        self._end.clear()
        self._thread = threading.Thread(target=self._run, args=(service.spool,), name="promoter", daemon=True)
        self._thread.start()

    def before_worker_shutdown(self, _broker: Broker, _worker: Any) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(10)

    def _run(self, spool: Any) -> None:
        while not self._end.wait(_PROMOTE_EVERY):
            try:
                while spool.promote():
                    pass
            except QueueUnavailable as error:
                logger.debug("nothing could be given out: %s", error)
                self._end.wait(2)
