"""Use every public name the way applications do; checked by mypy together with the package, and never run.

``assert_type`` says what a user's editor shows. ``type: ignore`` marks a mistake that mypy has to find: when it no
longer does, it reports the comment as unused.
"""

import io
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Literal, assert_type

import httpx
from fastapi import FastAPI
from fastapi import UploadFile as FastAPIUpload
from icalendar import Calendar
from litestar import Litestar
from litestar.datastructures import UploadFile as LitestarUpload
from opentelemetry.trace import NoOpTracerProvider
from prometheus_client import CollectorRegistry
from quart import Quart
from quart.datastructures import FileStorage as QuartUpload
from sqlalchemy import MetaData, Table
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.datastructures import UploadFile as StarletteUpload
from starlette.routing import Route

import openviper
from openviper import HTMLResponse, HTTPException, JSONResponse, OpenViper, Request, Response
from openviper.conf import override, settings
from openviper.core.email import (
    Address,
    AddressLike,
    AttachmentData,
    AttachmentRefused,
    AuthenticationFailed,
    BulkProgress,
    Cancel,
    ConnectionFailed,
    DeliveryError,
    DeliveryMode,
    DeliveryReport,
    DeliveryTimeout,
    DuplicateKey,
    Email,
    EmailBackend,
    EmailError,
    EmailMessageData,
    EmailMiddleware,
    EmailSettings,
    Health,
    HealthEndpoint,
    HealthProblem,
    InvalidAddress,
    InvalidMessage,
    KeysUnavailable,
    MessageEvent,
    MessageRefused,
    PoolTimeout,
    QueueUnavailable,
    Receipt,
    RecipientsRefused,
    Refusal,
    RenderedEmail,
    SendingPaused,
    SuppressionUnavailable,
    TemplateFailed,
    UnsubscribeEndpoint,
    UnsubscribeRequest,
    Verification,
    build_message,
    get_backend,
    health,
    parse_address,
    preview,
    render_email,
    resolve_attachments,
    send_email,
    send_email_sync,
    send_many,
    submit_email,
    subscribe,
    unsubscribe_url,
    verify,
)
from openviper.core.email.message import OutgoingMessage
from openviper.core.email.queue import enqueue_email_job, worker_available
from openviper.db import (
    AsyncSessionRequired,
    CommitUnanswered,
    DatabaseMisuse,
    ForbiddenInHook,
    LifecycleHooks,
    Model,
    NoTransaction,
    OutboxMisplaced,
    OutboxNotCreated,
    SessionInUse,
    SuppressionNotCreated,
    add_suppression,
    create_suppression_table,
    create_tables,
    dispose,
    engine,
    find_suppressed,
    journal_table,
    on_commit,
    outbox_tables,
    prepare_sqlite,
    remove_suppression,
    suppression_table,
    transaction,
)
from openviper.exceptions import ImproperlyConfigured, MissingDependency, OpenViperError
from openviper.metrics import observe, registry
from openviper.otel import instrument
from openviper.tasks import TaskSettings, actor, get_broker
from openviper.testing import AsyncInbox, Inbox, InboxMessage, Mailbox, SentMessage, capture_mail

# -- sending


async def send_with_few_arguments() -> None:
    assert_type(await send_email("ana@example.com", "Hello", "Hello."), bool)
    assert_type(await submit_email("ana@example.com", "Hello", text=""), Receipt)
    await send_email(recipients="Ana <ana@example.com>", subject="Hello", html="<p>Hello</p>")
    await send_email(["ana@example.com", "bob@example.com"], template="emails/welcome.md", context={"name": "Ana"})
    await send_email(("ana@example.com",), "Hello", "Hello.", cc="bob@example.com", bcc={"eve@example.com"})
    await send_email((address for address in ("ana@example.com",)), "Hello", "Hello.")
    assert_type(send_email_sync("ana@example.com", "Hello", "Hello."), bool)


async def pieces() -> AsyncIterator[bytes]:
    yield b"Hello."


async def make() -> bytes:
    return b"Hello."


