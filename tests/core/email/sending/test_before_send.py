"""``before_send``: edits or cancels each message once, before it is checked, on every path."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.brokers import redis_server
from support.redis import RedisServer
from support.smtpd import SmtpServer
from support.workers import Worker, write_project

from openviper.conf import override
from openviper.core.email import (
    Cancel,
    DeliveryMode,
    EmailMessageData,
    InvalidMessage,
    MessageEvent,
    Receipt,
    render_email,
    send_email,
    send_email_sync,
    send_many,
    submit_email,
)
from openviper.core.email.delivery import Mailer, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.queue import close_queue, enqueue_email_job
from openviper.core.email.settings import EmailSettings
from openviper.db import transaction
from openviper.exceptions import ImproperlyConfigured
from openviper.testing import Mailbox

__all__ = ["redis_server"]

SENDER = {"default_sender": "shop@example.test"}


class Footer:
    """Adds a footer to both bodies, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, data: EmailMessageData) -> EmailMessageData:
        self.calls += 1
        if data.html is not None:
            data.html += "<p>The shop</p>"
        elif data.text is not None:
            data.text += "\nThe shop"
        return data


async def cancel(data: EmailMessageData) -> EmailMessageData | Cancel:
    return Cancel("on holiday") if "holiday" in data.subject else data


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as started:
        yield started


async def one(**given: Any) -> Receipt:
    return await submit_email("a@example.test", "Hello", **{"text": "Hi", **given})


async def inline(hook: object) -> Receipt:
    return await one()


async def sync(hook: object) -> None:
    await asyncio.to_thread(lambda: send_email_sync("a@example.test", "Hello", text="Hi"))


async def held(hook: object) -> Receipt:
    async with transaction():
        return await one()


async def deferred(hook: object) -> Receipt:
    outbox = RequestOutbox()
    with collecting(outbox):
        receipt = await one()
    outbox.flush()
    return receipt


async def many(hook: object) -> list[Receipt]:
    messages: list[EmailMessageData | dict[str, Any]] = [
        EmailMessageData("a@example.test", "Hello", text="Hi"),
        {"recipients": "a@example.test", "subject": "Hello", "text": "Hi"},
    ]
    return [receipt async for receipt in send_many(messages)]


@pytest.mark.parametrize("path", [inline, sync, held, deferred, many])
async def test_each_send_calls_it_once(path: Callable[[object], Any], mailbox: Mailbox) -> None:
    hook = Footer()
    with override(EMAIL={**SENDER, "before_send": hook}):
        await path(hook)
        sent = [await mailbox.wait(text_contains="The shop")]
    assert hook.calls == (2 if path is many else 1)
    assert sent[0].text == "Hi\nThe shop"


async def test_a_retry_does_not_call_it_again(mailbox: Mailbox) -> None:
    hook = Footer()
    outbox = RequestOutbox()
    with override(EMAIL={**SENDER, "before_send": hook}), mailbox.fail_with("451 later", times=2):
        with collecting(outbox):
            await one()
        outbox.flush()
        await mailbox.wait()
    assert hook.calls == 1


async def test_a_queued_message_is_edited_by_the_sender_and_not_by_the_worker(
    tmp_path: Path, redis_server: RedisServer, server: SmtpServer
) -> None:
    hook = Footer()
    email = server.settings(**SENDER, before_send="hooks.refuse")
    folder = write_project(tmp_path / "project", tasks=redis_server.tasks(), email=email)
    (folder / "hooks.py").write_text("def refuse(data):\n    raise RuntimeError('called in the worker')\n")
    with override(TASKS=redis_server.tasks(), EMAIL={**email, "before_send": hook}):
        try:
            assert (await one(tags=["welcome"], ref="order-7", metadata={"shop": "de"})).mode is DeliveryMode.QUEUED
            await enqueue_email_job(EmailMessageData("a@example.test", "Hello", text="Hi"))
        finally:
            await asyncio.to_thread(close_queue)
    worker = Worker(folder)
    await asyncio.to_thread(worker.start)
    messages = await server.arrive(2)
    assert await asyncio.to_thread(worker.terminate) == 0
    assert [message.parse().get_content().split("\r\n") for message in messages] == [["Hi", "The shop", ""]] * 2
    assert hook.calls == 2


@pytest.mark.parametrize(
    ("given", "text", "html"),
    [
        ({"html": "<p>Hi</p>"}, "Hi\n\nThe shop", "<p>Hi</p><p>The shop</p>"),
        ({"html": "<p>Hi</p>", "text": "Own"}, "Own", "<p>Hi</p><p>The shop</p>"),
        ({"text": "Hi"}, "Hi\nThe shop", None),
    ],
    ids=["derived text follows the HTML", "given text stays", "text alone"],
)
async def test_a_text_that_was_derived_is_derived_again(
    given: dict[str, Any], text: str, html: str | None, mailbox: Mailbox
) -> None:
    with override(EMAIL={**SENDER, "before_send": Footer()}):
        await send_email("a@example.test", "Hello", **given)
    assert (mailbox.last.text or "").strip() == text
    assert mailbox.last.html == html


