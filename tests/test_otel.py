"""Traces of sent mail: which spans there are, how they hang together, and what they show."""

import asyncio
import json
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import text
from support.patience import PATIENCE
from support.redis import RedisServer, redis_server
from support.smtpd import SmtpServer
from support.workers import Worker, write_project

from openviper import OpenViper, Request, Response, db, otel, tracing
from openviper.conf import override
from openviper.core.email import Email, EmailMessageData, MessageRefused, send_email, send_many
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.queue import close_queue, enqueue_email_job
from openviper.core.email.settings import EmailSettings
from openviper.db import transaction
from openviper.db.outbox import create_outbox_tables

__all__ = ["redis_server"]

SENDER = {"default_sender": "shop@example.test"}


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def provider() -> TracerProvider:
    return TracerProvider()


@pytest.fixture
def exporter(provider: TracerProvider) -> Iterator[InMemorySpanExporter]:
    """Collects the spans of this process, with tracing on."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    otel.instrument(provider)
    yield exporter
    otel.uninstrument()


@asynccontextmanager
async def mailing(server: SmtpServer, **more: object) -> AsyncIterator[Mailer]:
    settings = server.settings(**{**SENDER, **more})
    with override(EMAIL=settings):
        mailer = Mailer(EmailSettings.from_settings())
        await mailer.open()
        with using_mailer(mailer):
            yield mailer
        await mailer.aclose()


def tree(spans: list[ReadableSpan]) -> dict[str, str | None]:
    """The names of spans, each with its parent's; all of one trace."""
    assert len({span.context.trace_id for span in spans}) == 1
    names = {span.context.span_id: span.name for span in spans}
    return {span.name: None if span.parent is None else names[span.parent.span_id] for span in spans}


