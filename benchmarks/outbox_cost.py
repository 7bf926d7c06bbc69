"""Measure what the database outbox costs: ``python benchmarks/outbox_cost.py [sqlite|postgresql]``.

A checkout is a request through the ASGI application: an order with three lines, written by the ORM in one transaction,
and one mail, rendered from a pair of templates, which is delivered by SMTP to a sink in another process (see
``sending/checkout.py`` for why this and no less). CPU time of this process is measured, user and system, all threads,
from the first request to the end of the application's lifespan, when all mail is delivered and its rows are deleted.

Each turn serves checkouts without mail, with held mail, with held mail and a plain INSERT of a row like the outbox's
by SQLAlchemy, which is never deleted, and with held mail in the outbox. The ratios are medians of those of
the turns, so that other load meets all of them alike. ``--at-once`` is the number of requests at a time; one at a time
costs most, since each deletion then is a transaction of its own on PostgreSQL.

Then the response of a request that defers its mail without a transaction is timed, 20 requests a second, with and
without the outbox in turns. Last, a claim is timed, in turns, in a database with 100 and in one with 100,000 waiting
rows; and one of rows with 25 MB attachments.
"""

# ruff: noqa: E402 - this checkout and its test servers come first on the path

import argparse
import asyncio
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parent / "tests"), str(_HERE.parent), str(_HERE / "sending")]

from checkout import Base, call, checkout_application, deferring_application
from content import write_content
from sqlalchemy import Boolean, Column, Double, LargeBinary, String, Table, Text, insert, text
from support.lifespan import Lifespan
from support.postgres import running_postgres

from openviper import conf, db
from openviper.core.email import EmailMiddleware
from openviper.db.outbox import create_outbox_tables
from openviper.db.outbox.rows import NewRow
from openviper.db.outbox.store import OutboxStore, new_row_id

_FIRST = 20
_CHECKOUTS = 300
_TURNS = 15
_RESPONSES = 40
_RESPONSE_TURNS = 10
_EVERY = 0.05  # seconds between two requests whose response is timed
_CLAIMS = 30
_ATTACHMENT = 25 * 1024 * 1024

_plain = Table(
    "plain",
    Base.metadata,
    Column("id", String(32), primary_key=True),
    Column("message_id", Text, nullable=False),
    Column("mailer", String(100), nullable=False),
    Column("state", String(8), nullable=False),
    Column("due", Double, nullable=False, index=True),
    Column("lease", Double),
    Column("claim", String(32)),
    Column("repeated", Boolean, nullable=False),
    Column("created", Double, nullable=False),
    Column("progress", Text, nullable=False),
    Column("head", LargeBinary, nullable=False),
    Column("parts", LargeBinary),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", choices=["sqlite", "postgresql"], nargs="?", default="sqlite")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--turns", type=int, default=_TURNS)
    parser.add_argument("--only", choices=["checkouts", "responses", "claims"])
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if given.database == "postgresql":
        with running_postgres() as url:
            asyncio.run(_measure(given, url))
    else:
        with tempfile.TemporaryDirectory(prefix="openviper-cost-") as folder:
            asyncio.run(_measure(given, f"sqlite+aiosqlite:///{folder}/cost.sqlite3"))


async def _measure(given: argparse.Namespace, url: str) -> None:
    with conf.override(DATABASE_URL=url, TEMPLATES_DIR=str(_HERE / "sending" / "templates")):
        engine = await db.engine()
        await create_outbox_tables(engine)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        name = given.database
        if given.only in (None, "checkouts"):
            await _print_checkouts(name, given.turns, given.at_once)
        if given.only in (None, "responses"):
            await _print_responses(name)
        if given.only in (None, "claims"):
            with conf.override(DATABASE_URL=await _second_database(url)):
                second = await db.engine()
            await _print_claims(name, OutboxStore(engine), OutboxStore(second))
        await db.dispose()


