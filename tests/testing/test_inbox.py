"""The inbox of a running server, as end-to-end tests read it."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send
from support.inbox import Inboxes
from support.patience import PATIENCE
from support.ports import lasting_port
from support.uvicorn import Uvicorn

from openviper.conf import override
from openviper.core.email import Cancel, EmailMessageData, send_email
from openviper.db import transaction
from openviper.testing import AsyncInbox, Inbox, InboxMessage

URL = "http://127.0.0.1:8000"
APP = Path(__file__).parents[1] / "core" / "email" / "inbox"
ENVIRONMENT = {"EMAIL_BACKEND": "MemoryBackend", "EMAIL_DEFAULT_SENDER": "shop@example.test"}


@asynccontextmanager
async def opened_inbox(**settings: Any) -> AsyncIterator[AsyncInbox]:
    """The inbox of an application in this process."""
    with override(DEBUG=True):
        async with Inboxes().open(**settings) as client, AsyncInbox(URL, client=client, timeout=PATIENCE) as inbox:
            yield inbox


async def read(inbox: AsyncInbox, **mail: Any) -> InboxMessage:
    """Send one message, and read it."""
    address = inbox.new_address()
    await send_email(address, **{"subject": "Hello", **mail})
    return await inbox.wait(to=address)


async def test_a_message_is_read_with_its_link_and_its_code() -> None:
    html = '<p>Your code: 493 817</p><p><a href="https://shop.example/c/1?a=1&amp;b=2">Confirm <b>it</b></a></p>'
    async with opened_inbox() as inbox:
        address = inbox.new_address("ana")
        await send_email(address, "Grüße", html=html, attachments=[("a.csv", b"1", "text/csv")], bcc="b@example.test")
        message = await inbox.wait(to=address.upper())
        bcc = await inbox.wait(to="b@example.test", subject="grÜSSe")
    assert message.link("confirm it") == message.link(re.compile("^Conf")) == message.link()
    assert message.link() == "https://shop.example/c/1?a=1&b=2"
    assert message.links() == [message.link()]
    assert message.code() == "493817"
    assert (message.subject, message.to, message.sender) == ("Grüße", (address,), '"Shop" <shop@example.test>')
    assert message.recipients == (address, "b@example.test")
    assert (message.attachments, message.state, message.mode) == (("a.csv",), "delivered", "inline")
    assert message.url == f"{URL}/_mail/{message.key}"
    assert bcc == message
    assert "493" not in repr(message)


async def test_each_call_returns_the_next_message_to_the_address() -> None:
    async with opened_inbox() as inbox:
        await send_email("ana@example.test", "old", text="")
        await inbox.skip()
        waiting = [asyncio.create_task(inbox.wait(to="ana@example.test")) for _ in range(3)]
        # Addresses of which the one is a part of the other.
        for number in range(3):
            await send_email("banana@example.test", f"other {number}", text="")
            await send_email("ana@example.test", f"new {number}", text="")
        subjects = [(await one).subject for one in waiting]
        everything = [message.subject for message in await inbox.messages(to="ana@example.test")]
        named = await inbox.messages(to="ana@example.test", subject="2")
        with pytest.raises(AssertionError):
            await inbox.wait(to="ana@example.test", timeout=0)
    assert sorted(subjects) == ["new 0", "new 1", "new 2"]
    assert everything == ["old", "new 0", "new 1", "new 2"]
    assert [message.subject for message in named] == ["new 2"]


async def test_more_tests_wait_at_once_than_the_page_lets_wait() -> None:
    async with opened_inbox() as inbox:
        addresses = [inbox.new_address() for _ in range(50)]
        waiting = [asyncio.create_task(inbox.wait(to=address)) for address in addresses]
        await asyncio.sleep(0)
        for address in reversed(addresses):
            await send_email(address, f"for {address}", text="")
        assert [(await one).subject for one in waiting] == [f"for {address}" for address in addresses]


async def test_mail_of_an_open_transaction_is_not_there_before_the_commit() -> None:
    async with opened_inbox() as inbox:
        async with transaction():
            await send_email("ana@example.test", "Order 7", text="")
            waiting = asyncio.create_task(inbox.wait(to="ana@example.test"))
            with pytest.raises(AssertionError, match=r"'Order 7' \(held\)"):
                await inbox.wait(to="ana@example.test", timeout=0.01)
            assert await inbox.messages(to="ana@example.test") == []
            assert not waiting.done()
        assert (await waiting).state == "delivered"


async def test_mail_of_a_request_is_not_there_before_its_response_has_ended() -> None:
    """A link must not be opened before the request that sent it has saved what it leads to."""
    ended = asyncio.Event()
    sent = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_email("ana@example.test", "Hello", text="")
        sent.set()
        await ended.wait()
        await Starlette()(scope, receive, send)

    with override(DEBUG=True):
        async with Inboxes().open(_with_lifespan(app)) as client, AsyncInbox(URL, client=client) as inbox:
            request = asyncio.create_task(client.get("/"))
            await sent.wait()
            assert await inbox.messages(to="ana@example.test") == []
            ended.set()
            assert (await inbox.wait(to="ana@example.test", timeout=PATIENCE)).mode == "deferred"
            await request


def _with_lifespan(app: Callable[[Scope, Receive, Send], Any]) -> Callable[[Scope, Receive, Send], Any]:
    plain = Starlette()

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope["type"] == "http" else plain)(scope, receive, send)

    return dispatch


async def test_a_missing_message_is_described_by_what_came_instead() -> None:
    def cancel(data: EmailMessageData) -> EmailMessageData | Cancel:
        return Cancel("no") if data.subject == "Cancelled" else data

    email = {"backend": "MemoryBackend", "default_sender": "a@example.test", "before_send": cancel}
    with override(EMAIL=email):
        await look_at_what_came_instead()


async def look_at_what_came_instead() -> None:
    async with opened_inbox() as inbox:
        await send_email("ana@example.test", "Welcome", text="Secret words")
        await inbox.wait(to="ana@example.test")
        await send_email("ana@example.test", "Cancelled", text="Secret words")
        for number in range(7):
            await send_email("bob@example.test", f"Number {number}", text="Secret words")
        with pytest.raises(AssertionError) as caught:
            await inbox.wait(to="ana@example.test", subject="Confirm", timeout=0)
        with pytest.raises(AssertionError, match=r"no mail to a@example.test arrived within 0 s") as others:
            await inbox.wait(to="a@example.test", timeout=0)
    assert str(caught.value).splitlines() == [
        "no mail to ana@example.test with 'Confirm' in its subject arrived within 0 s",
        "2 messages to this address:",
        "  'Cancelled' (cancelled)",
        "  'Welcome' (delivered, returned or skipped before)",
        "7 messages to other addresses:",
        *(f"  'Number {number}' to bob@example.test" for number in (6, 5, 4, 3, 2)),
        "  ... and 2 more",
    ]
    assert "this address" not in str(others.value)


async def test_an_empty_inbox_says_so() -> None:
    async with opened_inbox() as inbox:
        with pytest.raises(AssertionError, match="the inbox page has no messages"):
            await inbox.wait(to="ana@example.test", timeout=0)


@pytest.mark.parametrize("to", ["ana", "@example.com", "ana@", "a@example.com, b@example.com", "Ana <a@example.com>"])
async def test_anything_but_one_address_is_refused(to: str) -> None:
    with pytest.raises(ValueError, match=r"^to: must be one whole address"):
        await AsyncInbox(URL).wait(to=to)


async def test_an_international_domain_is_found_in_both_spellings() -> None:
    async with opened_inbox() as inbox:
        await send_email("ana@bücher.example", "Hello", text="")
        unicode = await inbox.wait(to="ana@bücher.example")
        assert await inbox.messages(to="ana@xn--bcher-kva.example") == [unicode]


@pytest.mark.parametrize(
    ("mail", "label", "found"),
    [
        (
            {"html": '<a href="https://x.example/1">Confirm</a> <a href="https://x.example/2">Do not confirm</a>'},
            "Confirm",
            1,
        ),
        ({"html": '<a href="https://x.example/1"><img alt="Confirm" src="https://x.example/a.png"></a>'}, "confirm", 1),
        ({"html": "<style>a{}</style><a href='https://x.example/1'>R&amp;D\n page</a>"}, "R&D page", 1),
        ({"html": "<area alt=Map href=https://x.example/1>"}, "Map", 1),
        ({"text": "Confirm: https://x.example/1.\nOr stop it: https://x.example/2"}, "confirm", 1),
        ({"text": "To stop it:\n\n  https://x.example/2\n\nTo confirm:\n\nhttps://x.example/1\n"}, "confirm", 1),
        ({"text": "x (https://x.example/1)", "html": '<a href="https://x.example/2">y</a>'}, "x", 1),
    ],
)
async def test_a_link_is_found_by_its_label(mail: dict[str, str], label: str, found: int) -> None:
    async with opened_inbox() as inbox:
        assert (await read(inbox, **mail)).link(label) == f"https://x.example/{found}"


async def test_a_link_that_is_missing_or_not_clear_is_described_without_content() -> None:
    html = '<a href="https://x.example/1">Confirm A</a><a href="https://x.example/2">Confirm B</a>'
    async with opened_inbox() as inbox:
        message = await read(inbox, subject="Welcome", html=html)
    with pytest.raises(AssertionError, match=r"^there is no link 'Pay' in 'Welcome' to test-.*, which has 2 links$"):
        message.link("Pay")
    for label in ("Confirm", None):
        with pytest.raises(AssertionError, match=r"^2 different links match link.* in 'Welcome' to ") as caught:
            message.link(label)
        assert "x.example" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Your code is 493817.", "493817"),
        (
            "Your verification code:\n\n    493-817\n\nOrder 20261130 of 2026-11-30, 1,299 EUR, 1042.50,\n+351 21 0000",
            "493817",
        ),
        ("On 30.11.2026 at 10:2026:\n\n4711\n\nTel. 030/123456, https://x.example/777777", "4711"),
        ("G-493817 is for you; it costs 4200 € or 4300€", "493817"),
        ("**493 817**", "493817"),
        ("PIN 0042, valid until 2027", None),
        ("Use OTP 4821 to sign in", "4821"),
    ],
)
async def test_a_code_is_found(text: str, code: str | None) -> None:
    async with opened_inbox() as inbox:
        message = await read(inbox, text=text)
    if code is not None:
        assert message.code() == code
        return
    with pytest.raises(AssertionError, match=r"^2 different codes match in 'Hello' to .*; give a pattern"):
        message.code()
    assert message.code(r"PIN (\w+)") == "0042"


async def test_a_code_may_stand_in_the_subject_or_in_a_form_of_its_own() -> None:
    async with opened_inbox() as inbox:
        message = await read(inbox, subject="4711 is your code", text="Key: ABC-9")
    assert message.code() == "4711"
    assert message.code(re.compile("[A-Z]+-[0-9]")) == "ABC-9"
    with pytest.raises(AssertionError, match=r"^there is no match of 'zzz' in '4711 is your code' to "):
        message.code("zzz")
    with pytest.raises(AssertionError, match=r"^there is no link in .*, which has 0 links$"):
        message.link()


async def test_hidden_content_is_named_as_the_reason() -> None:
    async with Inboxes().open(inbox="always") as client:
        inbox = AsyncInbox(URL, client=client, timeout=PATIENCE)
        message = await read(inbox, text="Your code: 493817", sensitive=True)
    with pytest.raises(AssertionError, match="it was sent with sensitive=True: a server without DEBUG"):
        message.code()


async def test_a_server_without_the_page_is_described() -> None:
    transport = httpx.ASGITransport(Starlette())
    async with httpx.AsyncClient(transport=transport) as client:
        with pytest.raises(
            ConnectionError, match=r"answers 404; is it the application's base URL, and is the page on\?"
        ):
            await AsyncInbox(URL, client=client).skip()
    with override(DEBUG=True):
        async with Inboxes().open() as client:
            with pytest.raises(ConnectionError, match=r"answers 403: .* 'shop.example'.*inbox_hosts"):
                await AsyncInbox("http://shop.example", client=client).skip()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "/", "http://"])
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^base_url: must be a URL such as http://127.0.0.1:8000, not "):
        Inbox(url)


def test_a_negative_timeout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^timeout: must be 0 seconds or more, not -1"):
        Inbox(URL, timeout=-1)


async def test_a_server_that_is_not_there_is_described() -> None:
    url = f"http://127.0.0.1:{lasting_port()}"
    async with AsyncInbox(url) as inbox:
        with pytest.raises(ConnectionError, match=r"does not answer: ConnectError; is the server running\?"):
            await inbox.wait(to="ana@example.test")


def test_a_server_that_is_not_there_is_described_to_sync_code() -> None:
    with (
        Inbox(f"http://127.0.0.1:{lasting_port()}") as inbox,
        pytest.raises(ConnectionError, match="does not answer: ConnectError"),
    ):
        inbox.wait(to="ana@example.test")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with Uvicorn("inbox_app:app", APP, ENVIRONMENT) as running:
        yield running.url


def test_sync_code_reads_the_mail_of_a_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Inbox(f"{server}/_mail/", timeout=PATIENCE) as inbox:
        address = inbox.new_address("ana", domain="example.test")
        assert re.fullmatch("ana-[0-9a-f]{12}@example.test", address)
        mail = {"recipients": address, "subject": "Hello", "text": "Open https://x.example/1"}
        httpx.post(f"{server}/send", json=mail, timeout=PATIENCE, trust_env=False).raise_for_status()
        assert inbox.wait(to=address).link("open") == "https://x.example/1"
        assert [message.subject for message in inbox.messages(to=address)] == ["Hello"]
        inbox.skip()
        with pytest.raises(AssertionError, match="returned or skipped before"):
            inbox.wait(to=address, timeout=0)


def test_the_fixture_asks_for_the_base_url(request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.fail.Exception, match="give --base-url, or define a fixture base_url"):
        request.getfixturevalue("inbox")


class TestWithABaseURL:
    @pytest.fixture
    def base_url(self, server: str) -> str:
        post(server, "old")
        return server

    def test_the_fixture_reads_the_mail_sent_in_the_test(self, inbox: Inbox, base_url: str) -> None:
        post(base_url, "new")
        assert inbox.wait(to="ana@example.test", timeout=PATIENCE).subject == "new"


def post(server: str, subject: str) -> None:
    mail = {"recipients": "ana@example.test", "subject": subject, "text": ""}
    httpx.post(f"{server}/send", json=mail, timeout=PATIENCE).raise_for_status()
