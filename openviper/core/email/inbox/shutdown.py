"""Learning that the server is about to end while responses are still open.

Servers wait for open responses before they tell the application of the shutdown. An endless response has to learn of
it in another way: by the signal that the server gets.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["on_shutdown_signal"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_callbacks: list[Callable[[], None]] = []
_before: dict[int, Any] = {}


@contextmanager
def on_shutdown_signal(callback: Callable[[], None]) -> Iterator[bool]:
    """Call ``callback`` in a block when the process gets SIGINT or SIGTERM, before the server's own handler runs.

    Gives False where that is not possible, outside the main thread. The handlers are put back with the last block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    if not _callbacks:
        _install()
    _callbacks.append(callback)
    try:
        yield bool(_before)
    finally:
        _callbacks.remove(callback)
        if not _callbacks:
            _restore()


def _install() -> None:
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if handler is not None and handler is not signal.SIG_IGN:
            _before[number] = handler
            signal.signal(number, _received)


def _restore() -> None:
    while _before:
        number, handler = _before.popitem()
        if signal.getsignal(number) is _received:
            signal.signal(number, handler)


def _received(number: int, frame: FrameType | None) -> None:
    for callback in tuple(_callbacks):
        callback()
    handler = _before.get(number, signal.SIG_DFL)
    if callable(handler):
        handler(number, frame)
    else:
        signal.signal(number, handler)
        os.kill(os.getpid(), number)
