"""``health()``: what makes it degraded or failing, what it never shows, and the endpoint in every application."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.routing import Route
from support.brokers import redis_server
from support.mailers import memory_mailer
from support.patience import PATIENCE
from support.prepared import make_outgoing
from support.redis import RedisServer
from support.smtpd import SmtpServer

from openviper import OpenViper, db
from openviper.conf import override
from openviper.core.email import (
    DeliveryError,
    EmailMessageData,
    EmailMiddleware,
    Health,
    HealthEndpoint,
    health,
    send_email,
    submit_email,
)
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.health import HealthCheck
from openviper.core.email.queue import close_queue, queue_service
from openviper.core.email.settings import EmailSettings
from openviper.db.outbox import add, create_outbox_tables

__all__ = ["redis_server"]

MESSAGE: dict[str, Any] = {"recipients": "user@example.test", "subject": "Hello", "text": "Hi"}
SENDER = "shop@example.test"


def names(found: Health) -> list[str]:
    return [problem.name for problem in found.problems]


async def look(mailer: Mailer) -> Health:
    """A new look, which an application gets every five seconds."""
    return await HealthCheck().result(mailer)


async def test_it_is_ok_where_nothing_is_wrong() -> None:
    mailer = memory_mailer()
    with using_mailer(mailer):
        found = await health()
    assert (found.status, found.problems) == ("ok", ())
    assert found.to_dict(details=False) == {"status": "ok"}
    assert json.loads(json.dumps(found.to_dict())) == {
        "status": "ok",
        "problems": [],
        "mailers": {"default": {"reachable": None, "connections": None}},
        "dispatcher": {"messages": 0, "full": False},
        "queue": None,
        "outbox": None,
        "journal": None,
        "paused": [],
    }
    await mailer.aclose()


async def test_all_who_ask_within_five_seconds_share_one_result() -> None:
    mailer = memory_mailer()
    with using_mailer(mailer):
        results = await asyncio.gather(*[health() for _ in range(20)])
        results.append(await health())
    assert len({id(each) for each in results}) == 1
    await mailer.aclose()


async def test_a_mail_server_that_does_not_answer_degrades_until_it_is_back() -> None:
    """It is asked by the health check itself, so that a process without mail notices its return."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    mailer = Mailer(EmailSettings(host="127.0.0.1", port=port, default_sender=SENDER))
    with using_mailer(mailer):
        assert (await look(mailer)).stats["mailers"]["default"]["reachable"] is None
        with pytest.raises(DeliveryError):
            await send_email(**MESSAGE)
        down = await look(mailer)
        assert (down.status, names(down)) == ("degraded", ["mail_server"])
        assert down.stats["mailers"]["default"]["reachable"] is False
        async with await asyncio.start_server(one_greeting, "127.0.0.1", port):
            found = await look(mailer)
            while found.problems:  # pauses between attempts to connect grow to ten seconds
                found = await look(mailer)
            assert found.stats["mailers"]["default"] == {
                "reachable": True,
                "connections": {"open": 1, "idle": 1, "waiting": 0, "sent": 0, "reconnects": 0},
            }
            await mailer.aclose()


