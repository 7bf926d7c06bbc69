"""Send through the first of several servers that answers."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from openviper.core.email.backends.base import DeliveryReport, EmailBackend
from openviper.core.email.errors import ConnectionFailed, DeliveryError, DeliveryTimeout, PoolTimeout
from openviper.core.email.message import OutgoingMessage

__all__ = ["FailoverBackend"]

logger = logging.getLogger("openviper.email")


@dataclass(slots=True, eq=False)
class _Server:
    """A backend of the failover. ``down_since`` and ``retry_at`` are of ``time.monotonic()``; None while it is up."""

    name: str
    backend: EmailBackend
    down_since: float | None = None
    retry_at: float = 0.0


class FailoverBackend(EmailBackend):
    """Uses the first backend whose server is not down, in the order given.

    Only connection-level trouble moves a message on to the next server, and only if it is certain that nothing was
    sent: a refused recipient or message, and an uncertain delivery, are reported as they are. A server that failed is
    down for ``retry_period`` seconds; then one message tries it again. When all are down, the one that has been down
    longest is tried. Each change is logged once.

    The backends are opened and closed by whoever built them.
    """

    def __init__(self, backends: Mapping[str, EmailBackend], *, retry_period: float) -> None:
        """``backends``: by the name of their mailers, the mailer's own first."""
        self._servers = [_Server(name, backend) for name, backend in backends.items()]
        super().__init__(self._servers[0].backend.settings)
        self._retry_period = retry_period

    @property
    def down(self) -> tuple[str, ...]:
        """Return the names of the mailers whose servers are down."""
        return tuple([server.name for server in self._servers if server.down_since is not None])

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Send through the first server that answers; the report's ``via`` names it.

        Raises:
            DeliveryError: no server took it, or one refused it, or the outcome is uncertain.
        """
        return await self._send(message, pipelined=False)

    async def send_pipelined(self, message: OutgoingMessage) -> DeliveryReport:
        """Do as ``send``, pipelined."""
        return await self._send(message, pipelined=True)

    def describe(self) -> str:
        """Describe all servers, in their order."""
        return ", else ".join(server.backend.describe() for server in self._servers)

    def remedy(self, error: DeliveryError) -> str | None:
        """Return the remedy of the mailer's own backend."""
        return self._servers[0].backend.remedy(error)

    async def _send(self, message: OutgoingMessage, *, pipelined: bool) -> DeliveryReport:
        errors: list[DeliveryError] = []
        tried: set[str] = set()
        while (server := self._next(tried)) is not None:
            tried.add(server.name)
            try:
                sending = server.backend.send_pipelined if pipelined else server.backend.send
                report = await sending(message)
            except DeliveryError as error:
                if not _server_is_down(error):
                    raise
                self._mark_down(server, error)
                errors.append(error)
            else:
                if server.down_since is not None:
                    self._mark_up(server)
                return report._replace(via=server.name)
        # A temporary one, if there is any: a later attempt may find that server up.
        raise next((error for error in errors if error.temporary), errors[0])

    def _next(self, tried: set[str]) -> _Server | None:
        """Return the server to try next; None if none is left."""
        now = time.monotonic()
        for server in self._servers:
            if server.name in tried:
                continue
            if server.down_since is None:
                return server
            if now >= server.retry_at:
                server.retry_at = now + self._retry_period  # other messages do not wait for this attempt
                return server
        if any(server.down_since is None for server in self._servers):
            return None  # it took this message, or is being asked
        longest = min(self._servers, key=lambda server: server.down_since or 0.0)
        return None if longest.name in tried else longest

    def _mark_down(self, server: _Server, error: DeliveryError) -> None:
        now = time.monotonic()
        server.retry_at = now + self._retry_period
        if server.down_since is None:
            server.down_since = now
            logger.warning("failover: mailer %s is down: %s", server.name, error)

    def _mark_up(self, server: _Server) -> None:
        server.down_since = None
        logger.warning("failover: mailer %s is up again", server.name)


def _server_is_down(error: DeliveryError) -> bool:
    """Return True if the error concerns the connection alone, and nothing was sent."""
    if error.uncertain or error.refused or isinstance(error, PoolTimeout):
        return False
    return isinstance(error, ConnectionFailed | DeliveryTimeout)
