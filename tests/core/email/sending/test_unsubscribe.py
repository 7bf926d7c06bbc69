"""``unsubscribe=True``: the headers and the link of a message, made in the caller, in every mode."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.smtpd import SmtpServer

from openviper.conf import override
from openviper.core.email import (
    EmailMessageData,
    InvalidMessage,
    Receipt,
    UnsubscribeRequest,
    build_message,
    render_email,
    send_email,
    send_email_sync,
    send_many,
    submit_email,
    unsubscribe_url,
)
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.message.storage import decode, encode
from openviper.core.email.message.unsubscribe import read_token
from openviper.core.email.queue.enqueue import prepare_alone
from openviper.core.email.settings import EmailSettings
from openviper.db import transaction
from openviper.exceptions import ImproperlyConfigured
from openviper.testing import Mailbox

KEY = "k" * 32
SETTINGS: dict[str, Any] = {
    "default_sender": "shop@example.test",
    "site_url": "https://shop.example/app/",
    "unsubscribe_keys": [KEY, "o" * 32],
}
NEWS: dict[str, Any] = {"unsubscribe": True, "stream": "news"}
START = "https://shop.example/app/unsubscribe/"
DATA = EmailMessageData("ann@example.test", "June", text="News", unsubscribe=True, stream="news")
ANN = UnsubscribeRequest("news", address="ann@example.test")


def named_by(url: str) -> UnsubscribeRequest | None:
    assert url.startswith(START)
    return read_token(url.removeprefix(START), [KEY])


def named_in(headers: Any) -> UnsubscribeRequest | None:
    """What the link in the headers names, which have exactly the form of RFC 8058."""
    assert headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    value = headers["List-Unsubscribe"]
    assert value[0] + value[-1] == "<>"
    return named_by(value[1:-1])


@pytest.fixture
def configured() -> Iterator[None]:
    with override(EMAIL=SETTINGS):
        yield


async def one(**given: Any) -> Receipt:
    return await submit_email("Ann <ann@example.test>", "June", **{"text": "News", **NEWS, **given})


async def sync() -> None:
    await asyncio.to_thread(lambda: send_email_sync("ann@example.test", "June", text="News", **NEWS))


async def held() -> None:
    async with transaction():
        await one()


async def deferred() -> None:
    outbox = RequestOutbox()
    with collecting(outbox):
        await one()
    outbox.flush()


async def many_dicts() -> None:
    messages = [{"recipients": "ann@example.test", "subject": "June", "text": "News"}]
    assert [bool(each) async for each in send_many(messages, unsubscribe=True, stream="news")] == [True]


async def many_with_their_own() -> None:
    messages: list[Any] = [{"recipients": "ann@example.test", "subject": "June", "text": "News", **NEWS}, DATA]
    assert [bool(each) async for each in send_many(messages)] == [True, True]


async def many_values() -> None:
    messages = [EmailMessageData("ann@example.test", "June", text="News")]
    assert [bool(each) async for each in send_many(messages, unsubscribe=True, stream="news")] == [True]


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("path", [one, sync, held, deferred, many_dicts, many_with_their_own, many_values])
async def test_every_mode_sends_the_headers(path: Callable[[], Any], mailbox: Mailbox) -> None:
    await path()
    sent = await mailbox.wait()
    assert named_in(sent.headers) == ANN
    for message in mailbox:
        assert named_in(message.headers) == ANN


async def test_a_message_without_a_mailer_has_them_and_so_has_its_stored_form() -> None:
    """As enqueue_email_job() and the database outbox prepare it; a worker needs neither keys nor site_url."""
    message, _ = await prepare_alone(DATA, EmailSettings(**SETTINGS))
    assert named_in(dict(message.prepared.headers)) == ANN
    stored = decode(encode(message.prepared))
    assert stored.headers == message.prepared.headers
    assert stored.must == {"stream": "news"}
    assert DATA.headers == {}


async def test_the_server_receives_them_on_lines_of_their_own() -> None:
    with SmtpServer() as server:
        made = Mailer(EmailSettings(**server.settings(**SETTINGS)))
        with using_mailer(made):
            await one(recipient_id=7)
        await made.aclose()
    (message,) = server.messages
    assert named_in(message.parse()) == UnsubscribeRequest("news", recipient_id="7")
    lines = message.content.split(b"\r\n")
    assert b"List-Unsubscribe-Post: List-Unsubscribe=One-Click" in lines
    assert b"ann@example.test" not in message.parse()["List-Unsubscribe"].encode()


@pytest.mark.usefixtures("configured")
async def test_a_template_has_the_link_of_the_headers(tmp_path: Path, mailbox: Mailbox) -> None:
    (tmp_path / "news.txt").write_text("Hello {{ name }}, leave: {{ unsubscribe_url }}")
    (tmp_path / "news.html").write_text('<p>Hello {{ name }}</p><a href="{{ unsubscribe_url }}">leave</a>')
    context = {"name": "Ann"}
    with override(TEMPLATES_DIR=tmp_path):
        await one(text=None, template="news", context=context)
        rendered = await render_email("June", template="news", context=context, recipients="ann@example.test", **NEWS)
    sent = mailbox.last
    url = sent.headers["List-Unsubscribe"][1:-1]
    assert sent.text == f"Hello Ann, leave: {url}"
    assert sent.html == f'<p>Hello Ann</p><a href="{url}">leave</a>'
    assert rendered.text == sent.text
    assert rendered.headers["List-Unsubscribe"] == f"<{url}>"
    assert context == {"name": "Ann"}


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("given", [{}, {"recipient_id": 7}])
async def test_a_body_rendered_elsewhere_has_the_link_of_the_headers(given: dict[str, Any], mailbox: Mailbox) -> None:
    link = unsubscribe_url("Ann <ann@example.test>", "news", **given)
    await one(text=None, html=f'<a href="{link}">Unsubscribe</a>', **given)
    message = mailbox.assert_sent(headers={"List-Unsubscribe": f"<{link}>"})
    assert link in (message.html or "")
    assert link in (message.text or "")


def test_a_link_alone_takes_the_mailers_stream_and_names_what_is_missing() -> None:
    with override(EMAIL={**SETTINGS, "mailers": {"bulk": {"stream": "offers"}}}):
        named = named_by(unsubscribe_url("ann@example.test", mailer="bulk"))
        assert named == UnsubscribeRequest("offers", address="ann@example.test")
        with pytest.raises(InvalidMessage, match="give the stream that the link stops"):
            unsubscribe_url("ann@example.test")
    with override(EMAIL={}), pytest.raises(ImproperlyConfigured, match="site_url"):
        unsubscribe_url("ann@example.test", "news")


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("field", ["cc", "bcc"])
async def test_the_one_recipient_may_be_any(field: str, mailbox: Mailbox) -> None:
    first: dict[str, Any] = {field: "ann@example.test"}
    await send_email([], "June", text="News", **NEWS, **first)
    again: dict[str, Any] = {field: "ann@EXAMPLE.test"}
    await send_email(iter(["ann@example.test"]), "June", text="News", **NEWS, **again)
    assert [named_in(message.headers) for message in mailbox] == [ANN, ANN]


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"cc": "ben@example.test"}, r"^unsubscribe: .* has 2; use send_many\(\) with one message for each recipient$"),
        ({"bcc": ["archive@example.test"]}, r"^unsubscribe: .* has 2; use send_many\(\)"),
        ({"stream": None}, r"^unsubscribe: give the stream that the link stops"),
        ({"stream": "my news"}, r"^stream: 'my news' is not a name"),
        ({"unsubscribe": "yes"}, r"^unsubscribe: must be True or False, not 'yes'$"),
        ({"unsubscribe": False, "recipient_id": "7"}, r"^recipient_id: .* give both, or neither$"),
        ({"recipient_id": ""}, r"^recipient_id: '' is empty"),
        ({"recipient_id": True}, r"^recipient_id: must be a string or an int, not bool$"),
        ({"recipient_id": b"7"}, r"^recipient_id: must be a string or an int, not bytes$"),
        ({"recipient_id": "a\n"}, r"^recipient_id: .* has a control character$"),
        ({"recipient_id": "é" * 200}, None),
        ({"recipient_id": "\U0001f40d" * 200}, r"^unsubscribe: the link has \d+ characters, .* shorter recipient_id$"),
        ({"headers": {"list-unsubscribe": "<https://x.example>"}}, r"^headers\['list-unsubscribe'\]: is set by unsub"),
        ({"headers": {"List-Unsubscribe-Post": "x"}}, r"^headers\['List-Unsubscribe-Post'\]: is set by unsubscribe"),
        ({"headers": ["x"]}, r"^headers: must be a mapping"),
        ({"text": None, "template": "n.txt", "context": {"unsubscribe_url": ""}}, r"^context: unsubscribe_url is set"),
        ({"text": None, "template": "n.txt", "context": 7}, r"^context: must be a mapping"),
    ],
)
async def test_what_has_no_link_is_refused_before_anything_is_sent(
    given: dict[str, Any], error: str | None, mailbox: Mailbox
) -> None:
    if error is None:
        assert await one(**given)
        return
    with pytest.raises(InvalidMessage, match=error):
        await one(**given)
    data = {name: value for name, value in given.items() if name not in ("template", "context")}
    if len(data) == len(given):
        message = EmailMessageData("ann@example.test", "June", **{"text": "News", **NEWS, **given})
        with pytest.raises(InvalidMessage, match=error):
            await prepare_alone(message, EmailSettings(**SETTINGS))
    assert len(mailbox) == 0


async def test_missing_settings_are_named_together_and_nothing_is_sent(mailbox: Mailbox) -> None:
    with override(EMAIL={"default_sender": "shop@example.test"}):
        with pytest.raises(ImproperlyConfigured) as caught:
            await one()
        with pytest.raises(ImproperlyConfigured, match=r'^EMAIL\["site_url"\]: is not set'):
            async for _ in send_many([DATA]):
                pass
    site_url, keys = str(caught.value).splitlines()
    assert site_url.startswith('EMAIL["site_url"]: is not set; unsubscribe=True needs the base URL of its links')
    assert keys.startswith('EMAIL["unsubscribe_keys"]: is empty; unsubscribe=True signs its links')
    assert len(mailbox) == 0


@pytest.mark.usefixtures("configured")
async def test_a_mailers_stream_is_that_of_its_links(mailbox: Mailbox) -> None:
    with override(EMAIL={**SETTINGS, "mailers": {"bulk": {"stream": "news"}}}):
        await one(stream=None, mailer="bulk")
    assert named_in(mailbox.last.headers) == ANN


async def test_before_send_sees_the_headers_and_may_take_them_out(mailbox: Mailbox) -> None:
    seen: list[str] = []

    def leave_out(data: EmailMessageData) -> EmailMessageData:
        seen.extend(data.headers)
        data.headers = {"X-Seen": "yes"}
        data.subject = "July"
        return data

    with override(EMAIL={**SETTINGS, "before_send": leave_out}):
        await one()
    assert seen == ["List-Unsubscribe", "List-Unsubscribe-Post"]
    assert "List-Unsubscribe" not in mailbox.last.headers
    assert mailbox.last.subject == "July"


@pytest.mark.parametrize(
    "change",
    [
        {"recipients": ["ben@example.test"]},
        {"bcc": ["archive@example.test"]},
        {"stream": "orders"},
        {"recipient_id": "8"},
        {"unsubscribe": True},
    ],
)
async def test_before_send_cannot_make_the_link_another_ones(change: dict[str, Any], mailbox: Mailbox) -> None:
    """The mail of one reader with the link of another would unsubscribe the wrong one."""

    def edit(data: EmailMessageData) -> EmailMessageData:
        for name, value in change.items():
            setattr(data, name, value)
        return data

    with (
        override(EMAIL={**SETTINGS, "before_send": edit}),
        pytest.raises(InvalidMessage, match="pass them to the call"),
    ):
        await one(unsubscribe="unsubscribe" not in change)
    assert len(mailbox) == 0


async def test_a_key_does_not_count_the_token(mailbox: Mailbox) -> None:
    """A key rotated between two identical sends does not make them two messages."""
    with override(EMAIL=SETTINGS):
        first = await one(key="june-ann")
    with override(EMAIL={**SETTINGS, "unsubscribe_keys": ["n" * 32, KEY]}):
        second = await one(key="june-ann")
        third = [
            each
            async for each in send_many(
                [EmailMessageData(["Ann <ann@example.test>"], "June", "News", **NEWS, key="june-ann")]
            )
        ]
    assert (first.duplicate, second.duplicate) == (False, True)
    assert [each.duplicate for each in third] == [True]
    assert len(mailbox) == 1


def test_a_message_is_not_built_without_the_settings() -> None:
    data = EmailMessageData("ann@example.test", "June", text="News", sender="s@example.test", **NEWS)
    with pytest.raises(InvalidMessage, match=r"^unsubscribe: build_message reads no settings"):
        build_message(data)
