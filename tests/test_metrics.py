"""Metrics of sent mail: they equal what the mail server has counted, and say what is held."""

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client import REGISTRY
from support.patience import PATIENCE
from support.redis import RedisServer, redis_server
from support.smtpd import SmtpServer

from openviper import metrics
from openviper.conf import override
from openviper.core.email import EmailMessageData, MessageEvent, send_email, send_many, subscribe
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.queue import close_queue, enqueue_email_job
from openviper.core.email.settings import EmailSettings

__all__ = ["redis_server"]


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture(autouse=True)
def no_sampling() -> Iterator[None]:
    """The thread would ask the brokers of other tests."""
    yield
    metrics.stop_sampling()


@asynccontextmanager
async def mailing(server: SmtpServer, **more: object) -> AsyncIterator[Mailer]:
    email = server.settings(default_sender="shop@example.test", listeners=["openviper.metrics.observe"], **more)
    with override(EMAIL=email):
        mailer = Mailer(EmailSettings.from_settings())
        await mailer.open()
        with using_mailer(mailer):
            yield mailer
        await mailer.aclose()


def values() -> Counter[tuple[str, ...]]:
    """Every value now: the name of its sample, then those of its labels."""
    samples = [sample for metric in REGISTRY.collect() for sample in metric.samples]
    return Counter({(each.name, *each.labels.values()): int(each.value) for each in samples})


def gauge(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"openviper_email_{name}", labels)


KINDS = (
    ["ok@example.com"],
    ["later@example.com"],  # 450
    ["gone@example.com"],  # 550
    ["lost@example.com"],  # the connection is dropped after the message
    ["ok@example.com", "half@example.com"],  # 250 and 450
)


async def test_the_figures_equal_the_servers_counts_after_1000_sends_with_faults(server: SmtpServer) -> None:
    """Half of them inline, half of them after a response and retried at the end."""
    server.refuse("later@example.com", 450)
    server.refuse("gone@example.com", 550)
    server.refuse("half@example.com", 450)
    server.fault("body", "drop", address="lost@example.com")
    messages = [EmailMessageData(KINDS[number % 5], "Hello", text="Hi") for number in range(500)]
    events: list[MessageEvent] = []
    unsubscribe = subscribe(events.append)
    before = values()
    async with mailing(server, dispatcher_messages=1000, shutdown_timeout=PATIENCE):
        receipts = [receipt async for receipt in send_many(messages)]
        outbox = RequestOutbox()
        with collecting(outbox):
            for message in messages:
                await send_email(message.recipients, "Hello", text="Hi")
        outbox.flush()
    unsubscribe()
    counted = values() - before
    asked = Counter(line for line in (command.line for command in server.commands if command.verb == "RCPT"))
    rcpt = {name: asked[f"RCPT TO:<{name}@example.com>"] for name in ("ok", "later", "gone", "lost", "half")}
    assert sum(map(bool, receipts)) == 200
    assert rcpt == {"ok": 400, "later": 300, "gone": 200, "lost": 300, "half": 300}
    assert len(server.messages) == 400

    def attempts(mode: str, outcome: str) -> int:
        return counted["openviper_email_attempt_seconds_count", "default", mode, outcome]

    assert [attempts(mode, "delivered") for mode in ("inline", "deferred")] == [100, 100]
    assert [attempts(mode, "partial") for mode in ("inline", "deferred")] == [100, 100]
    tried = sum(attempts(mode, outcome) for mode in ("inline", "deferred") for outcome in ("retrying", "failed"))
    alone = rcpt["half"] - 200  # after an attempt that the others had the message of
    assert tried == rcpt["later"] + rcpt["gone"] + rcpt["lost"] + alone
    assert attempts("deferred", "retrying") == 200
    codes = {code: counted["openviper_email_replies_total", "default", code] for code in ("250", "450", "550")}
    assert codes == {"250": len(server.messages), "450": rcpt["later"] + alone, "550": rcpt["gone"]}
    accepted = sum(counted["openviper_email_recipients_total", "default", mode] for mode in ("inline", "deferred"))
    assert accepted == sum(len(message.recipients) for message in server.messages) == rcpt["ok"]
    by_age = sum(counted["openviper_email_delivery_seconds_count", "default", mode] for mode in ("inline", "deferred"))
    assert by_age == len(server.messages)
    published = Counter((event.kind, str(event.mode)) for event in events)
    for (kind, mode), count in published.items():
        assert counted["openviper_email_events_total", kind, "default", mode] == count


