"""Messages that wait for the end of a transaction."""

from collections.abc import Awaitable, Callable

__all__ = ["HeldMessage"]


class HeldMessage:
    """A message that a transaction holds. The first method that is called decides; later calls do nothing."""

    __slots__ = ("_drop", "_open", "_release")

    def __init__(self, release: Callable[[], Awaitable[None]], drop: Callable[[], None]) -> None:
        self._release = release
        self._drop = drop
        self._open = True

    async def release(self) -> None:
        """Send it, after the commit."""
        if self.forget():
            await self._release()

    def drop(self) -> None:
        """Discard it, after a rollback."""
        if self.forget():
            self._drop()

    def forget(self) -> bool:
        """Keep it from being sent or discarded; True when nothing had been decided before."""
        before, self._open = self._open, False
        return before
