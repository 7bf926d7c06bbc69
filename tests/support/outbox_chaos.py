"""Kills of web processes, relays and workers while requests insert, roll back and nest, with the database outbox."""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from openviper import conf, db
from openviper.db.outbox import create_outbox_tables
from openviper.db.outbox.rows import LEASE
from support.patience import PATIENCE
from support.smtpd import SmtpServer
from support.uvicorn import Uvicorn
from support.workers import NamedWorker

__all__ = ["OutboxReport", "run_outbox_chaos"]

_APP = """
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


app = EmailMiddleware(shop)
"""
_KINDS = ("inserted", "nested", "rolled-back", "deferred")
_CUSTOMERS = 6


@dataclass
class OutboxReport:
    """What became of the orders, each of which has its token as the subject of its mail."""

    orders: set[str]
    rolled_back: int
    arrivals: dict[str, list[str]]  # of each token: the processes that it came from, in order
    killed: dict[str, set[str]]  # by process: the tokens that it may have had in hand when it died
    drained_after: float  # seconds
    unanswered: set[str] = field(default_factory=set)  # deferred mail whose response never came: nothing was promised

    @property
    def lost(self) -> set[str]:
        return self.orders - set(self.arrivals) - self.unanswered

    @property
    def phantoms(self) -> set[str]:
        """Mail of orders that were rolled back."""
        return set(self.arrivals) - self.orders

    @property
    def duplicates(self) -> set[str]:
        return {token for token, names in self.arrivals.items() if len(names) > 1}

    @property
    def explained(self) -> set[str]:
        """Duplicates each of whose first copies came from a process that died with the message in hand."""
        return {
            token
            for token in self.duplicates
            if all(self._died_in_hand(token, name) for name in self.arrivals[token][:-1])
        }

    def _died_in_hand(self, token: str, name: str) -> bool:
        return token in self.killed.get(name, ())

    def __str__(self) -> str:
        lines = [
            f"orders {len(self.orders)}, rolled back {self.rolled_back}, kills {len(self.killed)}",
            f"drained in {self.drained_after:.0f} s",
            f"lost {len(self.lost)}, of rolled back orders {len(self.phantoms)}",
            f"duplicates {len(self.duplicates)}, of these explained {len(self.explained)}",
        ]
        lines += [f"  lost {token}" for token in sorted(self.lost)]
        lines += [f"  of a rolled back order {token}" for token in sorted(self.phantoms)]
        lines += [
            f"  {token} came from {', then '.join(self.arrivals[token])}"
            f"{'' if token in self.explained else ': NOT EXPLAINED'}"
            for token in sorted(self.duplicates)
        ]
        return "\n".join(lines)


class _Web(Uvicorn):
    def __init__(self, folder: Path, name: str) -> None:
        super().__init__("app:app", folder, {"EMAIL_LOCAL_HOSTNAME": name}, "--log-level", "info")
        self.name = name

    def start(self) -> None:
        self.__enter__()

    def kill(self) -> None:
        self.process.kill()
        self.stop()


class _Relay:
    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.name = name

    def start(self) -> None:
        program = Path(sys.executable).with_name("viperctl")
        self._process = subprocess.Popen(
            [program, "email", "relay", "--project", self._folder],
            env={**os.environ, "EMAIL_LOCAL_HOSTNAME": self.name},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith(b"Relay of")

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE)