def shown(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span."""
    return dict(span.attributes or {})


def named(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    (span,) = [span for span in exporter.get_finished_spans() if span.name == name]
    return span


async def test_an_inline_send_has_a_span_for_the_call_and_one_for_the_server(
    server: SmtpServer, exporter: InMemorySpanExporter
) -> None:
    async with mailing(server):
        await send_email(
            "ann@example.com", "Secret subject", text="Secret text", tags=["welcome"], ref="order-7", stream="news"
        )
    assert tree([*exporter.get_finished_spans()]) == {"submit email": None, "send email": "submit email"}
    span = named(exporter, "send email")
    message_id = shown(span)["email.message_id"]
    assert span.kind is trace.SpanKind.CLIENT
    assert shown(span) == {
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "email.message_id": message_id,
        "email.mailer": "default",
        "email.via": "default",
        "email.mode": "inline",
        "email.attempt": 1,
        "email.recipients": 1,
        "email.outcome": "delivered",
        "email.smtp.reply_code": 250,
        "email.tags": ("welcome",),
        "email.ref": "order-7",
        "email.stream": "news",
    }
    assert shown(named(exporter, "submit email")) == {
        "email.message_id": message_id,
        "email.mode": "inline",
        "email.outcome": "delivered",
    }


async def test_a_refusal_is_an_error_by_its_code_and_shows_no_address(
    server: SmtpServer, exporter: InMemorySpanExporter
) -> None:
    server.fault("MAIL", "550 5.7.1 <shop@example.test> may not write to ann@example.com")
    async with mailing(server):
        with pytest.raises(MessageRefused):
            await send_email("ann@example.com", "Hello", text="Hi")
    span = named(exporter, "send email")
    assert span.status.status_code is trace.StatusCode.ERROR
    assert shown(span)["error.type"] == "550"
    assert shown(span)["email.outcome"] == "failed"
    everything = "".join(each.to_json() for each in exporter.get_finished_spans())
    assert "ann@" not in everything
    assert "shop@" not in everything


async def test_a_partly_accepted_message_counts_those_refused(
    server: SmtpServer, exporter: InMemorySpanExporter
) -> None:
    server.refuse("gone@example.com", 550)
    async with mailing(server):
        await send_email(["ann@example.com", "gone@example.com"], "Hello", text="Hi")
    span = named(exporter, "send email")
    assert span.status.status_code is trace.StatusCode.UNSET
    assert (shown(span)["email.outcome"], shown(span)["email.refused"]) == ("partial", 1)


async def test_an_unreachable_server_is_an_error_by_the_name_of_its_class(
    server: SmtpServer, exporter: InMemorySpanExporter
) -> None:
    server.stop()
    async with mailing(server, fail_silently=True):
        await send_email("ann@example.com", "Hello", text="Hi")
    assert shown(named(exporter, "send email"))["error.type"] == "ConnectionFailed"
    assert shown(named(exporter, "submit email"))["error.type"] == "ConnectionFailed"


async def test_a_failover_names_the_server_that_took_the_message(
    server: SmtpServer, exporter: InMemorySpanExporter
) -> None:
    with SmtpServer() as down:
        pass
    backup = {"host": server.host, "port": server.port}
    async with mailing(down, mailers={"backup": backup}, failover=["backup"]):
        await send_email("ann@example.com", "Hello", text="Hi")
    attributes = shown(named(exporter, "send email"))
    assert (attributes["email.mailer"], attributes["email.via"]) == ("default", "backup")
    assert attributes["server.port"] == server.port


async def test_deferred_mail_belongs_to_the_request_that_has_ended(
    server: SmtpServer, provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    """Two attempts, each below the call that sent the message, although the request's span has ended before both."""
    server.fault("RCPT", 450, nth=1)
    app = OpenViper()

    @app.get("/")
    async def view(request: Request) -> Response:
        with provider.get_tracer("web").start_as_current_span("GET /"):
            await send_email("ann@example.com", "Hello", text="Hi")
        return Response("ok")

    with override(EMAIL=server.settings(**SENDER)):
        email = Email()
        app.add_extension(email)
        async with app.router.lifespan_context(app):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
                assert (await client.get("/")).status_code == 200
            # The lifespan's end delivers at once what waits for its retry.
            await server.seen("RCPT")
    spans = [*exporter.get_finished_spans()]
    assert [span.name for span in spans] == ["submit email", "GET /", "send email", "send email"]
    assert tree(spans) == {"GET /": None, "submit email": "GET /", "send email": "submit email"}
    attempts = [shown(span) for span in spans if span.name == "send email"]
    assert [attempt["email.attempt"] for attempt in attempts] == [1, 2]
    assert [attempt["email.mode"] for attempt in attempts] == ["deferred", "deferred"]
    assert [attempt["email.smtp.reply_code"] for attempt in attempts] == [450, 250]
    request = next(span for span in spans if span.name == "GET /")
    assert all((span.start_time or 0) > (request.end_time or 0) for span in spans if span.name == "send email")


IN_THE_WORKER = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from openviper.otel import instrument

exporter = ConsoleSpanExporter(out=open({spans!r}, "a"), formatter=lambda span: span.to_json(indent=None) + "\\n")
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=600_000))  # at the end alone
instrument(provider)
"""


async def test_a_checkout_is_one_trace_over_transaction_queue_worker_and_two_attempts(
    tmp_path: Path,
    redis_server: RedisServer,
    server: SmtpServer,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
) -> None:
    server.fault("RCPT", 450, nth=1)
    email = server.settings(**SENDER)
    spans_file = tmp_path / "spans.jsonl"
    folder = write_project(tmp_path / "project", tasks=redis_server.tasks(), email=email)
    with (folder / "settings.py").open("a") as settings:
        settings.write(IN_THE_WORKER.format(spans=str(spans_file)))
    app = OpenViper()

    @app.post("/checkout")
    async def checkout(request: Request) -> Response:
        tracer = provider.get_tracer("web")
        with tracer.start_as_current_span("POST /checkout", kind=trace.SpanKind.SERVER):
            async with transaction() as session:
                await session.execute(text("SELECT 1"))
                await send_email("ann@example.com", "Hello", text="Hi")
        return Response("ok")

    url = f"sqlite+aiosqlite:///{tmp_path / 'shop.sqlite3'}"
    with override(EMAIL=email, TASKS=redis_server.tasks(), DATABASE_URL=url):
        app.add_extension(Email())
        try:
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop")
            async with app.router.lifespan_context(app), client:
                assert (await client.post("/checkout")).status_code == 200
        finally:
            await db.dispose()
            await asyncio.to_thread(close_queue)
    worker = Worker(folder)
    await asyncio.to_thread(worker.start)
    (message,) = await server.arrive(1)
    assert await asyncio.to_thread(worker.terminate) == 0
    here = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
    there = [json.loads(line) for line in spans_file.read_text().splitlines()]
    assert [span["name"] for span in here] == ["submit email", "hold email", "send emails", "POST /checkout"]
    assert [span["name"] for span in there] == ["send email", "process emails"] * 2
    spans = {span["context"]["span_id"]: span for span in (*here, *there)}
    assert len({span["context"]["trace_id"] for span in spans.values()}) == 1
    parents = {(span["name"], span["parent_id"] and spans[span["parent_id"]]["name"]) for span in spans.values()}
    assert parents == {
        ("POST /checkout", None),
        ("submit email", "POST /checkout"),
        ("hold email", "submit email"),
        ("send emails", "submit email"),
        ("process emails", "send emails"),
        ("send email", "process emails"),
    }
    producer, (first, second) = here[2], there[1::2]
    for hop, kind, name in ((producer, "PRODUCER", "send"), (first, "CONSUMER", "process")):
        assert hop["kind"] == f"SpanKind.{kind}"
        assert (
            hop["attributes"].items()
            >= {
                "messaging.system": "redis",
                "messaging.destination.name": "emails",
                "messaging.operation.name": name,
                "messaging.operation.type": name,
                "messaging.message.id": message.parse()["Message-ID"],
            }.items()
        )
    assert [span["attributes"]["email.outcome"] for span in (first, second)] == ["retrying", "done"]
    assert [span["attributes"]["email.attempt"] for span in there] == [1, 1, 2, 2]
    assert [span["attributes"]["email.smtp.reply_code"] for span in there[::2]] == [450, 250]
    assert "ann@" not in json.dumps([here, there])


async def test_a_rollback_ends_the_wait_as_discarded(
    tmp_path: Path, server: SmtpServer, exporter: InMemorySpanExporter
) -> None:
    with override(DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path / 'shop.sqlite3'}"):
        async with mailing(server):
            with pytest.raises(LookupError):  # noqa: PT012 - what raises is a whole transaction block
                async with transaction() as session:
                    await session.execute(text("SELECT 1"))
                    await send_email("ann@example.com", "Hello", text="Hi")
                    raise LookupError
        await db.dispose()
    assert [span.name for span in exporter.get_finished_spans()] == ["submit email", "hold email"]
    assert shown(named(exporter, "hold email"))["email.outcome"] == "discarded"


async def test_the_relay_attempts_below_the_request_and_links_a_batch_for_the_broker(
    tmp_path: Path,
    redis_server: RedisServer,
    server: SmtpServer,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
) -> None:
    """Without a broker the relay delivers; with one, a span that serves two messages has a link to each one's trace."""
    tracer = provider.get_tracer("web")
    message = EmailMessageData("ann@example.com", "Hello", text="Hi")
    with override(DATABASE_URL=f"sqlite+aiosqlite:///{tmp_path / 'shop.sqlite3'}"):
        await create_outbox_tables(await db.engine())
        async with mailing(server, outbox="database") as mailer:
            with tracer.start_as_current_span("request"):
                assert [receipt async for receipt in send_many([message], background=True)]
            await mailer.start_relay()
            await server.arrive(1)
        spans = [*exporter.get_finished_spans()]
        parents = {"request": None, "process email_outbox": "request", "send email": "process email_outbox"}
        assert tree(spans) == parents
        exporter.clear()
        async with mailing(server, outbox="database"):
            for number in range(2):
                with tracer.start_as_current_span(f"request {number}"):
                    assert [receipt async for receipt in send_many([message], background=True)]
        requests = {span.context.trace_id for span in exporter.get_finished_spans()}
        with override(TASKS=redis_server.tasks()):
            async with mailing(server, outbox="database") as mailer:
                await mailer.start_relay()
                async with asyncio.timeout(PATIENCE):
                    while not any(span.name == "send emails" for span in exporter.get_finished_spans()):
                        await asyncio.sleep(0.01)
            await asyncio.to_thread(close_queue)
        await db.dispose()
    batch = named(exporter, "send emails")
    assert shown(batch)["messaging.batch.message_count"] == 2
    assert {link.context.trace_id for link in batch.links} == requests
    assert batch.context.trace_id not in requests