async def one_greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An SMTP server that takes no mail."""
    writer.write(b"220 ready\r\n")
    while line := await reader.readline():
        writer.write(b"250 ok\r\n")
        if line.upper().startswith(b"QUIT"):
            break
    writer.close()


async def test_a_failover_in_use_degrades() -> None:
    with SmtpServer() as own, SmtpServer() as backup:
        own.fault("greeting", 421)
        settings = own.settings(
            default_sender=SENDER, mailers={"backup": backup.settings()}, failover=["backup"], retry_period=PATIENCE
        )
        mailer = Mailer(EmailSettings(**settings))
        with using_mailer(mailer):
            await send_email(**MESSAGE)
            found = await look(mailer)
            assert (found.status, names(found)) == ("degraded", ["mail_server", "failover"])
            own.behave()
            returned = await look(mailer)  # its server is asked again, the failover only by mail
            while "mail_server" in names(returned):
                returned = await look(mailer)
            assert names(returned) == ["failover"]
            assert returned.stats["mailers"]["backup"]["connections"]["sent"] == 1
        await mailer.aclose()
    assert len(backup.messages) == 1


async def test_a_full_dispatcher_and_a_pause_degrade(tmp_path: Path) -> None:
    with SmtpServer() as server:
        gate = server.hold("MAIL")
        settings = server.settings(default_sender=SENDER, dispatcher_messages=1, state_dir=str(tmp_path / "state"))
        mailer = Mailer(EmailSettings(**settings))
        await mailer.open()
        mailer.deliver_soon(await make_outgoing(), "")
        found = await look(mailer)
        assert (found.status, names(found)) == ("degraded", ["dispatcher"])
        assert found.stats["dispatcher"] == {"messages": 1, "full": True}
        gate.release()
        await server.arrive(1)
        assert await asyncio.to_thread(pause, tmp_path, settings)
        while "paused" not in names(await look(mailer)):
            await asyncio.sleep(0.05)
        found = await look(mailer)
        assert found.status == "degraded"
        assert [each["mailer"] for each in found.stats["paused"]] == ["default"]
        await mailer.aclose()


def pause(folder: Path, settings: dict[str, Any]) -> bool:
    from openviper.core.email.delivery.pause.flag import change_state, pause_store

    store = pause_store(EmailSettings(**settings))
    assert store is not None
    store.open()
    change_state(store, "default", seconds=None, stop=True)
    return True


@pytest.fixture
def tasks(redis_server: RedisServer) -> Any:
    with override(TASKS=redis_server.tasks()):
        yield redis_server
        close_queue()


async def test_the_broker_its_workers_and_waiting_mail_are_looked_at(tasks: Any) -> None:
    with SmtpServer() as server, override(EMAIL=server.settings(default_sender=SENDER)):
        mailer = Mailer(EmailSettings.from_settings())
        with using_mailer(mailer):
            await mailer.open()
            assert (await submit_email(**MESSAGE)).mode == "queued"
            found = await look(mailer)
            assert (found.status, names(found)) == ("degraded", ["workers"])
            queue = found.stats["queue"]
            assert queue.pop("waiting_for") >= 0
            assert queue == {"answers": True, "workers": {"default": 0}, "waiting": 1, "later": 0, "failed": 0}
            (ticket,) = tasks.client().lrange("dramatiq:emails", 0, -1)
            old = json.loads(tasks.client().hget("dramatiq:emails.msgs", ticket)) | {"message_timestamp": 1}
            tasks.client().hset("dramatiq:emails.msgs", ticket, json.dumps(old))
            assert names(await look(mailer)) == ["workers", "queue_age"]
            tasks.client().hset("dramatiq:emails.msgs", ticket, b"junk")
            assert names(await look(mailer)) == ["workers"]
            service = queue_service()
            assert service is not None
            service.detector.failed("stopped by the test")
            lost = await look(mailer)
            assert (lost.status, names(lost)) == ("degraded", ["broker"])
        await mailer.aclose()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[dict[str, Any]]:
    email = {"backend": "NullBackend", "default_sender": SENDER, "outbox": "database"}
    with override(DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path / 'shop.sqlite3'}", EMAIL=email):
        yield email
        await db.dispose()


async def test_an_outbox_without_tables_is_the_only_thing_of_it_that_fails(database: dict[str, Any]) -> None:
    mailer = Mailer(EmailSettings(**database))
    await mailer.open()
    check = HealthCheck()
    without = await check.result(mailer)
    assert (without.status, names(without)) == ("failing", ["outbox"])
    assert "email_outbox" in without.problems[0].text
    engine = await db.engine()
    await create_outbox_tables(engine)
    assert (await look(mailer)).status == "ok"
    async with engine.begin() as connection:
        await connection.run_sync(add, EmailMessageData("a@example.test", "Hello", text="Hi"))
    waiting = await look(mailer)
    assert (waiting.status, names(waiting)) == ("degraded", ["relay"])
    assert waiting.stats["outbox"]["waiting"] == 1
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE email_outbox SET due = due - 1000"))
    assert names(await look(mailer)) == ["relay", "queue_age"]
    await mailer.aclose()


async def test_invalid_settings_fail() -> None:
    with override(EMAIL={"host": "mail.secret.example", "port": "many"}):
        found = await health()
    assert (found.status, names(found)) == ("failing", ["settings"])
    assert "secret" not in json.dumps(found.to_dict())


async def test_nothing_of_it_names_a_host_or_an_address() -> None:
    with SmtpServer() as server:
        settings = server.settings(default_sender=SENDER, username="ana@example.test", password="very-secret")
        server.fault("greeting", 554)
        mailer = Mailer(EmailSettings(**settings | {"use_tls": False, "use_ssl": False}))
        with using_mailer(mailer):
            assert await send_email(**MESSAGE, fail_silently=True) is False
        shown = json.dumps((await look(mailer)).to_dict())
        await mailer.aclose()
    assert '"mail_server"' in shown
    assert not [word for word in ("127.0.0.1", str(server.port), "@", "secret") if word in shown]


def applications() -> list[Any]:
    starlette = Starlette(routes=[Route("/health/mail", HealthEndpoint())])
    fastapi, openviper = FastAPI(), OpenViper(title="Shop")
    for app in (fastapi, openviper):
        app.routes.append(Route("/health/mail", HealthEndpoint()))
    return [starlette, fastapi, openviper, HealthEndpoint()]


@pytest.mark.parametrize("number", range(4), ids=["starlette", "fastapi", "openviper", "asgi"])
async def test_the_endpoint_answers_in_every_application(number: int) -> None:
    app = EmailMiddleware(applications()[number], settings={"backend": "MemoryBackend"})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.get("/health/mail")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        assert response.headers["cache-control"] == "no-store"
        head = await client.head("/health/mail")
        assert (head.status_code, head.content) == (200, b"")
        assert (await client.post("/health/mail")).status_code == 405


async def test_the_endpoint_says_503_for_failing_only(database: dict[str, Any]) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(HealthEndpoint(details=True)), base_url="http://test"
    ) as client:
        response = await client.get("/")
        assert (response.status_code, response.json()["problems"][0]["name"]) == (503, "outbox")
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        with override(EMAIL={"host": "127.0.0.1", "port": port, "default_sender": SENDER}):
            await send_email(**MESSAGE, fail_silently=True)
            response = await client.get("/")
        assert (response.status_code, response.json()["status"]) == (200, "degraded")
        with override(EMAIL={"port": "many"}):
            assert (await client.get("/")).status_code == 503
