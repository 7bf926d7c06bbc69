"""Disturb web processes, relays, workers and the database while requests insert, roll back and nest, with an outbox."""

import asyncio
import json
import os
import random
import signal
import sqlite3
import time
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from openviper import conf, db
from openviper.db.outbox import create_outbox_tables
from openviper.db.outbox.rows import LEASE
from support.chaos import claimed_jobs
from support.outbox_report import Arrival, Crash, OutboxReport
from support.patience import PATIENCE
from support.postgres import PostgresServer
from support.rabbitmq import RabbitmqServer
from support.rabbitmq_trace import RabbitmqTrace
from support.redis import RedisServer
from support.server_clock import ServerClock
from support.smtpd import ReceivedMessage, SmtpServer
from support.uvicorn import Uvicorn
from support.workers import NamedRelay, NamedWorker

__all__ = ["OutboxRun"]

_QUIET = 6.0  # seconds, more than the first delay of a retry

_APP = """
import logging

from openviper.core.email import EmailMiddleware, send_email
from openviper.db import transaction
from sqlalchemy import text

INSERT = text("INSERT INTO orders (token) VALUES (:token)")


async def place(session, token):
    await session.execute(INSERT, {"token": token})
    await send_email("customer@example.com", token, text="Thank you")


async def handle(kind, token):
    if kind == "deferred":  # an order by itself: its mail is promised by the response
        async with transaction() as session:
            await session.execute(INSERT, {"token": token})
        await send_email("customer@example.com", token, text="Thank you", background=True)
        return 200
    async with transaction() as session:
        if kind == "later":  # a relay's from the beginning
            await session.execute(INSERT, {"token": token})
            await send_email("customer@example.com", token, text="Thank you", delay=0.5)
            return 200
        await place(session, token)
        if kind == "nested":
            try:
                async with transaction() as inner:
                    await place(inner, f"{token}-dropped")
                    raise LookupError
            except LookupError:
                pass
            async with transaction() as inner:
                await place(inner, f"{token}-kept")
        if kind == "rolled-back":
            raise LookupError
    return 200


async def shop(scope, receive, send):
    kind, token = scope["path"].strip("/").split("/")
    try:
        status = await handle(kind, token)
    except LookupError:
        status = 409
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


logging.basicConfig(level=logging.INFO)  # what is logged explains some of the duplicates
app = EmailMiddleware(shop)
"""
_SETTINGS = """
import os
from pathlib import Path

from sqlalchemy import Engine, event

DATABASE_URL = {url!r}
TASKS = {tasks!r}
EMAIL = {email!r}


@event.listens_for(Engine, "before_cursor_execute")
def note_token(_connection, _cursor, _statement, parameters, *_):
    # Under the token that its relay announces, a process has rows in hand.
    found = [each for each in parameters if isinstance(each, str) and each.startswith("relay:")]
    if found:
        new = Path(__file__).with_name(os.environ["EMAIL_LOCAL_HOSTNAME"] + ".new")
        new.write_text(found[0].removeprefix("relay:"))
        new.rename(new.with_suffix(".token"))
        event.remove(Engine, "before_cursor_execute", note_token)
"""
_KINDS = ("inserted", "nested", "rolled-back", "deferred", "later")


class _Web(Uvicorn):
    def __init__(self, folder: Path, name: str, env: Mapping[str, str]) -> None:
        super().__init__("app:app", folder, {**env, "EMAIL_LOCAL_HOSTNAME": name}, "--log-level", "info")
        self.name = name

    @property
    def output(self) -> str:
        return "".join(self.log)

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> None:
        self.__enter__()

    def kill(self) -> None:
        self.process.kill()
        self.stop()


_Process = _Web | NamedWorker


