"""``viperctl email erase`` and ``find`` on real stores: after the one, no byte of theirs holds the address."""

import asyncio
import base64
import json
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.brokers import redis_server, until_available
from support.commands import Cli
from support.patience import PATIENCE
from support.prepared import make_outgoing
from support.redis import RedisServer

from openviper import db
from openviper.conf import override
from openviper.core.email import MessageEvent
from openviper.core.email.inbox.folder import Folder
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.message.storage import encode
from openviper.core.email.queue import close_queue, outbox_jobs, queue_service, stored_mail
from openviper.core.email.queue.found import Wanted
from openviper.core.email.queue.job import JobStore, NewJob, Progress, job_key
from openviper.core.email.queue.keys import KeyClaim
from openviper.db.journal import JournalRow, JournalStore, create_journal
from openviper.db.outbox import create_outbox_tables
from openviper.network import mail_hash

__all__ = ["redis_server"]

KEY = "a key of the journal's hashes, which is long"
ANN, BEN = "Ann.Erased@example.test", "ben@example.test"
LARGE = f"{ANN} " * 5000


class Shop:
    """A project that keeps mail in every way there is."""

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        self.folder = folder
        self.redis = redis
        self.database = folder / "data" / "shop.sqlite3"
        self.inbox = folder / "inbox"
        self.values = {
            "DATABASE_URL": f"sqlite+aiosqlite:///{self.database}",
            "TASKS": redis.tasks(),
            "EMAIL": {
                "default_sender": "shop@example.test",
                "backend": "ConsoleBackend",
                "outbox": "database",
                "journal": True,
                "journal_key": KEY,
                "inbox_dir": str(self.inbox),
                "suppress": "openviper.db.find_suppressed",
            },
        }
        self.database.parent.mkdir()
        with sqlite3.connect(self.database) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
        (folder / "settings.py").write_text("".join(f"{name} = {value!r}\n" for name, value in self.values.items()))

    def forms(self) -> list[str]:
        """Where the address is found: the form, and the folder with the file."""
        places = (self.database.parent, self.redis.folder, self.inbox)
        return sorted(
            f"{name} in {place.name}"
            for place in places
            for name, form in forms_of(ANN.lower())
            if any(form in stored for file in place.rglob("*") if file.is_file() for stored in readings(file, name))
        )

    def rewrite_redis(self) -> None:
        """Have Redis write all that it holds: a dump, and a new append-only file."""
        with self.redis.client() as client:
            client.config_set("rdbcompression", "no")
            client.save()
            client.bgrewriteaof()
            deadline = time.monotonic() + PATIENCE
            while client.info("persistence")["aof_rewrite_in_progress"] and time.monotonic() < deadline:
                time.sleep(0.02)


def forms_of(address: str) -> Iterator[tuple[str, bytes]]:
    yield "plain", address.encode()
    yield "percent", address.replace("@", "%40").encode()
    yield "quoted-printable", address.replace("@", "=40").encode()
    yield "json", address.replace("@", "\\u0040").encode()
    for shift in range(3):
        text = base64.b64encode(b"x" * shift + ANN.encode())
        yield f"base64-{shift}", text[4 if shift else 0 : -4]


def readings(file: Path, form: str) -> Iterator[bytes]:
    content = file.read_bytes()
    yield content.replace(b"\r\n", b"") if form.startswith("base64") else content.lower()


@pytest.fixture
async def shop(tmp_path: Path, project: Path, redis_server: RedisServer) -> AsyncIterator[Shop]:
    made = Shop(project, redis_server)
    with override(**made.values):
        await asyncio.to_thread(until_available)
        engine = await db.engine()
        await create_outbox_tables(engine)
        await create_journal(engine)
        await db.create_suppression_table()
        yield made
        await asyncio.to_thread(close_queue)
        await db.dispose()


async def message(*to: str, subject: str, text: str = "Hello", ref: str = "") -> OutgoingMessage:
    made = await make_outgoing(*to, subject=subject, text=text)
    extra = {"ref": ref, "tags": [f"of {ANN}"], "metadata": {ANN: f"<{ANN.upper()}>"}} if ref else {}
    return made._replace(prepared=made.prepared._replace(extra=extra))


def job_of(made: OutgoingMessage, *, due_at: float | None = None) -> NewJob:
    key = job_key(made.message_id, made.envelope.recipients)
    return NewJob(key, made.message_id, encode(made.prepared), Progress(since=time.time()), 600.0, due_at)


def fail(store: JobStore, ticket: tuple[Any, ...], progress: Progress, reason: str) -> None:
    job = store.claim(*ticket)
    assert job is not None
    store.fail(job, progress, reason, keep=600.0, uncertain=False)


def fill(store: JobStore, alone: list[OutgoingMessage], shared: list[OutgoingMessage]) -> None:
    """Store three messages for Ann alone, and two for her and Ben, the first of each as failed."""
    refused = Progress(since=1.0, attempts=1, refused={ANN: f"550 {ANN} unknown", BEN: "550 no"})
    for made in (alone[0], shared[0]):
        job = job_of(made)
        store.add(job, deadline=time.monotonic() + PATIENCE)
        fail(store, (job.key, 1, "ticket"), refused, f"550 {ANN} unknown")
    for made in (*alone[1:], shared[1]):
        store.add(job_of(made, due_at=time.time() + 600), deadline=time.monotonic() + PATIENCE)


