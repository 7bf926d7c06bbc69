"""Measure what the database outbox costs: ``python benchmarks/outbox_cost.py [sqlite|postgresql]``.

A checkout is a request that inserts an order and sends one mail in a transaction. It is measured without mail (the
limit), with held mail, and with held mail in the outbox, in CPU time of the process up to the delivery, in turns; the
figures are medians. Then a claim is timed
beside few and beside 100,000 waiting rows, and of rows with 25 MB attachments.
"""

# ruff: noqa: E402 - this checkout and its test servers come first on the path

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parents[1])]

from sqlalchemy import text
from support.lifespan import Lifespan
from support.postgres import running_postgres

from openviper import conf, db
from openviper.core.email import EmailMiddleware, send_email
from openviper.db import transaction
from openviper.db.outbox import create_outbox_tables
from openviper.db.outbox.rows import NewRow
from openviper.db.outbox.store import OutboxStore, new_row_id

_CHECKOUTS = 200
_TURNS = 5
_INSERT = text("INSERT INTO orders (email) VALUES ('customer@example.com')")
_ATTACHMENT = 25 * 1024 * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("database", choices=["sqlite", "postgresql"], nargs="?", default="sqlite")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if given.database == "postgresql":
        with running_postgres() as url:
            asyncio.run(_measure(given.database, url))
    else:
        with tempfile.TemporaryDirectory(prefix="openviper-cost-") as folder:
            asyncio.run(_measure(given.database, f"sqlite+aiosqlite:///{folder}/cost.sqlite3"))


async def _measure(name: str, url: str) -> None:
    with conf.override(DATABASE_URL=url):
        engine = await db.engine()
        await create_outbox_tables(engine)
        key = "INTEGER PRIMARY KEY" if name == "sqlite" else "SERIAL PRIMARY KEY"
        async with engine.begin() as connection:
            await connection.execute(text(f"CREATE TABLE orders (id {key}, email VARCHAR(200))"))
        await _print_checkouts(name)
        await _print_claims(name, OutboxStore(engine))
        await db.dispose()


async def _print_checkouts(name: str) -> None:
    spent: dict[str, list[float]] = {"plain INSERT": [], "held mail": [], "outbox": []}
    for turn in range(_TURNS + 1):
        for kind, times in spent.items():
            used = await _serve(mail=kind != "plain INSERT", outbox="database" if kind == "outbox" else None)
            if turn:  # the first one warms up
                times.append(used / _CHECKOUTS)
    figures = {kind: median(times) for kind, times in spent.items()}
    for kind, seconds in figures.items():
        print(f"{name}: a checkout, {kind}: {seconds * 1e6:.0f} us of CPU time")
    print(f"{name}: outbox / held mail {figures['outbox'] / figures['held mail']:.2f}")


async def _serve(*, mail: bool, outbox: str | None) -> float:
    """Return the CPU time of the requests, up to the delivery of their mail."""

    async def shop(scope: Any, _receive: Any, send: Any) -> None:
        assert scope["type"] == "http", "it has no lifespan of its own"
        async with transaction() as session:
            await session.execute(_INSERT)
            if mail:
                await send_email("customer@example.com", "Your order", text="Thank you!")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ignore(_message: Any) -> None:
        pass

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    settings = {"backend": "NullBackend", "default_sender": "shop@example.com", "outbox": outbox}
    async with Lifespan(EmailMiddleware(shop, settings)) as manager:
        begun = time.process_time()
        for _ in range(_CHECKOUTS):
            await manager.app({"type": "http", "path": "/", "headers": []}, receive, ignore)
    return time.process_time() - begun


async def _print_claims(name: str, store: OutboxStore) -> None:
    few = await _time_claims(store, waiting=100)
    many = await _time_claims(store, waiting=100_000)
    print(f"{name}: a claim of 10 rows, 100 waiting: {few * 1e3:.1f} ms, 100,000 waiting: {many * 1e3:.1f} ms")
    async with store.engine.begin() as connection:
        await connection.execute(text("DELETE FROM email_outbox"))
    for _ in range(4):
        await store.insert([(new_row_id(), _row(bytes(_ATTACHMENT)))], token=None)
    times = []
    for number in range(4):
        begun = time.perf_counter()
        assert len(await store.claim(1, token=f"token-{number}")) == 1
        times.append(time.perf_counter() - begun)
    print(f"{name}: a claim of a row with an attachment of 25 MB: {median(times) * 1e3:.1f} ms")


async def _time_claims(store: OutboxStore, *, waiting: int) -> float:
    async with store.engine.begin() as connection:
        await connection.execute(text("DELETE FROM email_outbox"))
    for first in range(0, waiting, 1000):
        rows = [(new_row_id(), _row(b"x" * 500)) for _ in range(min(1000, waiting - first))]
        await store.insert(rows, token=None)
    if not store.on_sqlite:
        async with store.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("VACUUM ANALYZE email_outbox"))
    times = []
    for number in range(10):
        begun = time.perf_counter()
        assert len(await store.claim(10, token=f"token-{number}")) == 10
        times.append(time.perf_counter() - begun)
    return median(times)


def _row(content: bytes) -> NewRow:
    return NewRow("<a@example.com>", "default", b"{}", [content], '{"since": 0}')


if __name__ == "__main__":
    main()