async def test_css_is_inlined_after_it(mailbox: Mailbox) -> None:
    def style(data: EmailMessageData) -> EmailMessageData:
        data.html = "<style>p{color:red}</style>" + (data.html or "")
        return data

    with override(EMAIL={**SENDER, "before_send": style, "inline_css": True}):
        await send_email("a@example.test", "Hello", html="<p>Hi</p>")
    assert 'style="color: red' in (mailbox.last.html or "")


async def test_attachments_come_as_given_and_are_loaded_after_it(tmp_path: Path, mailbox: Mailbox) -> None:
    seen: list[object] = []
    report = tmp_path / "report.txt"

    async def write(data: EmailMessageData) -> EmailMessageData:
        seen.extend(data.attachments)
        await asyncio.to_thread(report.write_bytes, b"figures")
        data.attachments.append(("more.txt", b"more"))  # type: ignore[arg-type]
        return data

    with override(EMAIL={**SENDER, "before_send": write}):
        await send_email("a@example.test", "Hello", text="Hi", attachments=str(report))
    assert seen == [str(report)]
    assert [(part.filename, part.content) for part in mailbox.last.attachments] == [
        ("report.txt", b"figures"),
        ("more.txt", b"more"),
    ]


@pytest.mark.parametrize(
    "attachments",
    [
        ("a.txt", b"content"),
        ("a.txt", b"content", "text/plain"),
        {"filename": "a.txt", "content": "content"},
        {"a.txt": b"content"}.items(),
        [("a.txt", b"content")],
    ],
)
async def test_every_form_of_attachments_works_with_a_hook_as_without(attachments: Any, mailbox: Mailbox) -> None:
    for settings in (SENDER, {**SENDER, "before_send": Footer()}):
        with override(EMAIL=settings):
            await send_email("a@example.test", "Hello", text="Hi", attachments=attachments)
        assert [(part.filename, part.content) for part in mailbox.last.attachments] == [("a.txt", b"content")]


async def test_a_generator_of_attachments_is_listed_for_the_hook(mailbox: Mailbox) -> None:
    with override(EMAIL={**SENDER, "before_send": Footer()}):
        files = ((f"{name}.txt", b"content") for name in "ab")
        await send_email("a@example.test", "Hello", text="Hi", attachments=files)
    assert [part.filename for part in mailbox.last.attachments] == ["a.txt", "b.txt"]


async def test_its_edits_do_not_reach_what_the_application_sends_again(mailbox: Mailbox) -> None:
    def edit(data: EmailMessageData) -> EmailMessageData:
        data.headers["X-Env"] = "staging"  # type: ignore[index]
        data.metadata["env"] = "staging"  # type: ignore[index]
        data.cc.append("audit@example.test")  # type: ignore[union-attr]
        return Footer()(data)

    headers, metadata, cc = {"X-Shop": "1"}, {"shop": "1"}, ["c@example.test"]
    data = EmailMessageData(recipients=["a@example.test"], subject="Hello", text="Hi")
    with override(EMAIL={**SENDER, "before_send": edit}):
        await one(headers=headers, metadata=metadata, cc=cc)
        for _ in range(2):
            assert [bool(receipt) async for receipt in send_many([data])] == [True]
            assert mailbox.last.text == "Hi\nThe shop"
            assert mailbox.last.cc == ("audit@example.test",)
    assert (headers, metadata, cc) == ({"X-Shop": "1"}, {"shop": "1"}, ["c@example.test"])
    assert (data.text, data.headers, data.cc) == ("Hi", {}, [])


async def test_what_it_changes_is_checked(mailbox: Mailbox) -> None:
    def break_it(data: EmailMessageData) -> EmailMessageData:
        data.subject += "\r\nBcc: eve@example.test"
        return data

    with override(EMAIL={**SENDER, "before_send": break_it}), pytest.raises(InvalidMessage, match=r"^subject: "):
        await one()


async def test_a_wrong_message_can_be_mended_by_it(mailbox: Mailbox) -> None:
    def mend(data: EmailMessageData) -> EmailMessageData:
        data.subject = data.subject.replace("\n", " ")
        return data

    with override(EMAIL={**SENDER, "before_send": mend}):
        await send_email("a@example.test", "Two\nlines", text="Hi")
    assert mailbox.last.subject == "Two lines"


async def test_several_are_called_in_order_until_one_cancels(mailbox: Mailbox) -> None:
    order: list[str] = []

    def first(data: EmailMessageData) -> EmailMessageData:
        order.append("first")
        return data

    def last(data: EmailMessageData) -> EmailMessageData:
        order.append("last")
        return data

    with override(EMAIL={**SENDER, "before_send": [first, cancel, last]}):
        await send_email("a@example.test", "Hello", text="Hi")
        await send_email("a@example.test", "A holiday", text="Hi")
    assert order == ["first", "last", "first"]


