"""Messages are signed with the keys of ``EMAIL["dkim"]``, and the signatures hold at those who verify them."""

import asyncio
import re
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from support.dkim_keys import ED25519, OTHER_RSA, RSA, is_valid
from support.lifespan import Lifespan
from support.messages import outgoing
from support.redis import RedisServer, redis_server
from support.smtpd import SmtpServer
from support.workers import Worker, write_project

from openviper import OpenViper
from openviper.conf import override
from openviper.core.email import Email, EmailMessageData, send_email, send_many, submit_email
from openviper.core.email.attachments import AttachmentData
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.message import check_message
from openviper.core.email.message.dkim import SIGNED_HEADERS, DkimSigner, load_key
from openviper.core.email.message.serialiser import serialise_message
from openviper.core.email.queue import close_queue
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured

__all__ = ["redis_server"]

DOMAIN = "shop.example"
BOTH = {"ed": ED25519, "rsa": RSA}


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as started:
        yield started


def mailer(server: SmtpServer, dkim: object, **settings: Any) -> Mailer:
    given = {"default_sender": f"orders@{DOMAIN}", "dkim": dkim, "retries": 0, **settings}
    return Mailer(EmailSettings.load(server.settings(**given)))


@asynccontextmanager
async def sending(server: SmtpServer, dkim: object, **settings: Any) -> AsyncIterator[None]:
    """Send with a mailer of these settings inside the block."""
    own = mailer(server, dkim, **settings)
    try:
        with using_mailer(own):
            yield
    finally:
        await own.aclose()


async def sent(server: SmtpServer, dkim: object, sender: str | None = None, **settings: Any) -> bytes:
    """Send one message, and return what the server got."""
    async with sending(server, dkim, **settings):
        await send_email(
            ["Ann Å <ann@example.com>", "bob@example.com"],
            "Grüße " * 20,
            html="<p>Thank you!</p>",
            attachments=[("a.bin", bytes(range(256)) * 500)],
            headers={"List-Unsubscribe": "<https://shop.example/leave>"},
            sender=sender,
        )
    return server.wait_for(1)[0].content


async def test_a_message_has_a_valid_signature_of_each_key_rsa_first(server: SmtpServer) -> None:
    content = await sent(server, {DOMAIN: BOTH})
    assert re.findall(rb"a=([\w-]+);", content[:2000]) == [b"rsa-sha256", b"ed25519-sha256"]
    assert is_valid(content, DOMAIN, BOTH) == [True, True]


@pytest.mark.parametrize(
    ("original", "changed"),
    [
        (b"Subject: ", b"Subject: Re: "),
        (b"bob@example.com", b"eve@example.com"),
        (b"MIME-Version: 1.0\r\n", b"MIME-Version: 1.0\r\nSubject: another one\r\n"),
        (b"MIME-Version: 1.0\r\n", b"MIME-Version: 1.0\r\nReply-To: eve@example.com\r\n"),
        (b"leave>", b"stay>"),
        (b"<p>Thank you", b"<p>Tnank you"),
    ],
)
async def test_no_signature_holds_after_a_change(server: SmtpServer, original: bytes, changed: bytes) -> None:
    content = await sent(server, {DOMAIN: BOTH})
    assert original in content
    tampered = content.replace(original, changed, 1)
    assert is_valid(tampered, DOMAIN, BOTH) == [False, False]


async def test_each_signed_header_is_named_once_more_than_it_occurs(server: SmtpServer) -> None:
    content = await sent(server, {DOMAIN: {"s": RSA}}, dkim_unsigned=["Date", "message-id"])
    named = re.sub(rb"\s", b"", content[content.index(b"h=") + 2 : content.index(b"bh=")]).rstrip(b";").split(b":")
    header = content[: content.index(b"\r\n\r\n")].lower().split(b"\r\n")
    for name in (each.encode() for each in SIGNED_HEADERS):
        occurs = sum(line.startswith(name + b":") for line in header)
        expected = 0 if name in (b"date", b"message-id") else occurs + 1
        assert named.count(name) == expected, name
    assert is_valid(content, DOMAIN, {"s": RSA}) == [True]


