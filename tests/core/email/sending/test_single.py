"""send_email as an application calls it, with what it sends read back from the memory backend."""

import asyncio
import copy
import inspect
import pickle
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import formataddr
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from jinja2 import DictLoader, Environment
from support.patience import PATIENCE

from openviper.conf import override
from openviper.core.email import (
    Address,
    AttachmentData,
    DeliveryMode,
    InvalidAddress,
    InvalidMessage,
    MessageEvent,
    TemplateFailed,
    send_email,
    send_email_sync,
    submit_email,
    subscribe,
)
from openviper.core.email.backends.memory import MemoryBackend
from openviper.core.email.delivery import Mailer, current_mailer, serving_loop, using_mailer
from openviper.core.email.delivery.request_outbox import RequestOutbox, collecting
from openviper.core.email.message import Envelope
from openviper.core.email.settings import EmailSettings
from openviper.exceptions import ImproperlyConfigured


@pytest.fixture
async def mailer(tmp_path: Path) -> AsyncIterator[Mailer]:
    with override(TEMPLATES_DIR=tmp_path):
        mailer = Mailer(EmailSettings(backend="MemoryBackend", default_sender="Shop <shop@example.test>"))
    with using_mailer(mailer):
        yield mailer
    await mailer.aclose()


def last(mailer: Mailer) -> EmailMessage:
    assert isinstance(mailer.backend, MemoryBackend)
    message = message_from_bytes(b"".join(mailer.backend.messages[-1].content), policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def body(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part is not None
    return part.get_content().replace("\r\n", "\n")


def test_the_documented_parameters_come_in_their_order() -> None:
    names = ["recipients", "subject", "text", "html", "cc", "bcc", "attachments", "template", "context"]
    names += ["fail_silently", "background", "sender", "reply_to", "headers", "envelope_sender"]
    names += ["send_at", "delay", "expires_at", "date", "in_reply_to", "references"]
    names += ["calendar", "calendar_attachment", "timeout", "tags", "ref", "metadata", "stream"]
    names += ["unsubscribe", "recipient_id", "mailer", "sensitive", "key", "dsn"]
    for function in (send_email, submit_email, send_email_sync):
        parameters = inspect.signature(function).parameters
        assert list(parameters) == names
        assert [name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY] == names[
            names.index("reply_to") :
        ]


async def test_plain_text_arrives_with_the_default_sender(mailer: Mailer) -> None:
    assert await send_email("Alice <alice@example.test>", "Hello", text="Hi Alice") is True
    message = last(mailer)
    assert (message["From"], message["To"], message["Subject"]) == (
        "Shop <shop@example.test>",
        "Alice <alice@example.test>",
        "Hello",
    )
    assert message.get_content_type() == "text/plain"
    assert body(message, "plain") == "Hi Alice\n"


async def test_html_alone_gets_a_text_part_with_its_links(mailer: Mailer) -> None:
    await send_email(
        "a@example.test", "Digest", html="<style>p{}</style><p>See <a href='https://x.test/1'>this</a></p>"
    )
    message = last(mailer)
    assert message.get_content_type() == "multipart/alternative"
    assert body(message, "plain") == "See this (https://x.test/1)\n"
    assert "<p>See" in body(message, "html")


async def test_bcc_is_in_the_envelope_only_and_duplicates_are_delivered_once(mailer: Mailer) -> None:
    await send_email(
        ["a@example.test", "b@EXAMPLE.test"],
        "Hello",
        text="",
        cc="b@example.test",
        bcc=["carol@example.test", "a@example.test"],
    )
    assert isinstance(mailer.backend, MemoryBackend)
    sent = mailer.backend.messages[-1]
    recipients = [one.lower() for one in sent.envelope.recipients]
    assert recipients == ["a@example.test", "b@example.test", "carol@example.test"]
    # Not a letter that a Message-ID may end with.
    assert b"carol" not in b"".join(sent.content)


async def test_pairs_and_addresses_are_taken_wherever_an_address_is(mailer: Mailer) -> None:
    await send_email(
        [("Costa, Ana", "ana@example.test"), "Bo <bo@example.test>"],
        "Hello",
        text="",
        cc=Address.of("Ana (Sales)", "sales@example.test"),
        bcc=[("x@y.z", "blind@example.test")],
        reply_to=[("Help, please", "help@example.test")],
        sender=("Müller, Shop", "news@example.test"),
        envelope_sender=Address.of("", "bounces@example.test"),
    )
    message = last(mailer)
    assert (message["From"], message["To"], message["Cc"], message["Reply-To"]) == (
        '"Müller, Shop" <news@example.test>',
        '"Costa, Ana" <ana@example.test>, Bo <bo@example.test>',
        '"Ana (Sales)" <sales@example.test>',
        '"Help, please" <help@example.test>',
    )
    assert isinstance(mailer.backend, MemoryBackend)
    assert mailer.backend.messages[-1].envelope == Envelope(
        "bounces@example.test",
        ("ana@example.test", "bo@example.test", "sales@example.test", "blind@example.test"),
        False,
    )


@pytest.mark.parametrize("field", ["recipients", "cc", "bcc", "reply_to"])
async def test_a_bare_pair_is_refused_where_several_addresses_are_taken(mailer: Mailer, field: str) -> None:
    arguments: dict[str, Any] = {"recipients": "a@example.test", field: ("Costa, Ana", "ana@example.test")}
    with pytest.raises(InvalidMessage, match=rf"^{field}: .* is a bare pair; write \[\(name, address\)\]$"):
        await send_email(subject="Hello", text="", **arguments)
    assert isinstance(mailer.backend, MemoryBackend)
    assert len(mailer.backend.messages) == 0


async def test_what_formataddr_makes_arrives_as_its_name_and_a_subject_stays_literal(mailer: Mailer) -> None:
    written = formataddr(("Müller", "a@example.test"))
    await send_email(written, written, text="", sender=written, reply_to=written)
    message = last(mailer)
    assert [message[name] for name in ("From", "To", "Reply-To")] == ["Müller <a@example.test>"] * 3
    assert message["Subject"] == written


async def test_date_and_thread_reach_the_message(mailer: Mailer) -> None:
    for send in (send_email, submit_email):
        await send(
            "a@example.test",
            "Re: Hello",
            text="",
            date=datetime(2024, 2, 29, 12, tzinfo=UTC),
            in_reply_to="<2@example.test>",
            references=["<1@example.test>", "<2@example.test>"],
            headers={"X-Tag": ["one", "two"]},
        )
        message = last(mailer)
        assert message["Date"].datetime == datetime(2024, 2, 29, 12, tzinfo=UTC)
        assert message["In-Reply-To"] == "<2@example.test>"
        assert message["References"] == "<1@example.test> <2@example.test>"
        assert message.get_all("X-Tag") == ["one", "two"]


async def test_keyword_additions_reach_the_message(mailer: Mailer) -> None:
    await send_email(
        "a@example.test",
        "Hello",
        text="",
        sender="news@example.test",
        reply_to=["help@example.test"],
        headers={"List-Unsubscribe": "<https://x.test/u>"},
        envelope_sender="bounces@example.test",
    )
    message = last(mailer)
    assert (message["From"], message["Reply-To"], message["List-Unsubscribe"]) == (
        "news@example.test",
        "help@example.test",
        "<https://x.test/u>",
    )
    assert isinstance(mailer.backend, MemoryBackend)
    assert mailer.backend.messages[-1].envelope.sender == "bounces@example.test"


async def test_attachments_of_several_forms_arrive_unchanged(mailer: Mailer, tmp_path: Path) -> None:
    (tmp_path / "report.csv").write_bytes(b"a,b\r\n1,2\n")
    await send_email(
        "a@example.test",
        "Files",
        text="",
        attachments=[
            tmp_path / "report.csv",
            ("data.bin", b"\x00\x01"),
            {"content_b64": "SGVsbG8=", "filename": "hello.txt"},
        ],
    )
    parts = {part.get_filename(): part.get_payload(decode=True) for part in last(mailer).iter_attachments()}
    assert parts == {"report.csv": b"a,b\r\n1,2\n", "data.bin": b"\x00\x01", "hello.txt": b"Hello"}


async def test_a_template_gives_bodies_and_subject_and_explicit_values_beat_it(mailer: Mailer, tmp_path: Path) -> None:
    (tmp_path / "hi.md").write_text("{% block subject %}Hi {{ name }}{% endblock %}\n# Hello {{ name }}\n")
    await send_email("a@example.test", template="hi.md", context={"name": "<Ann>"})
    message = last(mailer)
    assert message["Subject"] == "Hi <Ann>"
    assert body(message, "plain").strip() == "# Hello <Ann>"
    assert "&lt;Ann&gt;</h1>" in body(message, "html")
    await send_email("a@example.test", "Own", template="hi.md", context={"name": "Ann"}, text="Own text")
    message = last(mailer)
    assert (message["Subject"], body(message, "plain")) == ("Own", "Own text\n")
    assert "Hello Ann" in body(message, "html")


@pytest.mark.parametrize(
    ("template", "given"),
    [
        ("hi.html", {"subject": "Own", "html": "<p>Own</p>"}),
        ("hi.txt", {"subject": "Own", "text": "Own"}),
        ("hi.html", {"html": "<p>Own</p>", "subject": "Own", "text": "Own"}),
    ],
)
async def test_a_template_of_which_nothing_is_used_is_a_mistake(
    mailer: Mailer, tmp_path: Path, template: str, given: dict[str, Any]
) -> None:
    (tmp_path / template).write_text("{% block subject %}Hi{% endblock %}Hello")
    with pytest.raises(InvalidMessage, match=rf"^template: nothing of '{template}' is used, because "):
        await send_email("a@example.test", template=template, **given)


async def test_a_text_template_makes_no_html_part(mailer: Mailer, tmp_path: Path) -> None:
    (tmp_path / "hi.txt").write_text("Hello {{ name }} & co")
    await send_email("a@example.test", "Hi", template="hi.txt", context={"name": "<b>"})
    assert last(mailer).get_content_type() == "text/plain"
    assert body(last(mailer), "plain") == "Hello <b> & co\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"recipients": "not an address", "subject": "s", "text": ""}, InvalidAddress),
        ({"recipients": [], "subject": "s", "text": ""}, InvalidMessage),
        ({"recipients": {"a@x.test": "Ann"}, "subject": "s", "text": ""}, InvalidAddress),
        ({"recipients": None, "subject": "s", "text": ""}, InvalidMessage),
        ({"recipients": 5, "subject": "s", "text": ""}, InvalidAddress),
        ({"recipients": "a@x.test", "subject": "s", "text": "", "cc": ""}, InvalidAddress),
        ({"recipients": "a@x.test", "text": ""}, InvalidMessage),
        ({"recipients": "a@x.test", "subject": "s"}, InvalidMessage),
        ({"recipients": "a@x.test", "subject": "a\nBcc: b@x.test", "text": ""}, InvalidMessage),
        ({"recipients": "a@x.test", "subject": "s", "template": "missing.txt"}, TemplateFailed),
        ({"recipients": "a@x.test", "subject": "s", "text": "", "context": {"a": 1}}, InvalidMessage),
        ({"recipients": "a@x.test", "subject": "s", "text": "", "attachments": ["/no/such/file"]}, InvalidMessage),
        ({"recipients": "a@x.test", "subject": "s", "text": "", "attachments": ["ftp://x.test/a"]}, ValueError),
    ],
)
async def test_wrong_input_raises_even_when_failures_are_silent_and_in_a_request(
    mailer: Mailer, arguments: dict[str, object], error: type[Exception]
) -> None:
    with collecting(RequestOutbox()), pytest.raises(error):
        await send_email(**arguments, fail_silently=True)  # type: ignore[arg-type]
    assert isinstance(mailer.backend, MemoryBackend)
    assert not mailer.backend.messages