@pytest.mark.parametrize("mode", ["inline", "deferred", "held"])
async def test_a_cancelled_message_has_a_true_receipt_and_one_event(mode: str, mailbox: Mailbox) -> None:
    events: list[MessageEvent] = []
    with override(EMAIL={**SENDER, "before_send": cancel, "listeners": [events.append]}):
        if mode == "held":
            async with transaction():
                receipt = await submit_email("a@example.test", "A holiday", text="Hi", ref="order-7")
        elif mode == "deferred":
            with collecting(RequestOutbox()):
                receipt = await submit_email("a@example.test", "A holiday", text="Hi", ref="order-7")
        else:
            receipt = await submit_email("a@example.test", "A holiday", text="Hi", ref="order-7")
    assert receipt
    assert (receipt.outcome, receipt.cancelled, receipt.accepted) == ("cancelled", "on holiday", ())
    assert [(event.kind, event.detail, event.ref) for event in events] == [("cancelled", "on holiday", "order-7")]
    assert mailbox.messages == []
    assert [(message.subject, reason) for message, reason in mailbox.cancelled] == [("A holiday", "on holiday")]


async def test_send_many_and_render_email_know_cancelled_messages(mailbox: Mailbox) -> None:
    with override(EMAIL={**SENDER, "before_send": cancel}):
        subjects = ["A holiday", "Hello"]
        messages = [EmailMessageData("a@example.test", subject, text="Hi") for subject in subjects]
        receipts = {receipt.index: receipt async for receipt in send_many(messages)}
        rendered = await render_email("A holiday", text="Hi")
    assert [receipts[index].outcome for index in range(2)] == ["cancelled", "delivered"]
    assert rendered.subject == "A holiday"


@pytest.mark.parametrize("result", [None, True, "text", {"subject": "x"}])
async def test_a_forgotten_return_sends_nothing_and_names_the_hook(result: object, mailbox: Mailbox) -> None:
    def forgetful(data: EmailMessageData) -> object:
        return result

    with override(EMAIL={**SENDER, "before_send": forgetful}), pytest.raises(TypeError) as raised:
        await one(fail_silently=True)
    assert str(raised.value).startswith('EMAIL["before_send"]: ')
    assert "forgetful" in str(raised.value)
    assert str(raised.value).endswith(f"returned {type(result).__name__}; return the message, or Cancel(reason)")
    assert mailbox.messages == []


async def test_its_exception_reaches_the_caller(mailbox: Mailbox) -> None:
    def broken(data: EmailMessageData) -> EmailMessageData:
        raise LookupError("no such customer")

    with override(EMAIL={**SENDER, "before_send": broken}), pytest.raises(LookupError, match="no such customer"):
        await one(fail_silently=True)


async def test_a_wrong_path_is_told_when_the_mailer_is_made() -> None:
    with pytest.raises(ImproperlyConfigured, match=r'^EMAIL\["before_send"\]: there is no module'):
        Mailer(EmailSettings(before_send="no_such.hook"))


# Labels


async def test_labels_travel_to_the_events_and_are_not_in_the_message(server: SmtpServer) -> None:
    events: list[MessageEvent] = []
    mailer = Mailer(EmailSettings(**server.settings(**SENDER, listeners=[events.append])))
    with using_mailer(mailer):
        await one(tags=["welcome", "de"], ref="order-7", metadata={"shop": "Köln"}, stream="news")
    await mailer.aclose()
    for event in events:
        assert (event.tags, event.ref, event.metadata, event.stream) == (
            ("welcome", "de"),
            "order-7",
            {"shop": "Köln"},
            "news",
        )
    assert b"order-7" not in server.messages[0].content
    assert b"welcome" not in server.messages[0].content


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"tags": "welcome"}, "tags: must be a list of strings, not str"),
        ({"tags": [1]}, "tags: must be a string, not int"),
        ({"tags": ["a\nb"]}, "tags: "),
        ({"tags": ["x"] * 51}, "tags: 51 tags are too many"),
        ({"ref": 7}, "ref: must be a string, not int"),
        ({"ref": ""}, "ref: '' is empty"),
        ({"ref": "x" * 201}, "ref: "),
        ({"metadata": [("a", "b")]}, "metadata: must be a dict of strings"),
        ({"metadata": {"a": 1}}, "metadata: must be a string, not int"),
        ({"stream": "two words"}, "stream: 'two words' is not a name"),
        ({"stream": ""}, "stream: '' is not a name"),
    ],
)
async def test_a_wrong_label_is_refused(given: dict[str, Any], text: str, mailbox: Mailbox) -> None:
    with override(EMAIL=SENDER), pytest.raises(InvalidMessage) as raised:
        await one(**given)
    assert str(raised.value).startswith(text)
    assert len(str(raised.value)) < 400


async def test_nothing_is_fetched_for_a_cancelled_message(tmp_path: Path, mailbox: Mailbox) -> None:
    with override(EMAIL={**SENDER, "before_send": cancel}):
        receipt = await submit_email("a@example.test", "A holiday", text="Hi", attachments=str(tmp_path / "gone.pdf"))
    assert receipt.outcome == "cancelled"
