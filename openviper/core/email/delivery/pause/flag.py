"""Choose where the pause flag is kept, read it and change it."""

import time

from openviper.core.email.delivery.pause.folder_flag import FolderPauseStore
from openviper.core.email.delivery.pause.outbox_flag import OutboxPauseStore
from openviper.core.email.delivery.pause.redis_flag import RedisPauseStore
from openviper.core.email.delivery.pause.state import NOT_PAUSED, Pause, PauseState
from openviper.core.email.delivery.pause.store import FlagUnreadable, PauseStore, StoredFlag
from openviper.core.email.errors import QueueUnavailable
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured
from openviper.tasks.settings import TaskSettings

__all__ = ["NO_STORE", "change_state", "current_pauses", "interpret", "pause_store", "read_state"]

NO_STORE = (
    'no place is configured where all processes find the pause: set TASKS["broker"] to "redis", or EMAIL["outbox"], '
    'or EMAIL["state_dir"] to a folder on each machine that sends mail'
)
"""Why sending cannot be paused, with the remedy."""

_TRIES = 20


def pause_store(settings: EmailSettings) -> PauseStore | None:
    """Return where the project's pause flag is kept: on Redis, else in the outbox, else in ``state_dir``; or None.

    Raises:
        ImproperlyConfigured: ``TASKS`` is wrong, and mail may be queued.
    """
    tasks = None
    try:
        tasks = TaskSettings.from_settings()
    except ImproperlyConfigured:
        if settings.use_background_worker is not False:
            raise
    if tasks is not None and tasks.enabled and tasks.broker == "redis":
        return RedisPauseStore(tasks)
    if settings.outbox is not None:
        return OutboxPauseStore(settings.outbox)
    if settings.state_dir is not None:
        return FolderPauseStore(settings.state_dir)
    return None


def read_state(store: PauseStore) -> tuple[PauseState, float]:
    """Return the state in ``store`` and the store's time.

    Raises:
        FlagUnreadable: something is there, but it cannot be read.
        QueueUnavailable: the store does not answer.
    """
    flag = store.read()
    return interpret(flag), flag.now


def interpret(flag: StoredFlag) -> PauseState:
    """Return the state that ``flag`` holds.

    Raises:
        FlagUnreadable: it holds something else.
    """
    if flag.data is None:
        return NOT_PAUSED
    try:
        return PauseState.from_json(flag.data)
    except ValueError as error:
        raise FlagUnreadable(f"it cannot be read: {error}", flag.now) from error


def current_pauses(store: PauseStore) -> tuple[tuple[Pause, ...], str]:
    """Return the pauses that have not ended, by this machine's clock, and why the flag cannot be read ("": it can).

    Raises:
        QueueUnavailable: the store does not answer.
    """
    problem = ""
    try:
        state, now = read_state(store)
    except FlagUnreadable as error:
        state, now, problem = PauseState.unreadable(error.now), error.now, str(error)
    ahead = now - time.time()
    return tuple([pause.on_clock(ahead) for pause in state.active(now)]), problem


def change_state(store: PauseStore, mailer: str | None, *, seconds: float | None, stop: bool) -> PauseState:
    """Pause mail of ``mailer`` (None: all) for ``seconds`` (None: until it is resumed), or resume it.

    Returns the state before. A flag that cannot be read is replaced.

    Raises:
        QueueUnavailable: the store does not answer, or others change the flag all the time.
    """
    for _ in range(_TRIES):
        expected: bytes | None
        try:
            flag = store.read()
            before, now, expected = interpret(flag), flag.now, flag.data or b""
        except FlagUnreadable as error:
            before, now, expected = PauseState.unreadable(error.now), error.now, None
        if stop:
            after = before.paused(mailer, now=now, until=None if seconds is None else now + seconds)
        else:
            after = before.resumed(mailer, now=now)
        if (after == before and expected is not None) or store.write(after.to_json(), expected=expected):
            return before
    raise QueueUnavailable(f"the pause flag ({store.address}) keeps being changed by other processes; try again")