async def test_a_missing_default_sender_names_the_setting() -> None:
    with (
        using_mailer(Mailer(EmailSettings(backend="MemoryBackend"))),
        pytest.raises(ImproperlyConfigured, match="default_sender"),
    ):
        await send_email("a@example.test", "Hello", text="")


async def test_the_sync_twin_refuses_to_block_the_event_loop(mailer: Mailer) -> None:
    with pytest.raises(RuntimeError, match="await send_email"):
        send_email_sync("a@example.test", "Hello", text="")


async def test_the_sync_twin_in_a_requests_thread_takes_the_requests_mode(mailer: Mailer) -> None:
    outbox = RequestOutbox()
    with collecting(outbox):
        assert await asyncio.to_thread(send_email_sync, "a@example.test", "Hello", text="") is True
    assert isinstance(mailer.backend, MemoryBackend)
    assert not mailer.backend.messages
    outbox.flush()
    await mailer.dispatcher.drain(10)
    assert len(mailer.backend.messages) == 1


@pytest.mark.parametrize(("run_in_thread", "here"), [(anyio.to_thread.run_sync, True), (asyncio.to_thread, False)])
async def test_the_sync_twin_in_a_thread_uses_the_loop_that_anyio_knows(
    mailer: Mailer, run_in_thread: Callable[..., Awaitable[bool]], here: bool
) -> None:
    """Sync endpoints of frameworks run in AnyIO's threads; another thread gets a loop of its own to prepare the
    message on. It is delivered on the loop of the mailer."""
    prepared_on: list[asyncio.AbstractEventLoop] = []
    delivered_on: list[asyncio.AbstractEventLoop] = []

    def recipients() -> Iterator[str]:
        prepared_on.append(asyncio.get_running_loop())
        yield "a@example.test"

    unsubscribe = subscribe(lambda event: delivered_on.append(asyncio.get_running_loop()))
    try:
        assert await run_in_thread(send_email_sync, recipients(), "Hello", "Hello, world")
    finally:
        unsubscribe()
    assert [loop is asyncio.get_running_loop() for loop in prepared_on] == [here]
    assert set(delivered_on) == {asyncio.get_running_loop()}
    assert last(mailer)["Subject"] == "Hello"


