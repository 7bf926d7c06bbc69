"""An open connection after the handshake: commands out with flow control, replies in, strictly in order."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context

from openviper.core.email.backends.smtp.commands import Capabilities
from openviper.core.email.backends.smtp.errors import FailureKind, WireFailure
from openviper.core.email.backends.smtp.replies import Reply, ReplyReader

__all__ = [
    "Connection",
    "Exchange",
]

# While bytes wait to be written, a connection that is closing (a blocked TLS backlog delays connection_lost) or that
# makes no progress is looked for this often, in seconds.
_WRITE_CHECK = 1.0

_NEVER = float("inf")

_BUFFER = 4096  # bytes; a plain Protocol has asyncio reserve 256 kB for each read, which costs more than the read

ClosedCallback = Callable[["Connection"], None]


class Exchange:
    """``waiter`` resolves when all the replies wanted are there, or one of them is 421.

    ``limit`` and ``final_limit`` are the seconds that each reply, and the last one, may take.
    """

    __slots__ = ("final_limit", "limit", "replies", "waiter", "want")

    def __init__(self, waiter: asyncio.Future[None], want: int, limit: float, final_limit: float) -> None:
        self.waiter = waiter
        self.want = want
        self.limit = limit
        self.final_limit = final_limit
        self.replies: list[Reply] = []

    @property
    def next_limit(self) -> float:
        """Seconds that the next reply may take."""
        return self.final_limit if len(self.replies) == self.want - 1 else self.limit

    async def only_reply(self) -> Reply:
        """The reply of an exchange that wants one.

        Raises:
            WireFailure: the connection ended first.
        """
        await self.waiter
        return self.replies[0]


class Connection(asyncio.BufferedProtocol):
    """Owns the transport of an authenticated connection.

    ``peer`` is ``host:port`` for error texts; ``limit`` are the seconds that a reply may take, or that written bytes
    may stand still. ``on_closed`` is called once, when the connection can no longer be used.
    """

    def __init__(self, transport: asyncio.Transport, *, peer: str, capabilities: Capabilities, limit: float) -> None:
        self.peer = peer
        self.capabilities = capabilities
        self.limit = limit
        self.on_closed: ClosedCallback | None = None
        self.needs_reset = False
        self.takes_reset: bool | None = None  # None: RSET was never sent
        self.kept = False  # it was used or has waited, so the server may have given it up meanwhile
        self.messages = 0
        self._loop = asyncio.get_running_loop()
        self.opened_at = self.idle_since = self.heard_at = self._loop.time()
        self._transport = transport
        self._buffer = memoryview(bytearray(_BUFFER))
        self._reader = ReplyReader()
        self._exchanges: deque[Exchange] = deque()
        self._failure: WireFailure | None = None
        self._going_away = False
        self._paused = False
        self._resumed: asyncio.Future[None] | None = None
        self._context = Context()  # timers must not keep the variables of whoever sent first
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = _NEVER
        self._final_deadline = _NEVER
        transport.set_protocol(self)
        # With these limits "paused" means that bytes are waiting in this process, so that it is known whether the
        # end of a message has left it. (0 would leave asyncio's TLS transport paused for ever.)
        transport.set_write_buffer_limits(high=1, low=0)

    # State

    @property
    def usable(self) -> bool:
        """False once it is closed, closing, or the server has said 421."""
        return self._failure is None and not self._going_away and not self._transport.is_closing()

    @property
    def flushed(self) -> bool:
        """True when every byte written has been handed to the system; stays as it was when the connection ends."""
        return not self._paused

    @property
    def server_closing(self) -> bool:
        """True when the server has said 421 to something; what was written behind that it has not looked at."""
        return self._going_away

    def expire_at(self, when: float) -> None:
        """End the connection at ``when`` (loop time) whatever happens until then; ``inf`` takes that back."""
        self._final_deadline = when

    # Out

    def request(self, data: bytes, want: int, *, final_limit: float | None = None) -> Exchange:
        """Write commands that will be answered by ``want`` replies; ``final_limit`` is for the last of them.

        Raises:
            WireFailure: the connection has ended.
        """
        limit = self.limit
        exchange = Exchange(self._loop.create_future(), want, limit, limit if final_limit is None else final_limit)
        self.write(data)
        self._expect(exchange)
        return exchange

    def expect(self) -> Exchange:
        """One reply, with no limit of time until ``set_deadline``: to a message that is still being written."""
        exchange = Exchange(self._loop.create_future(), 1, _NEVER, _NEVER)
        self._expect(exchange)
        return exchange

    def set_deadline(self, exchange: Exchange, limit: float) -> None:
        """From now on the rest of ``exchange`` may take ``limit`` seconds a reply."""
        exchange.limit = exchange.final_limit = limit
        if self._exchanges and self._exchanges[0] is exchange:
            self._arm(self._loop.time())

    async def ask(self, data: bytes, want: int = 1, *, final_limit: float | None = None) -> list[Reply]:
        """``request``, and its replies: as many as wanted, or fewer of which the last is 421.

        Raises:
            WireFailure: the connection ended first.
        """
        exchange = self.request(data, want, final_limit=final_limit)
        await exchange.waiter
        return exchange.replies

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes that need no reply of their own.

        Raises:
            WireFailure: the connection has ended.
        """
        if self._failure is not None or self._transport.is_closing():
            self._fail("lost", "the connection was closed")
            self._check()
        self._transport.write(data)

    async def drain(self, answer: Exchange | None = None) -> None:
        """Wait until the system has taken what was written, or until ``answer`` has come.

        Raises:
            WireFailure: the connection has ended, or no byte was taken for ``limit`` seconds.
        """
        self._check()
        stalled_at = self._loop.time() + self.limit
        left = self._transport.get_write_buffer_size()
        while self._paused and not (answer is not None and answer.waiter.done()):
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
                    self._fail("silent", "it does not take the message")
            self._check()

    # The end

    def abort(self) -> None:
        """Close at once. What was under way fails."""
        self._fail("lost", "the connection was closed by this side")

    async def quit(self, limit: float) -> None:
        """Say QUIT and close, within ``limit`` seconds; never raises an error of the wire."""
        try:
            if self.usable and not self._exchanges:
                async with asyncio.timeout(limit):
                    await self.ask(b"QUIT\r\n")
        except (WireFailure, TimeoutError):
            pass  # it is closed either way
        finally:
            self.abort()

    # asyncio.BufferedProtocol

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport puts what it reads. TLS tells how much has come: what does not fit, its end cuts off."""
        if sizehint > len(self._buffer):
            self._buffer = memoryview(bytearray(sizehint))
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Match replies to what is under way."""
        if self._failure is not None or self._going_away:
            return
        self.heard_at = self._loop.time()
        exchanges = self._exchanges
        for reply in self._reader.feed(self._buffer[:nbytes].tobytes()):
            if not exchanges or reply.code == 421:
                self._end_with(reply)
                return
            exchange = exchanges[0]
            exchange.replies.append(reply)
            if len(exchange.replies) == exchange.want:
                self._finish(exchange)
        if self._reader.fault is not None:
            self._fail("broken", self._reader.fault)
        else:
            self._arm(self.heard_at)

    def eof_received(self) -> None:
        """The server has ended its side."""
        self._fail("lost", "the server closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport has ended."""
        self._fail("lost", "the server closed the connection" if exc is None else f"the connection broke: {exc}")

    def pause_writing(self) -> None:
        """Bytes wait in this process."""
        self._paused = True

    def resume_writing(self) -> None:
        """The system has taken everything."""
        self._paused = False
        _wake(self._resumed)

    # Inside

    def _check(self) -> None:
        if self._failure is not None:
            raise WireFailure(self._failure.kind, self._failure.detail)

    def _expect(self, exchange: Exchange) -> None:
        self._exchanges.append(exchange)
        if len(self._exchanges) == 1:
            self._arm(self._loop.time())

    def _end_with(self, reply: Reply) -> None:
        """End the connection for 421, or for a reply that was not asked for; nothing further is read."""
        if reply.code != 421:
            self._fail("broken", f"a reply that was not asked for: {reply}")
            return
        if self._exchanges:
            exchange = self._exchanges[0]
            exchange.replies.append(reply)
            self._going_away = True
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
                exchange.waiter.exception()  # nobody may be waiting: a cancelled send, for one
        _wake(self._resumed)
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed(self)

    def _arm(self, now: float) -> None:
        """Wait for the next reply from ``now`` (loop time) on."""
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