async def send_anything(
    fastapi: FastAPIUpload, starlette: StarletteUpload, litestar: LitestarUpload, quart: QuartUpload, path: Path
) -> None:
    for upload in (fastapi, starlette, litestar, quart):
        await send_email("ana@example.com", "Hello", "Hello.", attachments=upload)
    for single in (path, "invoice.pdf", b"Hello.", pieces(), make, lambda: b"Hello.", EmailMessage()):
        await send_email("ana@example.com", "Hello", "Hello.", attachments=single)
    with path.open("rb") as file:
        await send_email("ana@example.com", "Hello", "Hello.", attachments=file)
        await send_email("ana@example.com", "Hello", "Hello.", attachments=("a.pdf", file, "application/pdf"))
        mixed = [file, fastapi, ("a.pdf", litestar), {"content": quart}, make, pieces()]
        await send_email("ana@example.com", "Hello", "Hello.", attachments=mixed)
    for calendar in ("BEGIN:VCALENDAR", b"BEGIN:VCALENDAR", Calendar()):
        await send_email("ana@example.com", "Hello", "Hello.", calendar=calendar, calendar_attachment=True)


async def send_with_all_arguments(session: AsyncSession) -> None:
    sent = await send_email(
        recipients=["ana@example.com"],
        subject="Hello",
        text="Hello.",
        html="<p>Hello.</p>",
        cc=["bob@example.com"],
        bcc="archive@example.com",
        attachments=[
            "invoice.pdf",
            "https://shop.example/terms.pdf",
            Path("orders.csv"),
            ("hello.txt", b"Hello."),
            ("hello.txt", b"Hello.", "text/plain"),
            b"Hello.",
            io.BytesIO(b"Hello."),
            {"filename": "notes.txt", "content": "Hello."},
            AttachmentData("logo.png", b"...", "image/png", inline=True, content_id="logo"),
        ],
        template=None,
        context=None,
        fail_silently=True,
        background=False,
        sender="Shop <orders@shop.example>",
        reply_to=["help@shop.example"],
        headers={"List-Unsubscribe": "<https://shop.example/out>"},
        envelope_sender="bounces@shop.example",
        send_at=datetime(2030, 1, 1, tzinfo=UTC),
        delay=None,
        expires_at=datetime(2030, 1, 2, tzinfo=UTC),
    )
    if not sent:
        await submit_email("ana@example.com", "Hello", "Hello.", delay=60, background=True)
    await submit_email("ana@example.com", "Hello", "Hello.", delay=timedelta(hours=1), background=None)


async def send_wrongly() -> None:
    await send_email("ana@example.com", "Hello", txt="Hello.")  # type: ignore[call-arg]
    await send_email(subject="Hello", text="Hello.")  # type: ignore[call-arg]
    await send_email(7, "Hello", "Hello.")  # type: ignore[arg-type]
    await send_email(b"ana@example.com", "Hello", "Hello.")  # type: ignore[arg-type]
    await send_email("ana@example.com", "Hello", "Hello.", send_at=1.5)  # type: ignore[arg-type]
    await send_email("ana@example.com", "Hello", "Hello.", headers=["X-A"])  # type: ignore[arg-type]
    await submit_email("ana@example.com", "Hello", "Hello.", background="yes")  # type: ignore[arg-type]
    send_email_sync("ana@example.com", "Hello", txt="Hello.")  # type: ignore[call-arg]
    send_email("ana@example.com", "Hello", "Hello.")  # type: ignore[unused-coroutine]


async def look_at_a_receipt() -> Mapping[str, Refusal]:
    receipt = await submit_email("ana@example.com", "Hello", "Hello.")
    assert_type(receipt.message_id, str)
    assert_type(receipt.mode, DeliveryMode)
    assert_type(receipt.accepted, tuple[str, ...])
    assert_type(receipt.response, str)
    assert_type(receipt.error, EmailError | None)
    assert_type(receipt.index, int | None)
    if receipt.mode is DeliveryMode.INLINE and not receipt:
        receipt.retries  # type: ignore[attr-defined]  # noqa: B018
    if receipt.mode == "queued":
        raise ValueError
    return receipt.refused


async def messages() -> AsyncIterator[EmailMessageData]:
    for number in range(3):
        yield EmailMessageData(["ana@example.com"], f"Number {number}", text="Hello.")