async def fill_everything(shop: Shop) -> list[OutgoingMessage]:
    service, kept = queue_service(), outbox_jobs()
    assert service is not None
    assert kept is not None
    text = f"Dear {ANN}, https://example.test/?who={ANN.replace('@', '%40')}"
    shared = []
    for store in (service.store, kept):
        alone = [await message(ANN, subject=f"to {ANN}", text=each, ref="order-7") for each in (text, text, LARGE)]
        both = [await message(ANN, BEN, subject=f"{ANN} and Ben", ref="order-8") for _ in range(2)]
        shared += both
        await asyncio.to_thread(fill, store, alone, both)
    await db.add_suppression(ANN, f"{ANN} bounced")
    hashed = mail_hash(ANN, KEY)
    answer = JournalRow("e1", "<gone@example.test>", "order-6", hashed, None, "delivered", 250, time.time())
    await JournalStore(await db.engine()).insert([answer])
    for name, claim in (("order-7", f"{ANN}-key"), ("order-8", "receipt")):
        made = KeyClaim(claim, "fingerprint", f"<{name}@example.test>", "owner", 600.0)
        receipt = json.dumps({"mode": "inline", "accepted": [ANN, BEN], "response": f"250 {ANN}"})
        await service.key_store.finish(made, receipt)  # type: ignore[union-attr]
    folder = Folder(shop.inbox)
    for recipient in (ANN, BEN):
        made_for = await message(recipient, subject="in the inbox", text=f"Dear {recipient}=")
        event = MessageEvent(kind="delivered", message_id=made_for.message_id, message=made_for)
        await asyncio.to_thread(folder.write, event)
    return shared


def run(cli: Cli, shop: Shop, *arguments: str, **env: str) -> tuple[int, str]:
    done = cli.run("email", *arguments, "--project", str(shop.folder), **env)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


async def test_after_erase_no_byte_of_any_store_holds_the_address(cli: Cli, shop: Shop) -> None:
    shared = await fill_everything(shop)
    await asyncio.to_thread(shop.rewrite_redis)
    before = await asyncio.to_thread(shop.forms)
    assert {"plain in data", "plain in inbox", "percent in data"} <= set(before)
    assert f"plain in {shop.redis.folder.name}" in before
    code, output = await asyncio.to_thread(run, cli, shop, "erase", ANN.upper(), "--yes")
    assert code == 0, output
    assert "Stored mail  6 removed, 4 changed (for several recipients), 2 idempotency keys" in output
    assert "Suppression  1 kept as a keyed hash" in output
    assert "Journal      1 answers removed" in output
    assert "Inbox page   1 removed" in output
    await asyncio.to_thread(shop.rewrite_redis)
    assert await asyncio.to_thread(shop.forms) == []
    # What is left: Ben's mail, and that Ann is not mailed.
    found = await db.find_suppressed([ANN, BEN], None)
    assert found == {ANN.lower(): None}
    mail = stored_mail()
    assert mail is not None
    stored = await asyncio.to_thread(mail.store.find, Wanted(address=BEN))
    assert {each.message_id for each in stored} == {made.message_id for made in shared}
    assert {each.recipients for each in stored} == {(BEN,)}
    assert await asyncio.to_thread(mail.store.find, Wanted(address=ANN.lower())) == []


def test_a_search_for_no_address_is_refused(cli: Cli, project: Path) -> None:
    done = cli.run("email", "find", "--to", "ann", "--project", project)
    assert (done.returncode, "--to" in done.stderr, "has no '@'" in done.stderr) == (2, True, True)


async def test_mail_is_found_by_reference_and_by_id(cli: Cli, shop: Shop) -> None:
    await fill_everything(shop)
    code, output = await asyncio.to_thread(run, cli, shop, "find", "--ref", "order-7", EMAIL_JOURNAL="no")
    assert code == 0
    assert output.count("later") == 4
    assert output.count("failed after 1 attempt") == 2
    assert f"for {ANN}" in output
    assert "mail that a process holds in memory" in output
    assert 'EMAIL["journal"] is off: mail that was delivered' in output
    code, by_name = await asyncio.to_thread(run, cli, shop, "find", "--to", f"Ann <{ANN.upper()}>")
    assert code == 0
    assert by_name.count(f"for {ANN}") == 10
    done = await asyncio.to_thread(
        cli.run, "email", "find", "--id", "gone@example.test", "--json", "--project", str(shop.folder)
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["stored"] == []
    assert [(row["ref"], row["outcome"], row["code"]) for row in found["journal"]] == [("order-6", "delivered", 250)]
    _, output = await asyncio.to_thread(run, cli, shop, "status")
    assert re.search(r"^Journal  sqlite\S+: 1 answer, the newest \d+ s ago; kept 30 days$", output, re.MULTILINE)
    _, output = await asyncio.to_thread(run, cli, shop, "status", EMAIL_JOURNAL="no")
    assert "Journal" not in output
