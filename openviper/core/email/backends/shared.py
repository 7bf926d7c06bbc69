"""Open the backend of a further mailer at its first message, for several users of it."""

import asyncio

from openviper.core.email.backends.base import DeliveryReport, EmailBackend, PoolStats
from openviper.core.email.errors import DeliveryError
from openviper.core.email.message import OutgoingMessage
from openviper.exceptions import OpenViperError

__all__ = ["SharedBackend"]


class SharedBackend(EmailBackend):
    """Opens ``backend`` when the first message is sent through it, and closes it if it was opened.

    Errors and remedies name the settings of its mailer: ``EMAIL["mailers"]["bulk"]["host"]``.
    """

    def __init__(self, backend: EmailBackend) -> None:
        super().__init__(backend.settings)
        self.backend = backend
        self._opening = asyncio.Lock()
        self._opened = False

    async def aclose(self) -> None:
        """Close the backend, if a message has opened it."""
        if self._opened:
            self._opened = False
            await self.backend.aclose()

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Send through the backend."""
        try:
            if not self._opened:
                await self._open()
            return await self.backend.send(message)
        except OpenViperError as error:
            self.settings.name_paths_in(error)
            raise

    async def send_pipelined(self, message: OutgoingMessage) -> DeliveryReport:
        """Send through the backend, pipelined if it can."""
        try:
            if not self._opened:
                await self._open()
            return await self.backend.send_pipelined(message)
        except OpenViperError as error:
            self.settings.name_paths_in(error)
            raise

    @property
    def server(self) -> tuple[str, int] | None:
        """Return the backend's server."""
        return self.backend.server

    @property
    def reachable(self) -> bool | None:
        """Return the backend's answer."""
        return self.backend.reachable

    @property
    def stats(self) -> PoolStats | None:
        """Return the backend's stats."""
        return self.backend.stats

    async def reconnect(self) -> None:
        """Have the backend connect."""
        await self.backend.reconnect()

    def describe(self) -> str:
        """Return the backend's description."""
        return self.backend.describe()

    def remedy(self, error: DeliveryError) -> str | None:
        """Return the backend's remedy."""
        remedy = self.backend.remedy(error)
        return None if remedy is None else self.settings.name_paths(remedy)

    async def _open(self) -> None:
        async with self._opening:
            if not self._opened:
                await self.backend.open()
                self._opened = True