async def _print_checkouts(name: str, turns: int, at_once: int) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "without mail": {"mail": False},
        "held mail": {},
        "held mail and a plain INSERT": {"more": _insert_plainly},
        "held mail in the outbox": {"outbox": "database"},
    }
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(turns + 1):
        for kind, values in kinds.items():
            used = await _serve(**values, at_once=at_once)
            if turn:  # the first one warms up
                spent[kind].append(used / _CHECKOUTS)
    held = spent["held mail"]
    for kind, seconds in spent.items():
        ratios = [each / base for each, base in zip(seconds, held, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        shown = f"{median(seconds) * 1e6:.0f} us of CPU time, {median(ratios):.2f} times held mail ({spread})"
        print(f"{name}: a checkout, {at_once} at a time, {kind}: {shown}")
    for kind in ("held mail and a plain INSERT", "held mail in the outbox"):
        more = median(each - base for each, base in zip(spent[kind], held, strict=True))
        print(f"{name}: {kind}: {more * 1e6:.0f} us more than held mail")


async def _insert_plainly(session: Any) -> None:
    now = time.time()
    times = {"due": now, "lease": now + 60, "created": now}
    texts = {"message_id": "<a@example.com>", "mailer": "default", "state": "open", "progress": "{}", "claim": "0" * 32}
    row = {"id": new_row_id(), **texts, **times, "repeated": False, "head": b"x" * 500, "parts": b"x" * 2000}
    await session.execute(insert(_plain), row)


async def _serve(*, mail: bool = True, more: Any = None, outbox: str | None = None, at_once: int) -> float:
    """Return the CPU time of the requests, up to the delivery of their mail and the deletion of its rows."""
    with _sink(_FIRST + _CHECKOUTS if mail else 0) as port:
        app = EmailMiddleware(checkout_application(mail=mail, more=more), _settings(port, outbox))

        async def serve(number: int, served: Any) -> None:
            for _ in range(number):
                await call(served)

        async with Lifespan(app) as manager:
            await serve(_FIRST, manager.app)  # which open connections
            begun = time.process_time()
            await asyncio.gather(*(serve(_CHECKOUTS // at_once, manager.app) for _ in range(at_once)))
        return time.process_time() - begun


def _settings(port: int, outbox: str | None) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": port, "default_sender": "shop@example.com", "outbox": outbox}


@contextmanager
def _sink(expected: int) -> Iterator[int]:
    """Run a mail server for a block; yield its port."""
    with tempfile.TemporaryDirectory() as folder:
        content = write_content(Path(folder) / "content.json")
        command = [sys.executable, str(_HERE / "sending" / "sink.py"), "--content", str(content)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([*command, "--pipelining", "--chunking"], **pipes) as server:
            assert server.stdout is not None
            yield int(server.stdout.readline())
            received = json.loads(server.communicate()[0])["messages"]
    if received != expected:
        raise SystemExit(f"{expected} messages were sent, and {received} have arrived")


async def _print_responses(name: str) -> None:
    times: dict[str, list[float]] = {"without the outbox": [], "with the outbox": []}
    for turn in range(_RESPONSE_TURNS + 1):
        for kind, seconds in tuple(times.items()):
            measured = await _time_responses("database" if kind == "with the outbox" else None)
            if turn:
                times[kind] = seconds + measured
    for kind, seconds in times.items():
        of_100 = quantiles(seconds, n=100)
        shown = f"p50 {of_100[49] * 1e3:.2f} ms, p99 {of_100[98] * 1e3:.2f} ms"
        print(f"{name}: the response of a request with deferred mail, {kind}: {shown} ({len(seconds)} requests)")


async def _time_responses(outbox: str | None) -> list[float]:
    """Time the responses to requests that arrive at a fixed rate, whether or not the one before has been dealt with."""
    times = []
    with _sink(_RESPONSES) as port:

        async def timed(served: Any, due: float) -> None:
            await call(served, on_response=lambda: times.append(loop.time() - due))

        async with Lifespan(EmailMiddleware(deferring_application(), _settings(port, outbox))) as manager:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            async with asyncio.TaskGroup() as requests:
                for number in range(_RESPONSES):
                    due = begun + number * _EVERY
                    await asyncio.sleep(max(0.0, due - loop.time()))
                    requests.create_task(timed(manager.app, due))
    return times


async def _print_claims(name: str, few: OutboxStore, many: OutboxStore) -> None:
    stores = {100: few, 100_000: many}
    for waiting, store in stores.items():
        await _fill(store, waiting)
    times: dict[int, list[float]] = {waiting: [] for waiting in stores}
    spent: dict[int, list[float]] = {waiting: [] for waiting in stores}
    for number in range(_CLAIMS):
        for waiting, store in stores.items():
            begun, used = time.perf_counter(), time.process_time()
            rows = await store.claim(10, token=f"token-{number}")
            times[waiting].append(time.perf_counter() - begun)
            spent[waiting].append(time.process_time() - used)
            assert len(rows) == 10
            await store.release([row.id for row in rows], token=f"token-{number}")
    for waiting in stores:
        shown = f"{median(times[waiting]) * 1e3:.2f} ms, {median(spent[waiting]) * 1e3:.2f} ms of CPU time"
        print(f"{name}: a claim of 10 rows, {waiting} waiting: {shown}")
    print(f"{name}: 100,000 / 100 waiting: {median(times[100_000]) / median(times[100]):.2f}")
    async with few.engine.begin() as connection:
        await connection.execute(text("DELETE FROM email_outbox"))
    for _ in range(4):
        await few.insert([(new_row_id(), _row(bytes(_ATTACHMENT)))], token=None)
    large = []
    for number in range(4):
        begun = time.perf_counter()
        assert len(await few.claim(1, token=f"token-{number}")) == 1
        large.append(time.perf_counter() - begun)
    print(f"{name}: a claim of a row with an attachment of 25 MB: {median(large) * 1e3:.1f} ms")


async def _fill(store: OutboxStore, waiting: int) -> None:
    await create_outbox_tables(store.engine)
    for first in range(0, waiting, 1000):
        rows = [(new_row_id(), _row(b"x" * 500)) for _ in range(min(1000, waiting - first))]
        await store.insert(rows, token=None)
    if not store.on_sqlite:
        async with store.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("VACUUM ANALYZE email_outbox"))


async def _second_database(url: str) -> str:
    """Return the URL of another, empty database."""
    if "sqlite" in url:
        return url.replace("cost.sqlite3", "second.sqlite3")
    async with (await db.engine()).connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("CREATE DATABASE second"))
    return url.removesuffix("/postgres") + "/second"


def _row(content: bytes) -> NewRow:
    return NewRow("<a@example.com>", "default", b"{}", [content], '{"since": 0}')


if __name__ == "__main__":
    main()