class _Customers:
    """Place orders of every kind at the web process that runs, until stopped."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._numbers = count(1)
        self.url: str | None = None
        self.rolled_back = 0
        self.unanswered: set[str] = set()
        self.stopped = False

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=PATIENCE) as client, asyncio.TaskGroup() as group:
            for _ in range(_CUSTOMERS):
                group.create_task(self._shop(client))

    async def _shop(self, client: httpx.AsyncClient) -> None:
        while not self.stopped:
            if self.url is None:
                await asyncio.sleep(0.05)
                continue
            kind, token = self._random.choice(_KINDS), f"order-{next(self._numbers)}"
            try:
                answer = await client.post(f"{self.url}/{kind}/{token}")
            except httpx.HTTPError:  # the process was killed
                if kind == "deferred":
                    self.unanswered.add(token)
                continue
            self.rolled_back += answer.status_code == 409
            await asyncio.sleep(self._random.uniform(0.0, 0.05))


async def run_outbox_chaos(
    folder: Path, *, kills: int, gap: float, tasks: Mapping[str, Any], patient: bool, seed: int = 1
) -> OutboxReport:
    """Kill a web process and a relay (a worker, with a broker in ``tasks``) in turn, ``kills`` times altogether.

    ``DATABASE_URL`` is set and empty. ``gap`` is the longest time between two kills in seconds. ``patient``: let leases
    end by themselves; otherwise that minute is taken as passed once every process is dead.
    """
    await create_outbox_tables(await db.engine())
    async with (await db.engine()).begin() as connection:
        await connection.execute(text("CREATE TABLE orders (token VARCHAR(60) PRIMARY KEY)"))
    with SmtpServer() as smtp:
        smtp.delay("body", 0.02)
        email = smtp.settings(default_sender="shop@example.com", timeout=PATIENCE, outbox="database", outbox_wait=True)
        url = str(conf.settings.DATABASE_URL)
        (folder / "app.py").write_text(_APP)
        (folder / "settings.py").write_text(f"DATABASE_URL = {url!r}\nTASKS = {dict(tasks)!r}\nEMAIL = {email!r}\n")
        os.environ["OPENVIPER_SETTINGS_MODULE"] = "settings"
        names = (f"process-{number}.example.com" for number in count(1))
        chance, customers, killed = random.Random(seed), _Customers(seed), dict[str, set[str]]()

        def other() -> _Relay | NamedWorker:
            return NamedWorker(folder, next(names)) if tasks else _Relay(folder, next(names))

        running: list[Any] = [_Web(folder, next(names)), other()]
        await asyncio.gather(*(asyncio.to_thread(one.start) for one in running))
        customers.url = running[0].url
        shopping = asyncio.create_task(customers.run())
        for number in range(kills):
            await asyncio.sleep(chance.uniform(gap / 4, gap))
            place = number % 2
            customers.url = None if place == 0 else customers.url
            await asyncio.to_thread(running[place].kill)
            killed[running[place].name] = await _rows() | (_last_of(smtp, running[place].name) if tasks else set())
            running[place] = _Web(folder, next(names)) if place == 0 else other()
            await asyncio.to_thread(running[place].start)
            customers.url = running[0].url
        customers.stopped = True
        await shopping
        ended = time.monotonic()
        if not patient:
            for one in running:
                await asyncio.to_thread(one.kill)
            left = await _rows()
            killed |= {one.name: left for one in running}
            async with (await db.engine()).begin() as connection:
                await connection.execute(text(f"UPDATE email_outbox SET lease = lease - {LEASE}"))
            running = [_Relay(folder, next(names))]
            await asyncio.to_thread(running[0].start)
        try:
            async with asyncio.timeout(LEASE + PATIENCE):
                while await _rows() or not await _orders() <= {*_arrivals(smtp), *customers.unanswered}:
                    await asyncio.sleep(0.2)
        except TimeoutError:
            pass  # the report says what is missing
        drained = time.monotonic() - ended
        for one in running:
            await asyncio.to_thread(one.kill)
        return OutboxReport(
            await _orders(), customers.rolled_back, _arrivals(smtp), killed, drained, customers.unanswered
        )


async def _rows() -> set[str]:
    """Return the tokens of the messages that the outbox has."""
    async with (await db.engine()).connect() as connection:
        heads = (await connection.execute(text("SELECT head FROM email_outbox WHERE state = 'open'"))).scalars()
        return {token for head in heads if (token := _token(bytes(head)))}


async def _orders() -> set[str]:
    async with (await db.engine()).connect() as connection:
        return set((await connection.execute(text("SELECT token FROM orders"))).scalars())


def _token(head: bytes) -> str:
    return str(json.loads(head)["subject"])


def _last_of(smtp: SmtpServer, name: str) -> set[str]:
    """Return what a worker sent in its last second: a broker does not say which of that it had confirmed."""
    now = time.monotonic()
    hosts = _hosts(smtp)
    recent = [each for each in tuple(smtp.messages) if each.at > now - 1.0 and hosts[each.connection] == name]
    return {str(message.parse()["Subject"]) for message in recent}


def _hosts(smtp: SmtpServer) -> dict[int, str]:
    return {command.connection: command.line.split()[-1] for command in tuple(smtp.commands) if command.verb == "EHLO"}


def _arrivals(smtp: SmtpServer) -> dict[str, list[str]]:
    hosts = _hosts(smtp)
    arrivals: dict[str, list[str]] = {}
    for message in tuple(smtp.messages):
        arrivals.setdefault(str(message.parse()["Subject"]), []).append(hosts[message.connection])
    return arrivals