async def send_several() -> None:
    async for receipt in send_many(messages(), pipeline=True):
        assert_type(receipt, Receipt)
    async for _ in send_many([{"recipients": "ana@example.com", "subject": "Hello", "text": "Hello."}]):
        pass
    async for _ in send_many(["ana@example.com"]):  # type: ignore[list-item]
        pass


def show_progress(counts: BulkProgress) -> None:
    assert_type(counts.done + counts.failed, int)
    assert_type(counts.total, int | None)


async def queue_several() -> None:
    async for receipt in send_many(messages(), background=True, progress=show_progress):
        assert_type(receipt, Receipt)
    async for _ in send_many([], progress=lambda done, failed: None):  # type: ignore[misc, arg-type]
        pass


async def correct_the_message() -> str:
    try:
        await send_email("ana@example.com", "Hello", "Hello.")
    except InvalidAddress as error:
        return error.address
    except AttachmentRefused as error:
        return error.filename + error.reason
    except TemplateFailed as error:
        return error.template
    except InvalidMessage as error:
        assert_type(error.args, tuple[Any, ...])
    return ""


async def look_at_a_failure() -> int | None:
    try:
        await send_email("ana@example.com", "Hello", "Hello.")
    except RecipientsRefused as error:
        assert_type(error.accepted, tuple[str, ...])
        refusals = list(error.refused.values())
        assert_type(refusals, list[Refusal])
        return refusals[0].code if refusals[0].temporary else None
    except (MessageRefused, AuthenticationFailed, PoolTimeout, DeliveryError) as error:
        assert_type((error.temporary, error.uncertain), tuple[bool, bool])
        return error.code
    return None


# Generic code catches the builtin.
BUILTINS: tuple[type[ValueError], type[ConnectionError], type[TimeoutError], type[ImportError], type[EmailError]] = (
    InvalidMessage,
    ConnectionFailed,
    DeliveryTimeout,
    MissingDependency,
    QueueUnavailable,
)
BASES: tuple[type[OpenViperError], type[OpenViperError]] = (EmailError, ImproperlyConfigured)
DELIVERY: type[DeliveryError] = QueueUnavailable  # type: ignore[assignment]


# -- messages, attachments, addresses


async def make_messages() -> EmailMessage:
    address = parse_address("Ana <ana@example.com>")
    assert_type(address, Address)
    assert_type(parse_address("Ana <ana@example.com>", field="recipients"), Address)
    assert_type(Address.of("Costa, Ana", "ana@example.com"), Address)
    everyone: list[AddressLike] = [address, ("Costa, Ana", "ana@example.com"), "bob@example.com"]
    pairs = [("Costa, Ana", "ana@example.com")]
    await send_email(everyone, "Hello", "Hello.", cc=pairs, bcc=address, sender=("Shop", "shop@example.com"))
    await send_email(pairs, "Hello", "Hello.", sender=address, reply_to=everyone, envelope_sender=address)
    await send_email("ana@example.com", envelope_sender=("Bounces", "a@example.com"))  # type: ignore[arg-type]
    await send_email(5, "Hello", "Hello.")  # type: ignore[arg-type]
    rendered = await render_email("Hello", "Hello.", cc=pairs, headers={"X-Tag": ["a", "b"]}, references=["<a@b.c>"])
    assert_type(rendered, RenderedEmail)
    assert_type((rendered.subject, rendered.text, rendered.content), tuple[str, str | None, bytes])
    assert_type(rendered.eml(draft=True), bytes)
    await render_email("Hello", "Hello.", date="today")  # type: ignore[arg-type]
    found = await verify(sender=("Shop", "shop@example.com"), timeout=2.0)
    assert_type(found, Verification)
    assert_type([(each.check, each.found, each.remedy) for each in found.failed], list[tuple[str, str, str]])
    await send_email("ana@example.com", "Hello", "Hello.", timeout=timedelta(seconds=2))
    EmailMessageData(pairs, "Hello", "Hello.", cc=address, sender=("Shop", "shop@example.com"), reply_to=everyone)
    assert_type(address.addr_spec, str)
    attachments = await resolve_attachments(["orders.csv", b"Hello."], max_bytes=1024, dirs=[Path("exports")])
    assert_type(attachments, list[AttachmentData])
    data = EmailMessageData(recipients="ana@example.com", subject="Hello", text="Hello.", attachments=attachments)
    return build_message(data)


