"""Detect whether the broker answers: probe it in threads, remember the answer, and log each change once."""

import logging
import threading
import time
from collections.abc import Callable

from openviper.backoff import Backoff
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.queue.remedy import START_BROKER, broker_remedy

__all__ = ["Detector"]

logger = logging.getLogger("openviper.email")

_LIMIT = 1.0  # seconds to wait for the first answer
_FRESH = 5.0  # seconds after which an answer is renewed: a probe writes, so that it is not free for the broker
_SETTLED = 30.0  # seconds for which a broker must have answered for the next pause to be a short one again
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds between the probes of a broker that does not answer


class Detector:
    """Keeps the last result of ``probe`` (which raises QueueUnavailable), for every thread and loop of the process.

    While the broker is down, a thread repeats the probe, so that queueing resumes by itself.
    """

    def __init__(self, probe: Callable[[], None], address: str) -> None:
        self._probe = probe
        self._address = address
        self._lock = threading.Lock()
        self._up: bool | None = None
        self._asked_at = 0.0
        self._up_since = 0.0
        self._backoff = Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        self._asking: threading.Event | None = None

    @property
    def known(self) -> bool:
        """True once there was an answer; before, ``available`` waits for one."""
        return self._up is not None

    def available(self) -> bool:
        """Return the last answer; without one, ask and wait for at most a second."""
        if self._up is None:
            self._ask().wait(_LIMIT)
            if self._up is None:
                self.failed("no answer in time")
        elif self._up and time.monotonic() - self._asked_at > _FRESH:
            self._ask()
        return bool(self._up)

    def ask(self) -> bool:
        """Return whether the broker answers now: one that answered the last time is probed once more; blocks."""
        if not self._up:
            return self.available()
        try:
            self._probe()
        except QueueUnavailable as error:
            self.failed(str(error), broker_remedy(error) or START_BROKER)
        else:
            self.succeeded()
        return bool(self._up)

    def succeeded(self) -> None:
        """Record that the broker has just answered."""
        self._note(up=True)

    def failed(self, reason: str, remedy: str = START_BROKER) -> None:
        """Record that the broker has just failed a send, and probe it until it answers."""
        self._note(up=False, reason=reason, remedy=remedy)
        self._ask()

    def _ask(self) -> threading.Event:
        with self._lock:
            if self._asking is None:
                self._asking = threading.Event()
                threading.Thread(target=self._run, args=(self._asking,), name="openviper-probe", daemon=True).start()
            return self._asking

    def _run(self, asked: threading.Event) -> None:
        if self._up is False:
            time.sleep(self._backoff.failed())
        while True:
            try:
                self._probe()
            except QueueUnavailable as error:
                self._note(up=False, reason=str(error), remedy=broker_remedy(error) or START_BROKER)
            except Exception as error:  # whatever a client library raises, a sender waits for the answer
                logger.debug("the broker could not be asked", exc_info=True)
                self._note(up=False, reason=f"{type(error).__name__}: {error}")
            else:
                self._note(up=True)
            asked.set()
            with self._lock:
                if self._up:
                    self._asking = None
                    return
            time.sleep(self._backoff.failed())

    def _note(self, *, up: bool, reason: str = "", remedy: str = START_BROKER) -> None:
        with self._lock:
            before, self._up, self._asked_at = self._up, up, time.monotonic()
            if up and not before:
                self._up_since = self._asked_at
            elif before and not up and self._asked_at - self._up_since > _SETTLED:
                self._backoff.succeeded()
        if before == up:
            return
        if up:
            if before is False:
                logger.info("mail is queued again: the broker (%s) answers", self._address)
        else:
            logger.warning(
                "mail is not queued: the broker (%s) does not answer: %s; %s", self._address, reason.rstrip("."), remedy
            )
