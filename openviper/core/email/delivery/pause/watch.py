"""Follow the pause flag in a process: a thread reads it a few times a second, so that a send asks a mere attribute."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from weakref import WeakValueDictionary, ref

from openviper.core.email.delivery.pause.flag import interpret, pause_store
from openviper.core.email.delivery.pause.state import NOT_PAUSED, Pause, PauseState
from openviper.core.email.delivery.pause.store import FlagUnreadable, PauseStore
from openviper.core.email.errors import QueueUnavailable, SendingPaused
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import MissingDependency
from openviper.loops import after_fork_in_child
from openviper.text import one_line

__all__ = ["POLL_INTERVAL", "PauseWatch", "pause_watch"]

logger = logging.getLogger("openviper.email")

POLL_INTERVAL = 0.25  # seconds between two readings
_FIRST_READING = 2.0  # seconds that a process waits for the first one before it sends


class PauseWatch:
    """The pause flag as this process knows it, for every thread and event loop.

    A store that does not answer changes nothing: what is paused stays paused, and ends when its time is over. A process
    that has never had an answer sends.

    ``on`` is True while any mail is paused; a send asks for nothing else.
    """

    def __init__(self, store: PauseStore) -> None:
        self.store = store
        self.on = False
        self._state = NOT_PAUSED
        self._active: tuple[Pause, ...] = ()
        self._ahead = 0.0  # seconds that the store's clock is ahead of ours
        self._data: bytes | None = None
        self._problem: tuple[int, str] | None = None  # logged once, until it passes
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []
        self._thread: threading.Thread | None = None
        self._read_once = threading.Event()

    def start(self) -> None:
        """Begin to follow the flag; returns after the first reading, or after two seconds. Blocks.

        Raises:
            ImproperlyConfigured: a setting cannot be used.
        """
        with self._lock:
            if self._thread is None:
                try:
                    self.store.open()
                except MissingDependency as error:  # where mail may be queued, that has stopped the start already
                    logger.warning("sending cannot be paused in this process: %s", error)
                    return
                # The thread ends when nobody has this object any more.
                self._thread = threading.Thread(target=_poll, args=(ref(self),), name="openviper-pause", daemon=True)
                self._thread.start()
        self._read_once.wait(_FIRST_READING)

    def find(self, mailer: str) -> Pause | None:
        """Return the pause that stops mail of ``mailer`` the longest; None if it may be sent."""
        found = [pause for pause in self._active if pause.concerns(mailer)]
        return max(found, key=lambda pause: float("inf") if pause.until is None else pause.until, default=None)

    @property
    def holds_all(self) -> bool:
        """True if all mail is paused."""
        return self.on and any(pause.mailer is None for pause in self._active)

    def find_all(self) -> tuple[Pause, ...]:
        """Return the pauses that have not ended, with their times by this machine's clock."""
        return tuple([pause.on_clock(self._ahead) for pause in self._active])

    def check(self, mailer: str) -> None:
        """Return if mail of ``mailer`` may be sent.

        Raises:
            SendingPaused: it may not.
        """
        if (error := self.error(mailer)) is not None:
            raise error

    def error(self, mailer: str) -> SendingPaused | None:
        """Return the error of a message that may not be sent now; None if it may."""
        pause = self.find(mailer)
        if pause is None:
            return None
        pause = pause.on_clock(self._ahead)
        return SendingPaused(
            f"sending is paused ({pause.describe()}, {pause.describe_end()}); nothing was sent",
            mailer=pause.mailer,
            until=pause.until,
        )

    def seconds_paused(self, mailer: str, since: float, now: float) -> float:
        """Return for how many seconds between ``since`` and ``now`` (Unix seconds) mail of ``mailer`` was paused."""
        return self._state.seconds_paused(mailer, since + self._ahead, now + self._ahead)

    def call_at_change(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once, in another thread, when something is paused or resumed, or a pause ends."""
        with self._lock:
            self._callbacks.append(callback)

    def read(self) -> None:
        """Read the flag, and follow a change; blocks."""
        try:
            flag = self.store.read()
            if flag.data != self._data or flag.data is None:
                self._state, self._data = interpret(flag), flag.data
            self._ahead, self._problem = flag.now - time.time(), None
        except FlagUnreadable as error:
            self._ahead = error.now - time.time()
            self._report(
                logging.ERROR,
                f"all mail is paused, because the pause flag cannot be read: {error}; correct this, or end the pause "
                "with `viperctl email resume`",
            )
            if not any(pause.mailer is None for pause in self._state.active(error.now)):
                self._state, self._data = PauseState.unreadable(error.now), b""
        except QueueUnavailable as error:
            # Others log that the broker does not answer; here it matters while mail is stopped.
            level = logging.WARNING if self.on else logging.DEBUG
            self._report(level, f"the pause flag cannot be read, so sending stays as it was: {error}")
        self._follow()

    def _follow(self) -> None:
        active = self._state.active(time.time() + self._ahead)
        before, self._active = self._active, active
        self.on = bool(active)
        if active == before:
            return
        for pause in self.find_all():
            logger.warning("sending is paused: %s, %s", pause.describe(), pause.describe_end())
        if not active:
            logger.warning("sending is resumed")
        with self._lock:
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            with suppress(RuntimeError):  # its event loop has been closed
                callback()

    def _report(self, level: int, problem: str) -> None:
        if (level, problem) != self._problem:
            self._problem = level, problem
            logger.log(level, "%s", one_line(problem))


def _poll(watched: "ref[PauseWatch]") -> None:
    while (watch := watched()) is not None:
        try:
            watch.read()
        except Exception:  # the thread must go on: nobody else notices a pause
            logger.exception("the pause flag could not be read")
        watch._read_once.set()
        store = watch.store
        del watch
        time.sleep(POLL_INTERVAL)
    store.close()


_watches: "WeakValueDictionary[object, PauseWatch]" = WeakValueDictionary()
_lock = threading.Lock()
# A forked child has the objects and not their threads.
after_fork_in_child(_watches.clear)


def pause_watch(settings: EmailSettings) -> PauseWatch | None:
    """Return this process's watch of the project's pause flag; None where no flag can be kept."""
    store = pause_store(settings)
    if store is None:
        return None
    with _lock:
        watch = _watches.get(store.identity)
        if watch is None:
            watch = _watches[store.identity] = PauseWatch(store)
        return watch
