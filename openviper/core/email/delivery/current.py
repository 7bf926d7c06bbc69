"""Find the mailer for the code that sends: the request's, the event loop's, or a new one."""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from weakref import ref

from openviper.core.email.delivery.dispatcher import Dispatcher
from openviper.core.email.delivery.mailer import Mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, current_outbox, stay_current
from openviper.core.email.delivery.wrappers import wrappers
from openviper.core.email.settings import EmailSettings
from openviper.db.transaction import entered
from openviper.loops import PerLoop, at_loop_end

__all__ = [
    "apart_from_other_requests",
    "current_mailer",
    "current_settings",
    "mailer_if_open",
    "serving_event_loop",
    "serving_loop",
    "stay_with",
    "using_mailer",
]

_of_loop: PerLoop[Mailer] = PerLoop()
_serving: list[asyncio.AbstractEventLoop] = []
_of_request: ContextVar[Mailer | None] = ContextVar("openviper.email.mailer", default=None)


@contextmanager
def using_mailer(mailer: Mailer) -> Iterator[None]:
    """Make ``mailer`` the one that a request's sends use, also in the tasks and threads that it starts."""
    token = _of_request.set(mailer)
    try:
        yield
    finally:
        _of_request.reset(token)


def stay_with(mailer: Mailer, outbox: RequestOutbox) -> None:
    """Keep the failed request's mailer and outbox current, for an error handler that runs outside the middleware."""
    if current_outbox() is None:
        _of_request.set(mailer)
        stay_current(outbox)


def apart_from_other_requests() -> AbstractContextManager[None]:
    """Leave, during a request, the transaction of another request whose context was copied into this one's.

    A server that has read the next request of a connection already may start it while the one before sends the end of
    its response, and that may be inside a ``transaction()``.
    """
    return nullcontext() if current_outbox() is None else entered(None)


@contextmanager
def serving_loop(mailer: Mailer) -> Iterator[None]:
    """Make ``mailer`` the running loop's mailer during a lifespan."""
    before = _of_loop.get()
    _of_loop.set(mailer)
    loop = asyncio.get_running_loop()
    _serving.append(loop)
    try:
        yield
    finally:
        _serving.remove(loop)
        if _of_loop.get() is mailer:
            _of_loop.discard()
            if before is not None and not before.closed:
                _of_loop.set(before)


def serving_event_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that serves this process's applications; None when there is none, or several."""
    loops = set(_serving)
    return loops.pop() if len(loops) == 1 else None


def mailer_if_open() -> Mailer | None:
    """Return the current mailer if it is open already, or None."""
    mailer = _known_mailer()
    return mailer if mailer is not None and mailer.opened else None


async def current_mailer() -> Mailer:
    """Return the request's mailer, or the loop's, or a new one that is closed when the loop ends."""
    mailer = _known_mailer()
    if mailer is None:
        wrappers.warn_if_unreached()
        mailer = Mailer(EmailSettings.from_settings(), follows_settings=True)
        _of_loop.set(mailer)
        # Weak, so that the connections of a mailer which changed settings have replaced are closed with it.
        at_loop_end(partial(_close, ref(mailer), mailer.dispatcher, mailer.settings.shutdown_timeout))
    if not mailer.opened:
        await mailer.open()
    return mailer


def current_settings() -> EmailSettings:
    """Return the settings of the mailer that is current, or would be, whether it is open or not.

    Raises:
        ImproperlyConfigured: they are wrong.
    """
    try:
        mailer = _known_mailer()
    except RuntimeError:  # a thread without an event loop, outside a request
        mailer = None
    return EmailSettings.from_settings() if mailer is None else mailer.settings


def _known_mailer() -> Mailer | None:
    mailer = _of_request.get()
    if mailer is None or not mailer.reachable:
        mailer = _of_loop.get()
    return None if mailer is None or mailer.closed or mailer.outdated else mailer


async def _close(kept: "ref[Mailer]", dispatcher: Dispatcher, shutdown_timeout: float) -> None:
    mailer = kept()
    if mailer is None:
        await dispatcher.drain(shutdown_timeout)
        return
    await mailer.aclose()
    if _of_loop.get() is mailer:
        _of_loop.discard()
