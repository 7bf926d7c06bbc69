"""Errors name the culprit and show little of it: what is given by mistake may be a customer's data."""

import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from openviper import OpenViper
from openviper.conf import import_string, override, settings
from openviper.core.email import (
    Address,
    AttachmentData,
    EmailSettings,
    get_backend,
    parse_address,
    resolve_attachments,
    send_email,
    send_many,
)
from openviper.core.email.backends.smtp.commands import check_host_name, rcpt_to
from openviper.db import engine
from openviper.exceptions import OpenViperError
from openviper.tasks import TaskSettings
from openviper.testing import capture_mail

LONGEST = 400
CSV = "order;customer;amount\n" + "1;Ana Carvalho;17.50\n" * 450
LINE = CSV.replace("\n", "|")
HOSTILE = "\x00\U000e0001" * 5000


def send(**arguments: Any) -> Callable[[str], Awaitable[object]]:
    """A send of an otherwise right message; a value that is a function gets the huge text."""

    async def sending(huge: str) -> object:
        given = {name: value(huge) if callable(value) else value for name, value in arguments.items()}
        message = {"recipients": "a@example.com", "subject": "s", "text": "t", "sender": "shop@example.com"}
        return await send_email(**{**message, **given})

    return sending


async def send_one_of_many(message: dict[str, Any]) -> None:
    async for _ in send_many([{"recipients": "a@example.com", "subject": "s", "text": "t", **message}]):
        pass


async def engine_of(url: str) -> None:
    with override(DATABASE_URL=url):
        await engine()


async def send_in(**email: object) -> None:
    with override(EMAIL={"backend": "MemoryBackend", **email}):
        await send(template="a.txt", context={})("")


def read_setting(name: str) -> None:
    getattr(settings, name)


class Named:
    """An extension."""

    def __init__(self, name: str) -> None:
        self.name = name


def add_twice(name: str) -> None:
    app = OpenViper()
    app.add_extension(Named(name))
    app.add_extension(Named(name))


def fail_with(reply: str) -> None:
    with capture_mail() as mailbox:
        mailbox.fail_with(reply, at="rcpt")