# -- applications


app = OpenViper(title="Shop", debug=True)
app.add_extension(Email())
app.add_extension(Email({"backend": "ConsoleBackend", "default_sender": "shop@example.com"}))
app.add_extension("email")  # type: ignore[arg-type]
Email(backend="ConsoleBackend")  # type: ignore[arg-type]


@app.get("/orders/{number}", name="order")
async def show_order(request: Request) -> Response:
    if request.path_params["number"] == "0":
        raise HTTPException(404)
    await request.state.send_email("ana@example.com", "Hello", "Hello.")
    return JSONResponse({"version": openviper.__version__})


@app.route("/form", methods=["GET", "POST"])
def show_form(request: Request) -> HTMLResponse:
    return HTMLResponse("<p>Hello</p>")


assert_type(show_form(Request({"type": "http"})), HTMLResponse)

fastapi_app = EmailMiddleware(FastAPI())
starlette_app = EmailMiddleware(Starlette(), settings={"host": "mail.example.com"})
assert_type(Email().attach(FastAPI()), FastAPI)
Email().attach(Litestar())  # type: ignore[type-var]
litestar_app = EmailMiddleware(Litestar())
quart_app = Quart(__name__)
quart_app.asgi_app = EmailMiddleware(quart_app.asgi_app)  # type: ignore[method-assign]
inner = FastAPI()
inner.add_middleware(EmailMiddleware, settings={"host": "mail.example.com"})
inner.add_middleware(EmailMiddleware, setting={"host": "mail.example.com"})  # type: ignore[call-arg]


class Announcements:
    """An extension of one's own: a name, and any of lifespan(), wrap() and routes()."""

    name = "announcements"


app.add_extension(Announcements())


# -- settings


def configure() -> None:
    settings.configure(EMAIL={"backend": "MemoryBackend"}, DEBUG=True)
    with override(EMAIL={"host": "mail.example.com"}):
        email = EmailSettings.load({"pool_size": 2})
        assert_type(email, EmailSettings)
        assert_type((email.host, email.pool_size, email.timeout), tuple[str, int, float])


# -- backends and events


class StaffOnlyBackend(EmailBackend):
    """A backend of one's own."""

    async def send(self, message: OutgoingMessage) -> DeliveryReport:
        assert_type(message.message_id, str)
        assert_type(message.envelope.recipients, tuple[str, ...])
        content = b"".join(message.content)
        return DeliveryReport(accepted=message.envelope.recipients, response=f"{len(content)} bytes")


class UnfinishedBackend(EmailBackend):
    """A backend without send()."""


async def use_backends() -> None:
    UnfinishedBackend(EmailSettings.load())  # type: ignore[abstract]
    async with StaffOnlyBackend(EmailSettings.load()) as own:
        assert_type(own, StaffOnlyBackend)
    async with get_backend("MemoryBackend") as backend:
        assert_type(backend, EmailBackend)


def watch(event: MessageEvent) -> None:
    if event.kind == "failed":
        assert_type((event.message_id, event.detail, event.refused), tuple[str, str, tuple[str, ...]])
    if event.kind == "lost":  # type: ignore[comparison-overlap]
        raise ValueError


instrument()
instrument(tracer_provider=NoOpTracerProvider())
instrument("console")  # type: ignore[arg-type]
EMAIL_WITH_METRICS = EmailSettings(listeners=[observe])
assert_type(registry(), CollectorRegistry)

unsubscribe = subscribe(watch)
assert_type(unsubscribe, Callable[[], None])
subscribe(unsubscribe)  # type: ignore[arg-type]


# -- database


class Order(Model):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]

    async def after_insert(self) -> None:
        await send_email(self.email, "Your order", template="emails/order.md", context={"order": self})

    async def on_change(self, previous_state: Mapping[str, Any]) -> None:
        if "email" in previous_state:
            await send_email(self.email, "Your new address", "Hello.")


class Base(DeclarativeBase):
    pass


class Parcel(LifecycleHooks, Base):
    __tablename__ = "parcels"
    id: Mapped[int] = mapped_column(primary_key=True)

    async def before_delete(self) -> None:
        on_commit(lambda: None)


