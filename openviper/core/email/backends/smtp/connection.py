"""Exchange SMTP commands and replies over an open connection, in order, with flow control and time limits."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING

from openviper.core.email.backends.smtp.commands import Capabilities
from openviper.core.email.backends.smtp.errors import FailureKind, WireFailure
from openviper.core.email.backends.smtp.replies import SERVER_CLOSING, Reply, ReplyReader

if TYPE_CHECKING:
    from openviper.core.email.backends.smtp.protocol_log import ProtocolLog

__all__ = ["TRUSTED_FOR", "Connection", "Exchange"]

# Seconds after the last read during which a connection is taken to be alive. After a longer silence the envelope is
# sent before the content, so that a message that finds its connection dead can safely be sent again.
TRUSTED_FOR = 1.0

# Seconds between two looks at a connection while bytes wait to be written: it may be closing (a blocked TLS backlog
# delays connection_lost) or make no progress.
_WRITE_CHECK = 1.0

_NEVER = float("inf")

_BUFFER = 4096  # bytes; with a plain Protocol asyncio allocates 256 kB for each read, which costs more than the read

ClosedCallback = Callable[["Connection"], None]


class Exchange:
    """Commands that were written together, and their replies so far.

    ``waiter`` resolves once all ``expected`` replies have arrived, or one of them is 421. ``limit`` is the time in
    seconds that each reply may take, ``final_limit`` that of the last one.
    """

    __slots__ = ("expected", "final_limit", "limit", "replies", "waiter")

    def __init__(self, waiter: asyncio.Future[None], expected: int, limit: float, final_limit: float) -> None:
        self.waiter = waiter
        self.expected = expected
        self.limit = limit
        self.final_limit = final_limit
        self.replies: list[Reply] = []

    @property
    def next_limit(self) -> float:
        """Return the seconds that the next reply may take."""
        return self.final_limit if len(self.replies) == self.expected - 1 else self.limit

    async def only_reply(self) -> Reply:
        """Wait for the reply of an exchange that expects one.

        Raises:
            WireFailure: the connection ended first.
        """
        await self.waiter
        return self.replies[0]


class Connection(asyncio.BufferedProtocol):
    """An authenticated connection, which owns its transport.

    ``peer`` is ``host:port`` for error texts; ``limit`` is the time in seconds that a reply may take, or that written
    bytes may make no progress. ``on_closed`` is called once, when the connection becomes unusable.
    ``messages`` counts the transactions begun, as MAILMAX does (RFC 9422); from ``max_messages`` on, or from
    ``expires_at`` (loop time), its owner should begin no further one.
    """

    def __init__(self, transport: asyncio.Transport, *, peer: str, capabilities: Capabilities, limit: float) -> None:
        self.peer = peer
        self.capabilities = capabilities
        self.limit = limit
        self.on_closed: ClosedCallback | None = None
        self.needs_reset = False
        self.supports_reset: bool | None = None  # None: RSET was never sent
        self.protocol: ProtocolLog | None = None  # of the last transaction, if it is recorded
        self.reused = False  # it has carried a message or been idle, so the server may have closed it meanwhile
        self.messages = 0
        self.max_messages = self.expires_at = _NEVER
        self._loop = asyncio.get_running_loop()
        self.opened_at = self.idle_since = self.last_read_at = self._loop.time()
        self._transport = transport
        self._buffer = memoryview(bytearray(_BUFFER))
        self._reader = ReplyReader()
        self._exchanges: deque[Exchange] = deque()
        self._failure: WireFailure | None = None
        self._server_closing = False
        self._paused = False
        self._resumed: asyncio.Future[None] | None = None
        self._context = Context()  # timers must not keep the first sender's context variables alive
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = _NEVER
        self._final_deadline = _NEVER
        transport.set_protocol(self)
        # With these limits "paused" means that bytes wait in this process, so that it is known whether the end of a
        # message has left it. (0 would leave asyncio's TLS transport paused for ever.)
        transport.set_write_buffer_limits(high=1, low=0)

    @property
    def usable(self) -> bool:
        """True until the connection is closed, closing, or the server has replied 421."""
        return self._failure is None and not self._server_closing and not self._transport.is_closing()

    @property
    def flushed(self) -> bool:
        """True if the system has taken every byte written; keeps its value when the connection ends."""
        return not self._paused

    @property
    def server_closing(self) -> bool:
        """True once the server has replied 421 to a command; it has not read the commands behind that one."""
        return self._server_closing

    def expire_at(self, when: float) -> None:
        """End the connection at ``when`` (loop time), even if replies arrive in time; ``inf`` removes that deadline."""
        self._final_deadline = when

    def request(self, data: bytes, expected: int, *, final_limit: float | None = None) -> Exchange:
        """Write commands that get ``expected`` replies; ``final_limit`` is the time in seconds for the last of them.

        Raises:
            WireFailure: the connection has ended.
        """
        limit = self.limit
        if self.protocol is not None:
            self.protocol.record_sent(data)
        exchange = Exchange(self._loop.create_future(), expected, limit, limit if final_limit is None else final_limit)
        self.write(data)
        self._expect(exchange)
        return exchange

    def expect_reply(self) -> Exchange:
        """Expect the reply to a message that is still being written, without a time limit until ``set_deadline``."""
        exchange = Exchange(self._loop.create_future(), 1, _NEVER, _NEVER)
        self._expect(exchange)
        return exchange

    def set_deadline(self, exchange: Exchange, limit: float) -> None:
        """Allow ``limit`` seconds from now for each reply that ``exchange`` still lacks."""
        exchange.limit = exchange.final_limit = limit
        if self._exchanges and self._exchanges[0] is exchange:
            self._arm(self._loop.time())

    async def ask(self, data: bytes, expected: int = 1, *, final_limit: float | None = None) -> list[Reply]:
        """Call ``request`` and return its replies: ``expected`` of them, or fewer of which the last is 421.

        Raises:
            WireFailure: the connection ended first.
        """
        exchange = self.request(data, expected, final_limit=final_limit)
        await exchange.waiter
        return exchange.replies

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes that get no reply of their own.

        Raises:
            WireFailure: the connection has ended.
        """
        if self._failure is not None or self._transport.is_closing():
            self._fail("lost", "the connection was closed")
            self._raise_failure()
        self._transport.write(data)

    async def drain(self, exchange: Exchange | None = None) -> None:
        """Wait until the system has taken all written bytes, or until ``exchange`` is complete.

        Raises:
            WireFailure: the connection has ended, or no byte was taken for ``limit`` seconds.
        """
        self._raise_failure()
        stalled_at = self._loop.time() + self.limit
        left = self._transport.get_write_buffer_size()
        while self._paused and not (exchange is not None and exchange.waiter.done()):
            self._resumed = self._loop.create_future()
            check_in = min(_WRITE_CHECK, self.limit)
            timer = self._loop.call_later(check_in, _wake, self._resumed, context=self._context)
            try:
                await self._resumed
            finally:
                timer.cancel()
                self._resumed = None
            now = self._loop.time()
            size = self._transport.get_write_buffer_size()
            if size < left:
                left, stalled_at = size, now + self.limit
            if self._failure is None and self._paused:
                if self._transport.is_closing():
                    self._fail("lost", "the connection was closed")
                elif now >= min(stalled_at, self._final_deadline):
                    self._fail("silent", "the server stopped reading")
            self._raise_failure()

    def abort(self) -> None:
        """Close at once; exchanges in progress fail."""
        self._fail("lost", "the connection was closed by this side")

    async def quit(self, limit: float) -> None:
        """Send QUIT and close, within ``limit`` seconds; never raise ``WireFailure``."""
        try:
            if self.usable and not self._exchanges:
                async with asyncio.timeout(limit):
                    await self.ask(b"QUIT\r\n")
        except (WireFailure, TimeoutError):
            pass  # it is closed either way
        finally:
            self.abort()

    # The following five are called by the transport (asyncio.BufferedProtocol).

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer that the transport reads into.

        TLS passes as ``sizehint`` how many bytes have arrived; data beyond the buffer would be truncated.
        """
        if sizehint > len(self._buffer):
            self._buffer = memoryview(bytearray(sizehint))
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Match the replies read to the exchanges in progress."""
        if self._failure is not None or self._server_closing:
            return
        self.last_read_at = self._loop.time()
        exchanges = self._exchanges
        for reply in self._reader.feed(self._buffer[:nbytes].tobytes()):
            if not exchanges or reply.code == SERVER_CLOSING:
                self._end_with(reply)
                return
            exchange = exchanges[0]
            exchange.replies.append(reply)
            if self.protocol is not None:
                self.protocol.record_reply(reply)
            if len(exchange.replies) == exchange.expected:
                self._finish(exchange)
        if self._reader.fault is not None:
            self._fail("broken", self._reader.fault)
        else:
            self._arm(self.last_read_at)

    def eof_received(self) -> None:
        """Fail because the server has closed its side."""
        self._fail("lost", "the server closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail because the transport has closed."""
        self._fail("lost", "the server closed the connection" if exc is None else f"the connection broke: {exc}")

    def pause_writing(self) -> None:
        """Record that written bytes wait in this process."""
        self._paused = True

    def resume_writing(self) -> None:
        """Record that the system has taken all written bytes."""
        self._paused = False
        _wake(self._resumed)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise WireFailure(self._failure.kind, self._failure.detail)

    def _expect(self, exchange: Exchange) -> None:
        self._exchanges.append(exchange)
        if len(self._exchanges) == 1:
            self._arm(self._loop.time())

    def _end_with(self, reply: Reply) -> None:
        """End the connection because of 421 or an unsolicited reply; nothing further is read."""
        if reply.code != SERVER_CLOSING:
            self._fail("broken", f"unsolicited reply: {reply}")
            return
        if self._exchanges:
            exchange = self._exchanges[0]
            exchange.replies.append(reply)
            if self.protocol is not None:
                self.protocol.record_reply(reply)
            self._server_closing = True
            self._finish(exchange)
        self._fail("lost", f"the server closed the connection: {reply}")

    def _finish(self, exchange: Exchange) -> None:
        self._exchanges.popleft()
        _wake(exchange.waiter)
        if self._resumed is not None:
            _wake(self._resumed)

    def _fail(self, kind: FailureKind, detail: str) -> None:
        if self._failure is not None:
            return
        self._failure = WireFailure(kind, detail)
        self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._exchanges:
            exchange = self._exchanges.popleft()
            if not exchange.waiter.done():
                exchange.waiter.set_exception(WireFailure(kind, detail, tuple(exchange.replies)))
                exchange.waiter.exception()  # nobody may be waiting, such as after a cancelled send
        _wake(self._resumed)
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed(self)

    def _arm(self, now: float) -> None:
        """Start the time limit of the next reply at ``now`` (loop time)."""
        # One timer that is moved when it fires costs less than one for each reply.
        if not self._exchanges:
            self._deadline = _NEVER
            return
        deadline = now + self._exchanges[0].next_limit
        if deadline > self._final_deadline:
            deadline = self._final_deadline
        self._deadline = deadline
        timer = self._timer
        if deadline == _NEVER or (timer is not None and timer.when() <= deadline):
            return
        if timer is not None:
            timer.cancel()
        self._timer = self._loop.call_at(deadline, self._on_timer, context=self._context)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._exchanges or self._deadline == _NEVER:
            return
        if self._loop.time() >= self._deadline:
            self._fail("silent", "the server did not answer in time")
        else:
            self._timer = self._loop.call_at(self._deadline, self._on_timer, context=self._context)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
