"""Answer the ASGI lifespan protocol, also for applications that do not support it."""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["LifespanConversation"]

logger = logging.getLogger("openviper.email")


class LifespanConversation:
    """Relays lifespan messages between server and application, and delays the last answer until mail is closed."""

    def __init__(self, startup: Message, receive: Receive, send: Send) -> None:
        self._first: Message | None = startup
        self._receive = receive
        self._send = send
        self._started = False
        self._last: Message | None = None

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Serve the application's lifespan until its shutdown."""
        try:
            await app(scope, self._next, self._answer)
        except Exception:
            if self._started:
                raise
            # Applications that do not support the lifespan scope raise (ASGI specification, lifespan protocol).
            logger.debug("the application does not answer the lifespan scope; the mail layer does", exc_info=True)
        if not self._started:
            await self._answer({"type": "lifespan.startup.complete"})
            await self._receive()
            self._last = {"type": "lifespan.shutdown.complete"}

    async def finish(self) -> None:
        """Send the application's last answer: everything is shut down."""
        if self._last is not None:
            await self._send(self._last)

    async def _next(self) -> Message:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await self._receive()

    async def _answer(self, message: Message) -> None:
        self._started = True
        if message["type"].startswith("lifespan.shutdown."):
            self._last = message
        else:
            await self._send(message)