class Crate(LifecycleHooks, Base):
    __tablename__ = "crates"
    id: Mapped[int] = mapped_column(primary_key=True)

    def after_insert(self) -> None:  # type: ignore[override]
        pass


async def announce() -> None:
    await send_email("ana@example.com", "Hello", "Hello.")


async def add_a_footer(data: EmailMessageData) -> EmailMessageData | Cancel:
    if not data.text:
        return Cancel("nothing to say")
    data.text += "\n-- \nThe shop"
    return data


async def cancel_a_message() -> None:
    settings = EmailSettings(before_send=[add_a_footer, "shop.mail.add_a_footer"])
    assert_type(settings.functions("before_send"), tuple[Callable[..., Any], ...])
    receipt = await submit_email("a@b.c", "Hi", "Hi", tags=["welcome"], ref="7", metadata={"a": "b"}, stream="news")
    assert_type(receipt.cancelled, str | None)


async def send_a_secret(event: MessageEvent, listener: Callable[[MessageEvent], None]) -> None:
    assert_type(await send_email("a@b.c", "Reset", "https://b.c/reset", sensitive=True), bool)
    assert_type((await submit_email("a@b.c", "Reset", "https://b.c/reset", sensitive=True)).mode, DeliveryMode)
    assert_type(EmailMessageData("a@b.c", "Reset", sensitive=True).sensitive, bool)
    assert_type(event.sensitive, bool)
    assert_type(subscribe(listener, sensitive=True), Callable[[], None])


async def ask_whether_mail_works(app: Starlette) -> None:
    found = await health()
    assert_type(found, Health)
    assert_type(found.status, Literal["ok", "degraded", "failing"])
    assert_type(found.problems, tuple[HealthProblem, ...])
    assert_type(found.to_dict(details=False), dict[str, Any])
    app.routes.append(Route("/health/mail", HealthEndpoint(details=True)))


async def ask_for_notices() -> None:
    assert_type(await send_email("a@b.c", "Hi", "Hi", dsn="failure,delay"), bool)
    assert_type((await submit_email("a@b.c", "Hi", "Hi", dsn=["failure", "full"])).dsn, bool | None)
    assert_type(send_email_sync("a@b.c", "Hi", "Hi", dsn=None), bool)
    EmailMessageData("a@b.c", "Hi", dsn=("success",))
    await send_email("a@b.c", "Hi", "Hi", dsn=True)  # type: ignore[arg-type]


async def send_through_another_mailer(event: MessageEvent, messages: list[EmailMessageData]) -> None:
    settings = EmailSettings(url="smtps://u:p@mail.example", mailers={"bulk": {"host": "b.example"}}, failover=["bulk"])
    assert_type(settings.of_mailer("bulk"), EmailSettings)
    assert_type(await send_email("a@b.c", "Hi", "Hi", mailer="bulk"), bool)
    assert_type((await submit_email("a@b.c", "Hi", "Hi", mailer=None)).mode, DeliveryMode)
    async for receipt in send_many(messages, mailer="bulk"):
        assert_type(receipt, Receipt)
    assert_type(EmailMessageData("a@b.c", "Hi", mailer="bulk").mailer, str | None)
    assert_type(event.mailer, str)
    assert_type(event.via, str | None)


async def leave(request: UnsubscribeRequest) -> None:
    assert_type(request.stream, str)
    assert_type(request.address, str | None)
    assert_type(request.recipient_id, str | None)
    if request.address is not None:
        await add_suppression(request.address, "unsubscribed", request.stream)


