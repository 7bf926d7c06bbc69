"""Deliver messages to the SMTP server of ``EMAIL["host"]``, over a pool of connections."""

import logging

from openviper.core.email.backends.base import DeliveryReport, EmailBackend, PoolStats
from openviper.core.email.backends.smtp.envelopes import send_in_envelopes
from openviper.core.email.backends.smtp.errors import peer_name
from openviper.core.email.backends.smtp.handshake import client_context
from openviper.core.email.backends.smtp.oauth2 import token_provider
from openviper.core.email.backends.smtp.pipelining import PipelinedSender
from openviper.core.email.backends.smtp.pool import ConnectionPool
from openviper.core.email.backends.smtp.remedies import failure_remedy
from openviper.core.email.errors import DeliveryError
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.settings import EmailSettings
from openviper.loops import PerLoop, at_loop_end

__all__ = ["SMTPBackend"]

logger = logging.getLogger("openviper.email")


class SMTPBackend(EmailBackend):
    """Backend that delivers by SMTP.

    Each event loop has its own connections. Without ``open`` they are opened at the first message and closed when the
    loop ends.
    """

    supports_pipelining = True
    limits_rate = True

    def __init__(self, settings: EmailSettings) -> None:
        super().__init__(settings)
        token_provider(settings)  # a wrong path is told here, and not at the first connection
        self._max_recipients = settings.max_recipients_per_message
        self._allow_partial = settings.allow_partial
        self._pools: PerLoop[ConnectionPool] = PerLoop()
        self._pipelined: PerLoop[PipelinedSender] = PerLoop()

    async def open(self) -> None:
        """Create the pool and the TLS context; with ``pool_warm`` also open a connection, and only log a failure.

        Raises:
            ImproperlyConfigured: ``tls_ca_file`` cannot be used.
        """
        settings = self.settings
        if settings.use_tls or settings.use_ssl:
            await client_context(settings.tls_ca_file)
        pool = self._pools.get() or self._make_pool()
        if settings.pool_warm:
            try:
                await pool.warm()
            except DeliveryError as error:
                logger.warning("cannot open a connection at startup (pool_warm): %s", error)

    async def aclose(self) -> None:
        """Close this event loop's connections with QUIT, after a few seconds for those still in use."""
        pool = self._pools.get()
        if pool is not None:
            self._pools.discard()
            await pool.aclose()

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """Deliver ``message`` to all recipients of its envelope, in several transactions if one cannot take them all.

        Raises:
            DeliveryError: no recipient got it, or the outcome is ``uncertain``.
        """
        return await send_in_envelopes(
            message, self._pool().send, max_recipients=self._max_recipients, allow_partial=self._allow_partial
        )

    async def send_pipelined(self, message: OutgoingMessage) -> DeliveryReport:
        """Do as ``send``, with many small messages in flight on a connection; one by one if the server cannot.

        Raises:
            DeliveryError: no recipient got it, or the outcome is ``uncertain``.
        """
        sender, pool = self._pipelined.get(), self._pool()
        if sender is None or sender.pool is not pool:
            sender = PipelinedSender(pool, connections=self.settings.pool_size)
            self._pipelined.set(sender)
        return await send_in_envelopes(
            message, sender.send, max_recipients=self._max_recipients, allow_partial=self._allow_partial
        )

    @property
    def server(self) -> tuple[str, int] | None:
        """Return ``host`` and ``port`` of the settings."""
        return self.settings.host, self.settings.port

    @property
    def reachable(self) -> bool | None:
        """False if the pool of the running event loop cannot connect; None before its first connection."""
        pool = self._pools.get()
        return None if pool is None else pool.reachable

    async def reconnect(self) -> None:
        """Open a connection for later.

        Raises:
            DeliveryError: it could not be opened.
        """
        await self._pool().warm()

    def describe(self) -> str:
        """Return the backend's name and the server."""
        return f"{type(self).__name__} at {peer_name(self.settings)}"

    def remedy(self, error: DeliveryError) -> str | None:
        """Return the remedy that ``viperctl email check`` would give; None if the error points at no setting."""
        return failure_remedy(error, self.settings)

    @property
    def stats(self) -> PoolStats | None:
        """Return the stats of the running event loop's pool; None before it is created."""
        pool, sender = self._pools.get(), self._pipelined.get()
        if sender is not None and sender.pool is pool:
            return sender.stats
        return None if pool is None else pool.stats

    def _pool(self) -> ConnectionPool:
        pool = self._pools.get()
        if pool is None:
            pool = self._make_pool()
            at_loop_end(pool.aclose)
        return pool

    def _make_pool(self) -> ConnectionPool:
        pool = ConnectionPool(self.settings, brake=self.brake, reserve=self.reserve)
        self._pools.set(pool)
        return pool