@pytest.mark.parametrize("late", [False, True])
async def test_a_loop_of_its_own_in_a_requests_thread_sends_in_the_requests_mode(mailer: Mailer, late: bool) -> None:
    """Also after the request: what that loop leaves behind when it ends is not lost."""
    outbox = RequestOutbox()
    with collecting(outbox):
        if late:
            outbox.flush()
        receipt = await asyncio.to_thread(asyncio.run, submit_email("a@example.test", "Hello", text=""))
    assert receipt.mode is DeliveryMode.DEFERRED
    outbox.flush()
    await mailer.dispatcher.drain(10)
    assert isinstance(mailer.backend, MemoryBackend)
    assert len(mailer.backend.messages) == 1


async def test_a_context_that_is_no_mapping_is_named(mailer: Mailer) -> None:
    with pytest.raises(InvalidMessage, match="context: must be a mapping"):
        await send_email("a@example.test", "Hello", template="hello.txt", context=["name"])  # type: ignore[arg-type]


async def test_a_thread_without_a_request_uses_the_application_that_is_served(mailer: Mailer) -> None:
    """A timer or a library's own thread knows no request; the process serves one application, so its mailer sends."""
    served = Mailer(EmailSettings(backend="MemoryBackend", default_sender="served@example.test"))
    with serving_loop(served):
        sent: list[bool] = []
        thread = threading.Thread(target=lambda: sent.append(send_email_sync("a@example.test", "Hello", text="")))
        thread.start()
        await asyncio.to_thread(thread.join)
    assert sent == [True]
    assert str(last(served)["From"]) == "served@example.test"
    await served.aclose()