async def send_with_a_link_to_unsubscribe(fastapi: FastAPI, starlette: Starlette, shop: OpenViper) -> None:
    await send_email("a@b.c", "June", "News", stream="news", unsubscribe=True, recipient_id=7)
    send_email_sync("a@b.c", "June", "News", stream="news", unsubscribe=True, recipient_id="reader-7")
    await render_email("June", "News", recipients="a@b.c", stream="news", unsubscribe=True)
    messages = [EmailMessageData("a@b.c", "June", "News", unsubscribe=True, recipient_id=7)]
    async for receipt in send_many(messages, stream="news", unsubscribe=True):
        assert_type(receipt, Receipt)
    assert_type(unsubscribe_url("a@b.c", "news", recipient_id=7, mailer="bulk"), str)
    unsubscribe_url(("Ann", "a@b.c"))
    unsubscribe_url(["a@b.c"], "news")  # type: ignore[arg-type]
    await send_email("a@b.c", "June", "News", unsubscribe="yes")  # type: ignore[arg-type]
    await send_email("a@b.c", "June", "News", unsubscribe=True, recipient_id=b"7")  # type: ignore[arg-type]
    fastapi.mount("/unsubscribe", UnsubscribeEndpoint())
    starlette.mount("/unsubscribe", UnsubscribeEndpoint(leave, page=lambda done: "<p>Bye</p>" if done else "<form>"))
    shop.add_extension(UnsubscribeEndpoint(lambda request: print(request.stream)))
    EmailMiddleware(UnsubscribeEndpoint().wrap(fastapi))
    UnsubscribeEndpoint(lambda: None)  # type: ignore[misc, arg-type]
    EmailSettings(site_url="https://shop.example", unsubscribe_keys=["k" * 32])


async def send_with_a_key(event: MessageEvent, mailbox: Mailbox) -> None:
    assert_type(await send_email("a@b.c", "Hi", "Hi", key="order-7"), bool)
    assert_type(send_email_sync("a@b.c", "Hi", "Hi", key="order-7"), bool)
    try:
        receipt = await submit_email("a@b.c", "Hi", "Hi", key="order-7")
    except DuplicateKey as error:
        assert_type((error.key, error.message_id), tuple[str, str])
    except KeysUnavailable as error:
        assert_type(error.temporary, bool)
    else:
        assert_type(receipt.duplicate, bool | None)
        assert_type(receipt.in_flight, bool)
    async for each in send_many([EmailMessageData("a@b.c", "Hi", key="n-1"), {"recipients": "a@b.c", "key": "n-2"}]):
        assert_type(each.duplicate, bool | None)
    await send_email("a@b.c", "Hi", "Hi", key=7)  # type: ignore[arg-type]
    assert_type(event.key, str | None)
    assert_type(mailbox.duplicates, list[tuple[SentMessage, str]])
    assert_type(mailbox.assert_sent(key="order-7").key, str | None)
    EmailSettings(key_ttl="2 days")


async def suppress_an_address(metadata: MetaData) -> None:
    assert_type(suppression_table(metadata), Table)
    await create_suppression_table()
    await add_suppression("ana@example.com", "hard bounce", stream="news")
    assert_type(await find_suppressed(["ana@example.com"], None), dict[str, str | None])
    assert_type(await remove_suppression("ana@example.com"), bool)
    try:
        receipt = await submit_email("ana@example.com", "Hello", "Hello.")
    except SuppressionUnavailable as error:
        assert_type(error.temporary, bool)
    except SendingPaused as error:
        assert_type(error.mailer, str | None)
        assert_type(error.until, float | None)
    else:
        assert_type(receipt.suppressed, tuple[str, ...])
        assert_type(receipt.outcome, Literal["delivered", "accepted", "suppressed", "cancelled", "failed", "in_flight"])


async def use_the_database(metadata: MetaData) -> None:
    opened = await engine()
    assert_type(opened, AsyncEngine)
    prepare_sqlite(opened)
    assert_type(outbox_tables(metadata), tuple[Table, ...])
    assert_type(journal_table(metadata), Table)
    await create_tables(metadata)
    try:
        async with transaction() as session, transaction(session) as inner_session:
            assert_type(inner_session, AsyncSession)
            inner_session.add(Order(email="ana@example.com"))
            on_commit(announce)
            on_commit(announce, session)
            on_commit(announce())  # type: ignore[arg-type]
            on_commit(send_email)  # type: ignore[arg-type]
    except CommitUnanswered as unanswered:
        timeout: TimeoutError = unanswered
        print(timeout)
    except (
        AsyncSessionRequired,
        ForbiddenInHook,
        NoTransaction,
        OutboxMisplaced,
        OutboxNotCreated,
        SessionInUse,
        SuppressionNotCreated,
    ) as error:
        misuse: DatabaseMisuse = error
        raise misuse from None
    finally:
        await dispose()


# -- tasks