async def test_the_age_of_deferred_mail_counts_from_the_send(server: SmtpServer) -> None:
    """So the time that the response takes belongs to it; an inline one begins with its attempt."""
    events: list[MessageEvent] = []
    unsubscribe = subscribe(events.append)
    async with mailing(server):
        outbox = RequestOutbox()
        with collecting(outbox):
            await send_email("ok@example.com", "Hello", text="Hi")
            await send_email("ok@example.com", "Hello", text="Hi", background=False)
        ended = time.time()
        outbox.flush()
    unsubscribe()
    since = {str(event.mode): event.since for event in events if event.kind == "delivered"}
    assert since["inline"] is None
    assert since["deferred"] is not None
    assert since["deferred"] <= ended


async def test_the_gauges_say_what_is_held(server: SmtpServer) -> None:
    gate = server.hold("body")
    async with mailing(server) as mailer:
        outbox = RequestOutbox()
        with collecting(outbox):
            for _ in range(7):
                await send_email("ok@example.com", "Hello", text="Hi" * 100)
        outbox.flush()
        await server.seen("RCPT", mailer.settings.pool_size)
        await asyncio.to_thread(metrics.sample)
        assert gauge("dispatcher_messages") == 7
        assert gauge("dispatcher_bytes") == mailer.dispatcher.pending_bytes > 7 * 200
        assert gauge("pool_connections", mailer="default", state="busy") == mailer.settings.pool_size
        gate.release()
        await server.arrive(7)
        async with asyncio.timeout(PATIENCE):
            while mailer.dispatcher.pending:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(metrics.sample)
        assert gauge("dispatcher_messages") == gauge("dispatcher_bytes") == 0
        assert gauge("pool_connections", mailer="default", state="busy") == 0
        assert gauge("pool_connections", mailer="default", state="idle") == mailer.settings.pool_size
        assert gauge("pool_waiting", mailer="default") == 0


async def test_the_gauges_say_what_waits_in_the_queue_and_whether_it_answers(
    server: SmtpServer, redis_server: RedisServer
) -> None:
    with override(TASKS=redis_server.tasks()):
        async with mailing(server):
            for _ in range(3):
                await enqueue_email_job(EmailMessageData("ok@example.com", "Hello", text="Hi"))
            await asyncio.to_thread(metrics.sample)
            assert gauge("queue_up") == 1
            assert gauge("queue_messages", state="waiting") == 3
            assert gauge("queue_messages", state="failed") == 0
            assert gauge("queue_waiting", queue="emails") == 3
            assert gauge("queue_workers", queue="emails") == 0
            age = gauge("queue_oldest_seconds")
            assert age is not None
            assert age > 0
            waiting = gauge("queue_waiting_seconds")
            assert waiting is not None
            assert 0 < waiting <= age
            redis_server.kill()
            await asyncio.to_thread(metrics.sample)
            assert gauge("queue_up") == 0
        await asyncio.to_thread(close_queue)


async def test_the_application_serves_them(server: SmtpServer) -> None:
    async with mailing(server):
        await send_email("ok@example.com", "Hello", text="Hi")
        client = httpx.AsyncClient(transport=httpx.ASGITransport(metrics.metrics_app()), base_url="http://shop")
        async with client:
            page = (await client.get("/metrics")).text
    assert 'openviper_email_events_total{event="delivered",mailer="default",mode="inline"}' in page


ONE_PROCESS = """
import asyncio, sys
from openviper.conf import settings
from openviper.core.email import send_email

settings.configure(EMAIL={email!r})

async def main():
    for _ in range(3):
        await send_email("ok@example.com", "Hello", text="Hi")
    from openviper import metrics
    metrics.stop_sampling()
    await asyncio.to_thread(metrics.sample)
    from prometheus_client import generate_latest
    sys.stdout.write(generate_latest(metrics.registry()).decode())

asyncio.run(main())
"""


def test_several_processes_are_counted_together(server: SmtpServer, tmp_path: Path) -> None:
    """Counters add up over processes that have ended, gauges do not."""
    email = server.settings(default_sender="shop@example.test", listeners=["openviper.metrics.observe"])
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    code = ONE_PROCESS.format(email=email)
    pages = [
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=PATIENCE)
        for _ in range(2)
    ]
    assert not pages[1].stderr
    labels = 'event="delivered",mailer="default",mode="inline"'
    assert all(
        f"openviper_email_events_total{{{labels}}} {count}.0" in page.stdout
        for count, page in zip((3, 6), pages, strict=True)
    )
    assert 'openviper_email_pool_connections{mailer="default",state="idle"} 1.0' in pages[1].stdout


def test_without_the_extra_the_error_names_the_pip_line() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from openviper.core.email import EmailSettings\n"
        "EmailSettings(listeners=['openviper.metrics.observe']).functions('listeners')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert "MissingDependency: openviper.metrics needs 'prometheus_client'" in done.stderr
    assert "pip install 'openviper-email[metrics]'" in done.stderr