async def test_thousands_of_recipients_are_checked_and_delivered(mailer: Mailer) -> None:
    addresses = [f"user{number}@example.test" for number in range(3000)]
    receipt = await submit_email("list@example.test", "News", text="", bcc=addresses)
    assert receipt.accepted == ("list@example.test", *addresses)
    with pytest.raises(InvalidAddress, match="bcc"):
        await submit_email("list@example.test", "News", text="", bcc=[*addresses, "no address"])


async def test_a_send_in_a_request_says_deferred(mailer: Mailer) -> None:
    with collecting(RequestOutbox()):
        receipt = await submit_email("a@example.test", "Hello", text="")
    assert receipt.mode is DeliveryMode.DEFERRED
    assert receipt.message_id.endswith("@example.test>")


def test_a_script_without_a_loop_sends_with_the_sync_twin(tmp_path: Path) -> None:
    script = """
from openviper.conf import settings
from openviper.core.email import send_email_sync
settings.configure(EMAIL={"backend": "FileBackend", "file_dir": "out", "default_sender": "a@example.test"})
for number in range(2):
    assert send_email_sync("b@example.test", f"Number {number}", text="hi") is True
"""
    subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script], cwd=tmp_path, check=True, timeout=PATIENCE
    )
    assert len(list((tmp_path / "out").glob("*.eml"))) == 2