@actor
async def send_report(address: str, rows: int = 0) -> bool:
    return await send_email(address, "Report", f"{rows} rows")


@actor(queue_name="reports", max_retries=3)
def count_rows(table: str) -> int:
    return len(table)


def use_tasks() -> None:
    send_report.send("ana@example.com", rows=3)
    send_report.send(3)  # type: ignore[arg-type]
    send_report.send_with_options(args=("ana@example.com",), delay=timedelta(minutes=1))
    assert_type(send_report("ana@example.com"), bool)
    count_rows.send("orders")
    count_rows.send(3)  # type: ignore[arg-type]
    assert_type(count_rows("orders"), int)
    get_broker().declare_queue("reports")
    assert_type(TaskSettings.from_settings(), TaskSettings)
    assert_type(worker_available(), bool)


async def queue_a_message() -> None:
    queued = await enqueue_email_job(EmailMessageData("ana@example.com", "Hello", text="Hello."))
    assert_type(queued, Receipt)


# -- tests of an application


async def test_with_the_fixture(mailbox: Mailbox) -> None:
    assert_type(mailbox.last, SentMessage)
    assert_type(mailbox.messages, list[SentMessage])
    sent = mailbox.assert_sent(to="ana@example.com", subject=lambda subject: "order" in subject, count=1, mode="queued")
    assert_type((sent.subject, sent.text, sent.html), tuple[str, str | None, str | None])
    assert_type(sent.attachments, tuple[AttachmentData, ...])
    mailbox.assert_not_sent(bcc=["eve@example.com"], headers={"X-Order": "7"})
    mailbox.assert_sent(
        to=[("Ana", "ana@example.com")], cc=Address.of("", "a@b.c"), sender=("Shop", "shop@example.com")
    )
    mailbox.assert_sent(two="ana@example.com")  # type: ignore[call-arg]
    with mailbox.fail_with("451 try later", at="rcpt", to="ana@example.com", times=1):
        await mailbox.wait(count=2, timeout=1, text_contains=["order", "7"])
    mailbox.fail_with("451 try later", at="greeting")  # type: ignore[arg-type]
    assert_type(await mailbox.commit_held(), list[SentMessage])
    assert_type(mailbox.links(), list[str])
    assert_type(mailbox[0].snapshot(), str)


@preview
async def previewed() -> dict[str, Any]:
    return {"recipients": "ana@example.com", "subject": "Hello", "text": "Hello."}


@preview(variants={"long name": {"name": "Maximiliane"}})
def previewed_in_variants(name: str = "Ana") -> dict[str, Any]:
    return {"recipients": "ana@example.com", "subject": name, "text": "Hello."}


async def call_previews() -> None:
    assert_type(await previewed(), dict[str, Any])
    assert_type(previewed_in_variants("Bob"), dict[str, Any])
    preview(variants={"a": 1})  # type: ignore[dict-item]


def read_mail_of_a_server(inbox: Inbox) -> str:
    with Inbox("http://127.0.0.1:8000", timeout=30, client=httpx.Client()) as opened:
        opened.skip()
    address = inbox.new_address("ana", domain="shop.example")
    message = inbox.wait(to=address, subject="Confirm", timeout=5.5)
    assert_type(message, InboxMessage)
    assert_type(inbox.messages(to=address, subject="Confirm"), list[InboxMessage])
    assert_type(message.attachments, tuple[str, ...])
    assert_type(message.links(), list[str])
    assert_type(message.code() + message.code(r"[A-Z]{6}") + message.code(re.compile("[0-9]")), str)
    return message.link() + message.link("Confirm") + message.link(re.compile("^Conf"))


async def read_mail_of_a_server_in_async_code() -> InboxMessage:
    async with AsyncInbox("http://127.0.0.1:8000", client=httpx.AsyncClient()) as inbox:
        await inbox.skip()
        assert_type(await inbox.messages(to=inbox.new_address()), list[InboxMessage])
        return await inbox.wait(to="ana@example.com")


def mail_of(program: Callable[[], None]) -> Sequence[SentMessage]:
    with capture_mail() as mailbox:
        program()
    return mailbox.messages


def subjects(mailbox: Mailbox) -> Iterator[str]:
    return (message.subject for message in mailbox)
