"""The layer around an ASGI application: mail of a request leaves when the application call has ended."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openviper.core.email.asgi.runtime import Running, Service
from openviper.core.email.backends.interception import interceptor_for
from openviper.core.email.delivery import apart_from_other_requests, stay_with, using_mailer
from openviper.core.email.delivery.request_outbox import Outbox, collecting
from openviper.core.email.inbox import is_inbox_path
from openviper.core.email.sending.single import send_email

__all__ = ["Layer"]

# In the scope, so that a layer around a mounted application finds the outbox of the layer around the whole.
_OUTBOX = "openviper.email.outbox"


class Layer:
    """Gives each request an outbox and hands it over when the application call has returned."""

    surrounded = False
    """True where the application's own error handling may stand around it."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        running = await self._service.running()
        if running.inbox is not None and is_inbox_path(scope):
            await running.inbox(scope, receive, send)
            return
        # Not copies: what the application sets in them, its route and request.state, is read by middleware outside.
        scope.setdefault("state", {}).update(send_email=send_email, email=running.mailer)
        with using_mailer(running.mailer):
            if scope["type"] == "websocket" or _OUTBOX in scope:
                await self.app(scope, receive, send)
            else:
                try:
                    await self._request(running, scope, receive, send)
                finally:
                    scope.pop(_OUTBOX, None)  # middleware outside may try the same scope once more

    async def _request(self, running: Running, scope: Scope, receive: Receive, send: Send) -> None:
        outbox = scope[_OUTBOX] = Outbox()
        status = 0

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with apart_from_other_requests(), collecting(outbox):
                await self.app(scope, receive, watched_send)
        except Exception as error:
            await _end(running, outbox, failure=type(error).__name__)
            if self.surrounded and "app" in scope:
                # The application's own error handling stands around this layer; its 500 handler may still send.
                stay_with(running.mailer, outbox)
            raise
        except BaseException:
            # Cancelled, usually because the client left: what was accepted goes out all the same.
            await _end(running, outbox, failure=None)
            raise
        await _end(running, outbox, failure=f"status {status}" if status >= 500 else None)


async def _end(running: Running, outbox: Outbox, *, failure: str | None) -> None:
    """Hand over at once; then wait, without holding the messages, for room.

    No longer than ``shutdown_timeout``, since a server that is told to stop waits for its requests, and only then lets
    mail be drained. Without a lifespan, and in a test that looks at its mail, wait for delivery.
    """
    if failure is not None and running.mailer.settings.discard_on_error:
        outbox.discard(f'the request failed ({failure}) and EMAIL["discard_on_error"] is set')
        return
    handed = outbox.hand_over()
    waits = running.waits or interceptor_for() is not None
    if futures := [one.done if waits else one.admitted for one in handed]:
        await asyncio.wait(futures, timeout=None if waits else running.mailer.settings.shutdown_timeout)