async def test_neither_header_of_unsubscribe_can_be_changed_or_added(server: SmtpServer) -> None:
    """Mailbox providers show the button only if a signature covers both (RFC 8058 section 4)."""
    keys = {"site_url": "https://shop.example", "unsubscribe_keys": ["k" * 32]}
    async with sending(server, {DOMAIN: BOTH}, **keys):
        await send_email("ann@example.com", "June", text="News", unsubscribe=True, stream="news")
    content = server.wait_for(1)[0].content
    assert is_valid(content, DOMAIN, BOTH) == [True, True]
    for original, changed in (
        (b"/unsubscribe/", b"/elsewhere/"),
        (b"List-Unsubscribe=One-Click", b"List-Unsubscribe=None"),
        (b"List-Unsubscribe-Post: ", b"List-Unsubscribe: <https://eve.example>\r\nList-Unsubscribe-Post: "),
        (b"List-Unsubscribe:", b"List-Unsubscribe-Post: x\r\nList-Unsubscribe:"),
    ):
        tampered = content.replace(original, changed, 1)
        assert tampered != content
        assert is_valid(tampered, DOMAIN, BOTH) == [False, False], original


async def test_a_key_may_be_a_path_a_variable_or_a_function(
    server: SmtpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.pem").write_text(RSA)
    monkeypatch.setenv("DKIM_KEY", ED25519.replace("\n", "\\n"))

    async def fetch() -> str:
        return str(tmp_path / "key.pem")

    for dkim in ({"s": tmp_path / "key.pem", "e": "env:DKIM_KEY"}, {"s": str(tmp_path / "key.pem")}, {"s": fetch}):
        content = await sent(server, {DOMAIN: dkim})
        assert all(is_valid(content, DOMAIN, {"s": RSA, "e": ED25519}))
        server.messages.clear()


async def test_the_domain_of_the_sender_decides(server: SmtpServer) -> None:
    keys = {DOMAIN: {"s": RSA}, "bücher.example": {"b": OTHER_RSA}}
    below = await sent(server, keys, sender=f"a@mail.{DOMAIN}")
    assert is_valid(below, DOMAIN, {"s": RSA}) == [True]
    server.messages.clear()
    other = await sent(server, keys, sender="a@bücher.example")
    assert b"d=xn--bcher-kva.example; s=b;" in other
    server.messages.clear()
    assert b"DKIM-Signature" not in await sent(server, keys, sender="a@shop.test")


async def test_a_mailer_may_leave_its_mail_unsigned(server: SmtpServer) -> None:
    async with sending(server, {DOMAIN: {"s": RSA}}, mailers={"bulk": {"dkim": False}}):
        data = {"recipients": "ann@example.com", "subject": "June", "text": "Hello"}
        async for receipt in send_many([data, {**data, "mailer": "bulk"}]):
            assert receipt
    signed = sorted(b"DKIM-Signature" in message.content for message in server.wait_for(2))
    assert signed == [False, True]


async def test_data_is_signed_as_well(server: SmtpServer) -> None:
    async with sending(server, {DOMAIN: {"s": RSA}}):
        data = EmailMessageData(["ann@example.com"], "June", text="Hello\n\n\n")
        assert [bool(receipt) async for receipt in send_many([data], pipeline=True)] == [True]
    assert is_valid(server.wait_for(1)[0].content, DOMAIN, {"s": RSA}) == [True]


@pytest.mark.parametrize(
    ("dkim", "text"),
    [
        ({DOMAIN: {"s": "/no/such/key.pem"}}, "['/no/such/key.pem']"),
        ({DOMAIN: {"s": "env:NO_SUCH_KEY"}}, "there is no environment variable"),
        ({DOMAIN: {"s": RSA, "t": OTHER_RSA}}, "is the second RSA key"),
        ({DOMAIN: {"s": "-----BEGIN NONSENSE-----"}}, "is not a private key in PEM"),
        ({DOMAIN: {"s": lambda: 7}}, "is a int"),
    ],
)
async def test_a_wrong_key_is_named_at_the_start_without_its_text(
    server: SmtpServer, dkim: dict[str, dict[str, Any]], text: str
) -> None:
    own = mailer(server, dkim)
    with pytest.raises(ImproperlyConfigured) as caught:
        await own.open()
    await own.aclose()
    assert str(caught.value).startswith(f'EMAIL["dkim"]["{DOMAIN}"]')
    assert text.strip("[]'") in str(caught.value)
    assert "NONSENSE" not in str(caught.value)


@pytest.mark.parametrize(
    "dkim",
    ["shop.example", {DOMAIN: RSA}, {DOMAIN: {}}, {DOMAIN: {"a b": RSA}}, {"a b": {"s": RSA}}, {DOMAIN: {"s": 7}}],
)
def test_a_wrong_form_is_refused_with_the_right_one(dkim: object) -> None:
    with pytest.raises(ImproperlyConfigured, match="a dict of domains to dicts of selectors to keys") as caught:
        EmailSettings(dkim=dkim)
    assert "PRIVATE" not in str(caught.value)


def test_a_mailer_cannot_have_keys_of_its_own() -> None:
    with pytest.raises(ImproperlyConfigured, match=r'\["bulk"\]\["dkim"\]: keys are for all mailers'):
        EmailSettings.load({"mailers": {"bulk": {"dkim": {DOMAIN: {"s": RSA}}}}})


def test_no_key_is_shown() -> None:
    assert "PRIVATE" not in repr(EmailSettings(dkim={DOMAIN: BOTH}))


async def test_an_application_does_not_start_without_its_keys() -> None:
    email = {"default_sender": f"orders@{DOMAIN}", "dkim": {DOMAIN: {"s": "/no/such/key.pem"}}}
    app = OpenViper()
    with override(EMAIL=email):
        app.add_extension(Email())
        with pytest.raises(ImproperlyConfigured, match=re.escape(f'EMAIL["dkim"]["{DOMAIN}"]["s"]: ')):
            async with Lifespan(app):
                pass


async def test_deferred_mail_is_signed(server: SmtpServer) -> None:
    app = OpenViper()
    with override(EMAIL=server.settings(default_sender=f"orders@{DOMAIN}", dkim={DOMAIN: BOTH})):
        app.add_extension(Email())

        @app.get("/order")
        async def order(request: Request) -> Response:
            receipt = await submit_email("ann@example.com", "June", "Hello")
            return JSONResponse({"mode": receipt.mode})

        async with Lifespan(app) as started:
            transport = httpx.ASGITransport(started.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                answer = await client.get("/order")
    assert answer.json() == {"mode": "deferred"}
    assert is_valid(server.wait_for(1)[0].content, DOMAIN, BOTH) == [True, True]


async def test_a_worker_signs_queued_mail_which_the_queue_has_unsigned(
    server: SmtpServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    email = server.settings(default_sender=f"orders@{DOMAIN}", dkim={DOMAIN: BOTH})
    folder = write_project(tmp_path / "shop", tasks=redis_server.tasks(), email=email)
    with override(TASKS=redis_server.tasks(), EMAIL=email):
        receipt = await submit_email("ann@example.com", "June", "Hello")
        await asyncio.to_thread(close_queue)
    assert receipt.mode == "queued"
    client: Any = redis_server.client()
    hashes = [key for key in client.scan_iter() if client.type(key) == b"hash"]
    stored = b"".join(value for key in hashes for value in client.hvals(key))
    assert receipt.message_id.strip("<>").encode() in stored
    assert b"DKIM-Signature" not in stored
    with Worker(folder):
        content = (await asyncio.to_thread(server.wait_for, 1))[0].content
    assert is_valid(content, DOMAIN, BOTH) == [True, True]


async def test_a_large_message_is_signed_as_a_stream() -> None:
    """25 MB of an attachment are encoded chunk by chunk for the hash, and never in memory as a whole."""
    attached = AttachmentData("large.bin", bytes(25_000_000))
    data = EmailMessageData(["ann@example.com"], "June", text="Hello", attachments=[attached])
    prepared = check_message(data, default_sender=f"orders@{DOMAIN}")
    message = await serialise_message(prepared, max_message_bytes=50_000_000)
    signer = DkimSigner(DOMAIN, [load_key("s", RSA.encode())])
    signer.sign_now(outgoing())  # its imports are no part of it
    tracemalloc.start()
    try:
        signed = signer.sign_now(message)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert signed.size > 33_000_000
    assert peak < 2_000_000
    assert is_valid(b"".join(signed.content), DOMAIN, {"s": RSA}) == [True]
