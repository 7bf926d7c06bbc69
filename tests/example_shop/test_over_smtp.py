"""The shop under a real uvicorn on SQLite, its mail over STARTTLS and AUTH to an aiosmtpd that a test can hold."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from threading import Condition, Event
from typing import Any

import httpx
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from support.certificates import ca_file, server_context
from support.patience import PATIENCE
from support.shopping import Visitor
from support.uvicorn import Uvicorn

PROJECT = Path(__file__).parents[2] / "example_shop"


@dataclass
class Mailboxes:
    """What arrived. The server greets nobody while ``open`` is not set."""

    messages: list[EmailMessage] = field(default_factory=list)
    envelopes: list[Envelope] = field(default_factory=list)
    open: Event = field(default_factory=Event)
    arrived: Condition = field(default_factory=Condition)
    port: int = 0

    async def handle_DATA(  # noqa: N802 - the name that aiosmtpd calls
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        message = message_from_bytes(envelope.original_content or b"", policy=policy.default)
        assert isinstance(message, EmailMessage)
        with self.arrived:
            self.messages.append(message)
            self.envelopes.append(envelope)
            self.arrived.notify_all()
        return "250 taken"

    def wait_for(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.messages) >= count, PATIENCE), "the mail did not arrive"


class LateServer(SMTP):
    """Waits before its greeting, which a client must not confuse with its own slowness."""

    async def _handle_client(self) -> None:
        mailboxes: Any = self.event_handler
        await asyncio.to_thread(mailboxes.open.wait, PATIENCE)
        await super()._handle_client()


class LateController(Controller):
    def factory(self) -> SMTP:
        return LateServer(self.handler, **self.SMTP_kwargs)

    def _trigger_server(self) -> None:
        """Learn the port that was chosen; the base class would connect to port 0."""
        assert isinstance(self.server, asyncio.Server)
        self.handler.port = self.server.sockets[0].getsockname()[1]
        self.port = self.handler.port
        super()._trigger_server()


def check_login(server: SMTP, session: Session, envelope: Envelope, mechanism: str, login: LoginPassword) -> AuthResult:
    return AuthResult(success=(login.login, login.password) == (b"shop", b"s3cret"))


@pytest.fixture
def mailboxes() -> Iterator[Mailboxes]:
    mailboxes = Mailboxes()
    controller = LateController(
        mailboxes,
        hostname="127.0.0.1",
        port=0,
        tls_context=server_context("trusted"),
        require_starttls=True,
        authenticator=check_login,
        auth_required=True,
        ready_timeout=PATIENCE,
    )
    mailboxes.open.set()  # the controller connects once to see that it serves
    controller.start()
    yield mailboxes
    controller.stop()


@pytest.fixture
def shop(mailboxes: Mailboxes, tmp_path: Path) -> Iterator[Uvicorn]:
    env = {
        "OPENVIPER_SETTINGS_MODULE": "shop.settings",
        "DATABASE_URL": f"sqlite:///{tmp_path / 'shop.sqlite3'}",
        "EMAIL_BACKEND": "SMTPBackend",
        "EMAIL_HOST": "localhost",
        "EMAIL_PORT": str(mailboxes.port),
        "EMAIL_USE_TLS": "1",
        "EMAIL_USERNAME": "shop",
        "EMAIL_PASSWORD": "s3cret",
        "EMAIL_TLS_CA_FILE": str(ca_file()),
        "EMAIL_TIMEOUT": str(2 * PATIENCE),
    }
    with Uvicorn("shop.app:app", PROJECT, env) as server:
        yield server


async def order(shop: Uvicorn) -> httpx.Response:
    async with httpx.AsyncClient(base_url=shop.url, timeout=PATIENCE) as client:
        visitor = Visitor(client)
        shelf = (await visitor.get("/")).text
        await visitor.add(shelf.split("<h2>")[1].split("</h2>")[0])
        return await visitor.check_out()


async def test_the_answer_to_a_checkout_comes_before_the_mail_server_has_greeted(
    shop: Uvicorn, mailboxes: Mailboxes
) -> None:
    mailboxes.open.clear()
    answer = await order(shop)
    assert answer.status_code == 303
    assert mailboxes.messages == []
    mailboxes.open.set()
    await asyncio.to_thread(mailboxes.wait_for, 1)
    (message,), (envelope,) = mailboxes.messages, mailboxes.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("orders@shop.example", ["ana@example.com"])
    assert message["Subject"] == "Your order 1001 at Viper Supplies"
    assert message["From"] == "Viper Supplies <orders@shop.example>"
    assert message["To"] == "ana@example.com"
    assert message.defects == []
    text, html = message.get_body(("plain",)), message.get_body(("html",))
    assert text is not None
    assert html is not None
    assert answer.headers["location"] in text.get_content()
    assert "Ana Costa" in html.get_content()


async def test_a_checkout_that_fails_after_the_insert_delivers_nothing(
    shop: Uvicorn, mailboxes: Mailboxes, tmp_path: Path
) -> None:
    """The order is inserted and its hook has sent; then the database refuses a line of it. The next order arrives."""
    with closing(sqlite3.connect(tmp_path / "shop.sqlite3")) as database:
        database.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON order_lines BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
        )
    assert (await order(shop)).status_code == 500
    with closing(sqlite3.connect(tmp_path / "shop.sqlite3")) as database:
        database.execute("DROP TRIGGER refuse")
        assert database.execute("SELECT count(*) FROM orders").fetchone() == (0,)
    assert (await order(shop)).status_code == 303
    await asyncio.to_thread(mailboxes.wait_for, 1)
    await asyncio.to_thread(shop.stop)
    assert len(mailboxes.messages) == 1
    assert any("sqlite3.IntegrityError" in line and "refused by the test" in line for line in shop.log)
