"""Small messages over the connections of a pool, many to each at a time (RFC 2920, RFC 3030)."""

import asyncio
from collections import deque
from contextvars import Context
from dataclasses import dataclass, replace

from openviper.core.email.backends.smtp.exchange import WireFailure
from openviper.core.email.backends.smtp.lane import Lane, NotTaken
from openviper.core.email.backends.smtp.pool import ConnectionPool, PoolFigures
from openviper.core.email.backends.smtp.transfer import TRUSTED_FOR
from openviper.core.email.backends.smtp.wire import Connection
from openviper.core.email.events import DeliveryReport
from openviper.core.email.message import OutgoingMessage

__all__ = ["OverlappedSender"]

_WORTH_A_LANE = 20  # waiting messages


@dataclass(slots=True, eq=False)
class _Place:
    """``lane`` resolves to None when the message has to go alone."""

    size: int
    lane: asyncio.Future[Lane | None]


class OverlappedSender:
    """Borrows connections from ``pool`` as lanes while there is something to send, at most ``connections``.

    What cannot be overlapped goes through ``pool.send`` one by one: messages over 256 kB, those that need an answer
    before their content may leave (``one_flight``, ``allow_partial``), all where the server does not offer PIPELINING
    and CHUNKING or does not know RSET, and the repeats of those that a broken connection or another message's failure
    has kept from being taken.
    """

    def __init__(self, pool: ConnectionPool, *, connections: int) -> None:
        self.pool = pool
        self._connections = connections
        self._lanes: list[Lane] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[_Place] = deque()
        # Those who wait here may take their time; in the pool they would give up after a while.
        self._alone = asyncio.Semaphore(connections)
        self._going_alone = 0  # messages that wait for their turn to, or do
        self._acquiring = 0  # lanes that wait for their connection
        self._loop = asyncio.get_running_loop()

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        """One transaction; call it for many messages at once.

        Raises:
            DeliveryError: see ``ConnectionPool.send``.
        """
        await self.pool.turn()
        if self.pool.options.lets_fly(len(message.envelope.recipients), message.size):
            lane = await self._place(message.size)
            if lane is not None:
                try:
                    outcome = await lane.carry(message)
                    self.pool.note_sent(lane.connection)
                    return outcome
                except NotTaken:
                    pass
                finally:
                    self._left(lane, message.size)
        self._going_alone += 1
        try:
            async with self._alone:
                return await self.pool.send(message, turn_taken=True)
        finally:
            self._going_alone -= 1

    @property
    def figures(self) -> PoolFigures:
        """Those of the pool; ``waiting`` counts the messages that wait here, and not the lanes that wait for them."""
        figures = self.pool.figures
        for_a_lane = sum(not place.lane.done() for place in self._waiting)
        for_their_turn = max(0, self._going_alone - self._connections)
        return replace(figures, waiting=max(0, figures.waiting - self._acquiring) + for_a_lane + for_their_turn)

    async def _place(self, size: int) -> Lane | None:
        """A lane with a place taken, first come, first served; None: there is none, and none can be had."""
        place = _Place(size, self._loop.create_future())
        self._waiting.append(place)
        self._assign()
        try:
            return await place.lane
        except asyncio.CancelledError:
            lane = None if place.lane.cancelled() else place.lane.result()
            if lane is not None:
                self._left(lane, size)
            raise

    def _left(self, lane: Lane, size: int) -> None:
        lane.leave(size)
        self._assign()
        self._give_back(lane)

    def _assign(self) -> None:
        while self._waiting:
            place = self._waiting[0]
            if not place.lane.done():
                lane = self._emptiest(place.size)
                if lane is None:
                    break
                lane.enter(place.size)
                place.lane.set_result(lane)
            self._waiting.popleft()
        if not self._waiting:
            return
        wanted = -(-len(self._waiting) // _WORTH_A_LANE) - len(self._opening)
        for _ in range(min(wanted, self._connections - len(self._lanes) - len(self._opening))):
            task = self._loop.create_task(self._open(), context=Context())
            self._opening.add(task)

    def _emptiest(self, size: int) -> Lane | None:
        open_ones = [lane for lane in self._lanes if lane.has_room(size) and not self._ends(lane)]
        return min(open_ones, key=lambda lane: lane.count, default=None)

    def _ends(self, lane: Lane) -> bool:
        return lane.closed or self.pool.wants_back(lane.connection, under_way=lane.count, waiting=len(self._opening))

    def _give_back(self, lane: Lane) -> None:
        if lane.count == 0 and lane in self._lanes:
            self._lanes.remove(lane)
            lane.finish()
            self.pool.release(lane.connection)
            self._assign()

    # Lanes

    async def _open(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection: Connection | None = None
        keep_waiting = False
        try:
            connection = await self._fit_connection()
        except Exception:  # noqa: BLE001 - those who have no lane meet it by themselves, each as an error of its own
            keep_waiting = bool(self._lanes) or len(self._opening) > 1
        finally:
            self._opening.discard(task)
            if connection is None and not keep_waiting:
                self._send_alone()
        if connection is None:
            return
        lane = Lane(connection, self.pool.options)
        self._lanes.append(lane)
        self._assign()
        self._give_back(lane)

    async def _fit_connection(self) -> Connection | None:
        """A connection that messages may be overlapped on; None when the server cannot.

        Raises:
            DeliveryError: there is no connection.
        """
        while True:
            self._acquiring += 1
            try:
                connection = await self.pool.acquire()
            finally:
                self._acquiring -= 1
            kept = connection.kept
            fit = False
            try:
                fit = await _is_fit(connection)
            except WireFailure:
                if kept:
                    continue  # it was dead; each one that is met so is one fewer
            finally:
                if not fit:
                    self.pool.release(connection)
            return connection if fit else None

    def _send_alone(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.lane.done():
                place.lane.set_result(None)


async def _is_fit(connection: Connection) -> bool:
    """True when the server offers what it takes, knows RSET, and was heard a moment ago."""
    capabilities = connection.capabilities
    if not (capabilities.pipelining and capabilities.chunking) or connection.takes_reset is False:
        return False
    quiet = asyncio.get_running_loop().time() - connection.heard_at
    if connection.takes_reset is None or quiet >= TRUSTED_FOR:
        (reply,) = await connection.ask(b"RSET\r\n")
        if not connection.usable:
            raise WireFailure("lost", f"the server closed the connection: {reply}")
        connection.takes_reset = reply.positive
    return connection.takes_reset