class _Customers:
    """Place orders of every kind at the web process that runs, until stopped."""

    def __init__(self, seed: int, number: int) -> None:
        self._random = random.Random(seed)
        self._numbers = count(1)
        self._number = number
        self.url: str | None = None
        self.rolled_back = 0
        self.unanswered: set[str] = set()
        self.stopped = False

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=PATIENCE) as client, asyncio.TaskGroup() as group:
            for _ in range(self._number):
                group.create_task(self._shop(client))

    async def _shop(self, client: httpx.AsyncClient) -> None:
        while not self.stopped:
            if self.url is None:
                await asyncio.sleep(0.05)
                continue
            kind, token = self._random.choice(_KINDS), f"order-{next(self._numbers)}"
            try:
                status = (await client.post(f"{self.url}/{kind}/{token}")).status_code
            except httpx.HTTPError:  # the process was killed
                status = 500
            if status == 500 and kind == "deferred":
                self.unanswered.add(token)
            self.rolled_back += status == 409
            await asyncio.sleep(self._random.uniform(0.0, 0.05))


class OutboxRun:
    """A shop with processes that are disturbed while customers order; ``async with`` starts and ends it.

    ``DATABASE_URL`` is set and empty. ``broker``: a worker runs beside the web process instead of a relay; None: no
    broker. ``environments``: further variables of the web processes, and of all others.
    """

    def __init__(
        self,
        folder: Path,
        *,
        broker: RedisServer | RabbitmqServer | None = None,
        seed: int = 1,
        customers: int = 6,
        environments: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
    ) -> None:
        self._folder = folder
        self._broker = broker
        self._names = (f"process-{number}.example.com" for number in count(1))
        self._environments = [{"OPENVIPER_SETTINGS_MODULE": "settings", **each} for each in environments]
        self._tokens: dict[str, str] = {}  # of each process: the token of its claims
        self._jobs: dict[str, set[str]] = {}  # by process: Message-IDs of what it had claimed on Redis when it died
        self._killed: dict[str, set[str]] = {}
        self._stopped: dict[str, set[str]] = {}
        self._crashes: list[Crash] = []
        self._output: list[str] = []
        self._chance = random.Random(seed)
        self._customers = _Customers(seed, customers)
        self._exits = AsyncExitStack()
        self._trace: RabbitmqTrace | None = None
        self._running: list[_Process] = []
        self._shopping: asyncio.Task[None] | None = None
        self._web: _Process
        self._other: _Process

    async def __aenter__(self) -> Self:
        await create_outbox_tables(await db.engine())
        async with (await db.engine()).begin() as connection:
            await connection.execute(text("CREATE TABLE orders (token VARCHAR(60) PRIMARY KEY)"))
        self.smtp = self._exits.enter_context(SmtpServer())
        self.smtp.delay("body", 0.02)
        if isinstance(self._broker, RabbitmqServer):
            self._trace = self._exits.enter_context(RabbitmqTrace(self._broker))
        self._exits.push_async_callback(self._end)
        email = self.smtp.settings(
            default_sender="shop@example.com", timeout=PATIENCE, outbox="database", outbox_wait=True
        )
        tasks = {} if self._broker is None else self._broker.tasks(heartbeat_timeout=20)
        url = str(conf.settings.DATABASE_URL)
        (self._folder / "app.py").write_text(_APP)
        (self._folder / "settings.py").write_text(_SETTINGS.format(url=url, tasks=tasks, email=email))
        web, self._other = await asyncio.gather(self._start_web(), self._start_other())
        self._serve(web)
        self._shopping = asyncio.create_task(self._customers.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    async def _end(self) -> None:
        self._customers.stopped = True
        if self._shopping is not None:
            self._shopping.cancel()
            await asyncio.gather(self._shopping, return_exceptions=True)
        for process in self._running:
            await asyncio.to_thread(process.kill)

    async def kill_in_turn(self, kills: int, *, gap: float, spares: int = 1) -> None:
        """Kill the web process and the other one in turn, ``kills`` times; another one then takes its place.

        ``gap``: the longest time between two kills in seconds. ``spares``: how many of each kind are started ahead.
        """
        starts = (self._start_web, self._start_other)
        ahead = [deque(asyncio.create_task(start()) for _ in range(spares)) for start in starts]
        for number in range(kills):
            await asyncio.sleep(self._chance.uniform(gap / 4, gap))
            place = number % 2
            await self.kill(self._other if place else self._web)
            if (kills - number + 1) // 2 > len(ahead[place]):
                ahead[place].append(asyncio.create_task(starts[place]()))
            following = await ahead[place].popleft()
            if place:
                self._other = following
            else:
                self._serve(following)
        await asyncio.gather(*ahead[0], *ahead[1])

    async def kill(self, process: _Process) -> None:
        """Kill a process, and note what it had in hand."""
        if process is self._web:
            self._customers.url = None
        await asyncio.to_thread(process.kill)
        self._running.remove(process)
        self._killed[process.name] = await self._rows_of(process)
        self._output.append(process.output)
        if not isinstance(process, _Web | NamedRelay) and isinstance(self._broker, RedisServer):
            self._jobs[process.name] = await asyncio.to_thread(claimed_jobs, self._broker)

    async def crash(self, server: PostgresServer, crashes: int, *, gap: float, pause: float) -> None:
        """Crash the database ``crashes`` times, and start it again after ``pause`` seconds."""
        for _ in range(crashes):
            await asyncio.sleep(self._chance.uniform(gap / 2, gap))
            at = time.monotonic()
            await asyncio.to_thread(server.crash)
            await asyncio.sleep(pause)
            await asyncio.to_thread(server.start)
            self._crashes.append(Crash(at, await _rows()))

    async def stop(self, relay: _Process) -> None:
        """SIGSTOP a relay while it has mail in hand, and no transaction open: on SQLite nobody could write then."""
        while True:
            os.kill(relay.pid, signal.SIGSTOP)
            if not await _in_transaction(self._tokens[relay.name]) and (rows := await self._rows_of(relay)):
                self._stopped[relay.name] = rows
                return
            os.kill(relay.pid, signal.SIGCONT)
            await asyncio.sleep(self._chance.uniform(0.0, 0.1))

    async def rest(self, seconds: float) -> None:
        """Have no orders come for a time."""
        self._customers.url = None
        await asyncio.sleep(seconds)
        self._serve(self._web)

    async def end_leases_of(self, relay: _Process) -> None:
        """Take the time of a lease as passed for what a relay has in hand; what others have stays theirs."""
        await end_leases(self._tokens[relay.name])

    async def resume(self, relay: _Process) -> None:
        """SIGCONT a relay once others have taken over what it had."""
        async with asyncio.timeout(LEASE + PATIENCE):
            while await self._rows_of(relay):
                await asyncio.sleep(0.1)
        os.kill(relay.pid, signal.SIGCONT)

    async def jump(self, clock: ServerClock, seconds: float) -> None:
        """Move the clock of all processes; what each has in hand then, another one may take."""
        self._stopped |= {process.name: await self._rows_of(process) for process in self._running}
        clock.shift(seconds)

    def _serve(self, web: _Process) -> None:
        assert isinstance(web, _Web)
        self._web = web
        self._customers.url = web.url

    async def start_relay(self) -> _Process:
        """Start a further relay, which is alone: ``viperctl email relay``."""
        return await self._start(NamedRelay(self._folder, next(self._names), env=self._environments[1]))

    async def start_worker(self) -> _Process:
        """Start a further worker."""
        return await self._start(NamedWorker(self._folder, next(self._names), env=self._environments[1]))

    async def report(self, *, patient: bool) -> OutboxReport:
        """Return what became of everything, once no more orders come and the outbox is empty.

        ``patient``: let leases end by themselves; otherwise that minute is taken as passed once all processes but one
        are dead.
        """
        assert self._shopping is not None, "it is entered"
        self._customers.stopped = True
        await self._shopping
        ended = time.monotonic()
        if not patient:
            for process in self._running[:-1]:
                await self.kill(process)
            await end_leases()
        try:
            async with asyncio.timeout(LEASE + PATIENCE):
                while await _rows() or not await _orders() <= {*self._arrivals(), *self._customers.unanswered}:
                    await asyncio.sleep(0.2)
        except TimeoutError:
            pass  # the report says what is missing
        drained = time.monotonic() - ended
        if patient:
            await self._until_quiet()
        output = "".join([*self._output, *(process.output for process in self._running)])
        ids = {str(message.parse()["Message-ID"]): _subject(message) for message in tuple(self.smtp.messages)}
        for name, jobs in self._jobs.items():
            self._killed[name] |= {ids[each] for each in jobs if each in ids}
        return OutboxReport(
            orders=await _orders(),
            rolled_back=self._customers.rolled_back,
            arrivals=self._arrivals(),
            unanswered=self._customers.unanswered,
            killed=self._killed,
            stopped=self._stopped,
            crashes=self._crashes,
            trace=self._trace,
            log=output,
            ids={token: message_id for message_id, token in ids.items()},
            drained_after=drained,
        )

    async def _until_quiet(self) -> None:
        """Wait until no copy has come for a while: one that a broker still has would come later."""
        known = -1
        while known != len(self.smtp.messages):
            known = len(self.smtp.messages)
            await asyncio.sleep(_QUIET)

    async def _start_web(self) -> _Process:
        return await self._start(_Web(self._folder, next(self._names), self._environments[0]))

    async def _start_other(self) -> _Process:
        return await (self.start_relay() if self._broker is None else self.start_worker())

    async def _start(self, process: _Process) -> _Process:
        await asyncio.to_thread(process.start)
        self._running.append(process)
        token = self._folder / f"{process.name}.token"
        async with asyncio.timeout(PATIENCE):
            while not token.exists():
                await asyncio.sleep(0.02)
        self._tokens[process.name] = token.read_text()
        return process

    async def _rows_of(self, process: _Process) -> set[str]:
        return await _rows(self._tokens[process.name])

    def _arrivals(self) -> dict[str, list[Arrival]]:
        hosts = {each.connection: each.line.split()[-1] for each in tuple(self.smtp.commands) if each.verb == "EHLO"}
        arrivals: dict[str, list[Arrival]] = {}
        for message in tuple(self.smtp.messages):
            arrivals.setdefault(_subject(message), []).append(Arrival(hosts[message.connection], message.at))
        return arrivals


async def end_leases(token: str | None = None) -> None:
    """Take the time of a lease as passed, for the process of a claim token, or for all."""
    where, values = ("", {}) if token is None else (" WHERE claim = :token", {"token": token})
    async with (await db.engine()).begin() as connection:
        await connection.execute(text(f"UPDATE email_outbox SET lease = lease - {LEASE}{where}"), values)


async def _rows(token: str | None = None) -> set[str]:
    """Return the subjects of the messages that the outbox has, or that the process of a claim token has in hand."""
    where = "" if token is None else " AND claim = :token"
    heads = await _read(f"SELECT head FROM email_outbox WHERE state = 'open'{where}", token=token)
    return {str(json.loads(bytes(head))["subject"]) for head in heads}


async def _orders() -> set[str]:
    return set(await _read("SELECT token FROM orders"))


async def _in_transaction(token: str) -> bool:
    """True if the process of a claim token may have a transaction open that others would wait for."""
    engine = await db.engine()
    if engine.dialect.name == "sqlite":
        return await asyncio.to_thread(_is_written, str(engine.url.database))
    try:
        async with engine.connect() as connection:
            own = text("SELECT id FROM email_outbox WHERE claim = :token FOR UPDATE NOWAIT")
            await connection.execute(own, {"token": token})
    except DBAPIError:
        return True
    return False


def _is_written(path: str) -> bool:
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    finally:
        connection.close()
    return False


async def _read(query: str, **values: str | None) -> list[Any]:
    for last in (False, True):
        try:
            async with (await db.engine()).connect() as connection:
                named = {name: value for name, value in values.items() if value is not None}
                return list((await connection.execute(text(query), named)).scalars())
        except DBAPIError:  # the connection was one to a server that has crashed since
            if last:
                raise
    raise AssertionError


def _subject(message: ReceivedMessage) -> str:
    return str(message.parse()["Subject"])