async def test_the_applications_own_jinja_environment_serves_mail_templates(tmp_path: Path) -> None:
    environment = Environment(loader=DictLoader({"own.txt": "{{ shop }}: {{ 5 | euros }}"}))
    environment.globals["shop"] = "Viper"
    environment.filters["euros"] = "{:.2f} EUR".format
    settings = EmailSettings(backend="MemoryBackend", default_sender="a@x.test", template_environment=environment)
    with override(TEMPLATES_DIR=tmp_path), using_mailer(Mailer(settings)):
        mailer = await current_mailer()
        await send_email("b@x.test", "Own", template="own.txt")
    assert body(last(mailer), "plain") == "Viper: 5.00 EUR\n"


async def test_a_wrong_template_environment_names_the_setting() -> None:
    settings = EmailSettings(backend="MemoryBackend", template_environment="openviper.conf.settings")
    with pytest.raises(ImproperlyConfigured, match="template_environment"):
        Mailer(settings)


@pytest.mark.parametrize("more", [{}, {"text": "Hello"}, {"template": "letter.md"}])
async def test_css_of_html_that_a_call_gives_is_inlined(tmp_path: Path, more: dict[str, Any]) -> None:
    (tmp_path / "letter.md").write_text("Letter")
    with override(TEMPLATES_DIR=tmp_path):
        mailer = Mailer(EmailSettings(backend="MemoryBackend", default_sender="a@example.test", inline_css=True))
    html = "<style>p{color:red} .no{display:none}</style><p>Hello <span class=no>hidden</span></p>"
    with using_mailer(mailer):
        await send_email("b@example.test", "Hello", html=html, **more)
        assert '<p style="color: red;">Hello' in body(last(mailer), "html")
        assert "hidden" not in body(last(mailer), "plain")
        with pytest.raises(InvalidMessage, match=r"^html: its CSS cannot be inlined, because .* 250 deep"):
            await send_email("b@example.test", "Hello", html="<div>" * 300, **more)
        with pytest.raises(InvalidMessage, match=r"^html: must be a str, not bytes"):
            await send_email("b@example.test", "Hello", html=b"<p>", **more)  # type: ignore[arg-type]
    await mailer.aclose()


@pytest.mark.parametrize(("field", "value"), [("content", b"edited"), ("filename", "b.txt"), ("content_id", "x@y")])
async def test_a_listener_cannot_change_what_others_see_of_a_message(mailer: Mailer, field: str, value: Any) -> None:
    given = AttachmentData("a.txt", b"as sent", "text/plain")
    refused: list[str] = []

    def edit(event: MessageEvent) -> None:
        for edited in (event, event.message, event.message.prepared, event.message.prepared.attachments[0]):
            for change in (lambda one=edited: setattr(one, field, value), lambda one=edited: delattr(one, field)):
                with pytest.raises((AttributeError, TypeError)):  # FrozenInstanceError is an AttributeError
                    change()
                refused.append(event.kind)

    unsubscribe = subscribe(edit)
    try:
        await send_email("b@example.test", "Hello", "Hello", attachments=[given])
    finally:
        unsubscribe()
    assert refused == ["sending"] * 8 + ["delivered"] * 8
    assert isinstance(mailer.backend, MemoryBackend)
    (kept,) = mailer.backend.messages[-1].prepared.attachments
    assert kept == given == pickle.loads(pickle.dumps(kept)) == copy.deepcopy(kept) == replace(kept)
    assert kept != replace(kept, filename="c.txt")
    given.filename = "mine.txt"
    assert kept.filename == "a.txt"