async def test_every_way_to_queue_has_a_span_of_the_hop(
    redis_server: RedisServer, server: SmtpServer, exporter: InMemorySpanExporter
) -> None:
    message = EmailMessageData("ann@example.com", "Hello", text="Hi")
    with override(TASKS=redis_server.tasks()):
        async with mailing(server):
            await enqueue_email_job(message)
            assert [receipt async for receipt in send_many([message] * 3, background=True)]
        await asyncio.to_thread(close_queue)
    counts = [shown(span).get("messaging.batch.message_count", 1) for span in exporter.get_finished_spans()]
    assert {span.name for span in exporter.get_finished_spans()} == {"send emails"}
    assert sum(counts) == 4


def test_the_entry_point_switches_tracing_on_and_off(provider: TracerProvider) -> None:
    """As ``opentelemetry-instrument`` does with the class that the distribution names."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    target = project["entry-points"]["opentelemetry_instrumentor"]["openviper-email"]
    instrumentor = EntryPoint("openviper-email", target, "opentelemetry_instrumentor").load()()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    assert tracing.tracer is not None
    instrumentor.uninstrument()
    assert tracing.tracer is None


async def test_a_payload_without_tracing_stays_as_it_is(server: SmtpServer, exporter: InMemorySpanExporter) -> None:
    """Without an SDK no span is recorded, so nothing travels with the message either."""
    otel.instrument(trace.NoOpTracerProvider())
    async with mailing(server):
        await send_email("ann@example.com", "Hello", text="Hi")
    assert not exporter.get_finished_spans()


def test_without_the_extra_the_error_names_the_pip_line() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None\nimport openviper.otel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert "MissingDependency: openviper.otel needs 'opentelemetry'" in done.stderr
    assert "pip install 'openviper-email[otel]'" in done.stderr


def test_sending_imports_no_opentelemetry() -> None:
    code = "import sys, openviper.core.email\nsys.exit(any('telemetry' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE).returncode == 0