CALLS: dict[str, Callable[[str], object]] = {
    "recipients": send(recipients=lambda huge: huge),
    "recipients: bytes": send(recipients=lambda huge: [huge.encode("utf-8", "replace")]),
    "recipients: nested": send(recipients=lambda huge: [[huge] * 50]),
    "cc: a local part": send(cc=lambda huge: f"{huge}@example.com"),
    "sender: a domain": send(sender=lambda huge: f"a@{huge}"),
    "sender: a name": send(sender=lambda huge: f"{huge} <a@example.com>"),
    "sender: a pair": send(sender=lambda huge: (f"{huge}\n", "a@example.com")),
    "sender: the address of a pair": send(sender=lambda huge: ("Ana", huge)),
    "sender: an Address": send(sender=lambda huge: Address(f"{huge}\n", "a", "example.com")),
    "cc: a bare pair": send(cc=lambda huge: (huge, "a@example.com")),
    "in_reply_to": send(in_reply_to=lambda huge: [huge]),
    "references": send(references=lambda huge: huge),
    "date": send(date=lambda huge: huge),
    "timeout": send(timeout=lambda huge: huge),
    "headers: a list": send(headers=lambda huge: {"Auto-Submitted": [huge, huge]}),
    "a keyword": lambda huge: send_email("a@example.com", **{huge: 1}),  # type: ignore[arg-type]
    "reply_to": send(reply_to=lambda huge: [huge]),
    "envelope_sender": send(envelope_sender=lambda huge: huge),
    "subject": send(subject=lambda huge: f"{huge}\n"),
    "headers: a name": send(headers=lambda huge: {huge: "x"}),
    "headers: a value": send(headers=lambda huge: {"X-A": f"{huge}\n"}),
    "headers: a structured value": send(headers=lambda huge: {"References": f"{huge}ü"}),
    "headers: a message id": send(headers=lambda huge: {"Message-ID": f"<{huge[:200]}>"}),
    "headers: no mapping": send(headers=lambda huge: [huge]),
    "send_at": send(send_at=lambda huge: huge),
    "template": send(template=lambda huge: huge),
    "template: with a suffix": send(template=lambda huge: f"{huge[:400]}.docx"),
    "template: no str": send(template=lambda huge: [huge]),
    "context": send(template="a.txt", context=lambda huge: huge),
    "attachments: a str": send(attachments=lambda huge: huge),
    "attachments: content for a path": send(attachments=lambda huge: [("orders.csv", huge)]),
    "attachments: content as an item": send(attachments=lambda huge: [huge]),
    "attachments: a URL": send(attachments=lambda huge: [f"https://{huge}"]),
    "attachments: a scheme": send(attachments=lambda huge: [f"{'a' * 9000}://{huge}"]),
    "attachments: a key": send(attachments=lambda huge: [{huge: 1}]),
    "attachments: inline": send(attachments=lambda huge: [{"content": b"", "inline": huge}]),
    "attachments: a type": send(attachments=lambda huge: [("a.csv", b"", huge)]),
    "attachments: multipart": send(attachments=lambda huge: [("a.csv", b"", f"multipart/a; {'b' * 9000}")]),
    "attachments: a name": send(attachments=lambda huge: [(f"{huge}\n", b"")]),
    "attachments: base64": send(attachments=lambda huge: [{"content_b64": huge}]),
    "attachments: a content id": send(attachments=lambda huge: [{"content": b"", "content_id": huge}]),
    "attachments: AttachmentData": lambda huge: resolve_attachments([AttachmentData(huge, huge)]),  # type: ignore[arg-type]
    "attachments: two of one content id": send(
        attachments=lambda huge: [
            {"content": b"", "filename": f"{'n' * 990}{number}", "inline": True, "content_id": "c" * 200}
            for number in range(2)
        ]
    ),
    "an argument of send_many": lambda huge: send_one_of_many({huge: 1}),
    "parse_address": lambda huge: parse_address(huge, field="to"),
    "get_backend: a name": lambda huge: get_backend(huge.replace("\n", "")),
    "get_backend: a path": lambda huge: get_backend("shop." + "mail" * 5000),
    "get_backend: a module": lambda huge: get_backend(f"{'shop' * 3000}.Backend"),
    "import_string": lambda huge: import_string(huge, setting="S"),
    "EmailSettings: a key": lambda huge: EmailSettings(**{huge: 1}),
    "EmailSettings: a host": lambda huge: EmailSettings(host=huge),
    "EmailSettings: a sender": lambda huge: EmailSettings(default_sender=huge),
    "EmailSettings: a port": lambda huge: EmailSettings(port=10**5000),
    "EmailSettings: folders": lambda huge: EmailSettings(attachment_dirs=huge),
    "EmailSettings: an environment": lambda huge: send_in(template_environment=huge),
    "EmailSettings: a rate": lambda huge: EmailSettings(rate_limit=huge),
    "TASKS: a key": lambda huge: TaskSettings(**{huge: 1}),
    "TASKS: a broker": lambda huge: TaskSettings(broker=huge),
    "TASKS: a module": lambda huge: TaskSettings(modules=[huge]),
    "TASKS: a namespace": lambda huge: TaskSettings(namespace=huge),
    "DATABASE_URL": lambda huge: engine_of(f"{'shop' * 3000}://host/{huge}"),
    "DATABASE_URL: no URL": engine_of,
    "a setting": lambda huge: read_setting(f"X{huge}"),
    "conf.override": lambda huge: override(**{huge: 1}).__enter__(),
    "add_extension": add_twice,
    "EHLO": check_host_name,
    "RCPT TO": rcpt_to,
    "a reply of the test kit": fail_with,
}


@pytest.fixture(autouse=True)
def _templates(tmp_path: Path) -> Any:
    (tmp_path / "a.txt").write_text("Hi {{ name }}")
    with override(TEMPLATES_DIR=tmp_path, EMAIL={"backend": "MemoryBackend"}):
        yield


@pytest.mark.parametrize("huge", [CSV, LINE, HOSTILE], ids=["lines", "one line", "hostile"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_an_error_about_a_huge_value_is_short(call: Callable[[str], object], huge: str) -> None:
    """And the name of the tenth customer is not in it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011, PT012 - of many kinds; some are raised by the call itself
        done = call(huge)
        if inspect.isawaitable(done):
            await done
    text = str(caught.value)
    assert isinstance(caught.value, OpenViperError | ValueError | TypeError) or text.startswith("there is no setting ")
    assert 0 < len(text) <= LONGEST, text
    assert text.count("Ana Carvalho") <= 6
    assert "\x00" not in text


async def test_a_failing_template_shows_little_of_a_value(tmp_path: Path) -> None:
    (tmp_path / "total.txt").write_text("{{ (amounts | sum) + [orders][orders] }}")
    with pytest.raises(Exception) as caught:  # noqa: PT011
        await send(template="total.txt", context={"amounts": [1], "orders": CSV})("")
    assert len(str(caught.value)) <= LONGEST


async def test_csv_text_in_place_of_content_names_the_file_and_the_remedy() -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        await send(attachments=[("orders.csv", CSV)])("")
    text = str(caught.value)
    assert text.startswith("attachment 'orders.csv': ")
    assert text.count("Ana Carvalho") <= 3
    assert '{"content": ...}' in text
