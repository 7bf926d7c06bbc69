"""``send_email`` to a real Postfix that rejects bare newlines, and what its mailbox then holds."""

import email
import email.header
import email.policy
import email.utils
import random
import secrets
from collections.abc import AsyncIterator, Iterator
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.postfix import Postfix

from openviper.conf import override
from openviper.core.email import AttachmentData, Receipt, send_email, submit_email

HEADER_TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=100)
BODY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=500)
SIZES = (0, 1, 2, 3, 56, 57, 58, 76, 998, 999, 1000, 65_535, 65_536, 5_000_000)
MB = 1024 * 1024


@pytest.fixture(scope="module")
def postfix() -> Iterator[Postfix]:
    with Postfix() as server:
        yield server


@pytest.fixture(params=["chunking", "pipelining", "nothing"])
def offer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def mailbox(postfix: Postfix, offer: Any) -> AsyncIterator["Mailbox"]:
    sender = "Shop <shop@example.com>"
    with override(EMAIL=postfix.settings(offer, default_sender=sender)):
        yield Mailbox(postfix)


class Mailbox:
    """What arrived since the test began."""

    def __init__(self, postfix: Postfix) -> None:
        self._postfix = postfix
        self._before = len(postfix.stored())

    async def read(self, count: int = 1) -> list[EmailMessage]:
        """The next ``count`` messages, parsed without a complaint of the parser."""
        stored = (await self._postfix.arrive(self._before + count))[self._before :]
        self._before += count
        assert len(stored) == count
        return [parse(each) for each in stored]


def parse(stored: bytes) -> EmailMessage:
    # From str, because headers may hold UTF-8 (RFC 6532) and the parser of bytes replaces it.
    message = email.message_from_string(stored.decode(), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    for part in message.walk():
        assert part.defects == []
    return message


def payload(part: Any) -> bytes:
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content


def text_of(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part is not None
    return payload(part).decode().replace("\r\n", "\n")


def mailboxes(message: EmailMessage, field: str) -> list[tuple[str, str]]:
    """Names and addresses as the older parser reads them: the newer puts a space between two encoded words."""
    raw = "".join(dict(message.raw_items())[field].splitlines())
    return [
        (str(email.header.make_header(email.header.decode_header(name))), spec)
        for name, spec in email.utils.getaddresses([raw])
    ]


def lines(text: str) -> str:
    """``text`` as it arrives: one kind of line end, the last line ended."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if not text or text.endswith("\n") else f"{text}\n"


def shape(part: Any) -> Any:
    kind = part.get_content_type()
    return (kind, [shape(each) for each in part.iter_parts()]) if part.is_multipart() else kind


async def test_attachments_of_every_size_arrive_byte_for_byte(mailbox: Mailbox) -> None:
    contents = {f"{size}.bin": random.Random(size).randbytes(size) for size in SIZES}
    assert await send_email("to@example.com", "sizes", "See attached.", attachments=list(contents.items()))
    (message,) = await mailbox.read()
    arrived = {part.get_filename(): payload(part) for part in message.iter_attachments()}
    assert {name: len(content) for name, content in arrived.items()} == {f"{size}.bin": size for size in SIZES}
    assert arrived == contents


async def test_the_largest_attachment_that_is_allowed_arrives_byte_for_byte(mailbox: Mailbox) -> None:
    content = random.Random(25).randbytes(25 * MB)
    assert await send_email("to@example.com", "large", "See attached.", attachments=[("large.bin", content)])
    (message,) = await mailbox.read()
    (part,) = message.iter_attachments()
    assert payload(part) == content


LOGO = AttachmentData("logo.png", b"\x89PNG\r\n\x1a\n", "image/png", inline=True, content_id="logo")
FORWARDED = b"From: a@example.com\nSubject: =?utf-8?q?caf=C3=A9?=\n\nFrom here on\n.\n..\nend\n"
RELATED = ("multipart/related", ["text/html", "image/png"])


@pytest.mark.parametrize("offer", ["chunking"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"text": "t"}, "text/plain"),
        ({"text": ""}, "text/plain"),
        ({"html": "<p>h</p>"}, ("multipart/alternative", ["text/plain", "text/html"])),
        ({"text": "t", "html": "h"}, ("multipart/alternative", ["text/plain", "text/html"])),
        (
            {"text": "t", "html": '<img src="cid:logo">', "attachments": [LOGO]},
            ("multipart/alternative", ["text/plain", RELATED]),
        ),
        (
            {"text": "t", "html": '<img src="cid:logo">', "attachments": [LOGO, ("a.pdf", b"%PDF")]},
            ("multipart/mixed", [("multipart/alternative", ["text/plain", RELATED]), "application/pdf"]),
        ),
        (
            {"text": "t", "attachments": [{"content": FORWARDED, "filename": "m.eml", "mimetype": "message/rfc822"}]},
            ("multipart/mixed", ["text/plain", ("message/rfc822", ["text/plain"])]),
        ),
    ],
    ids=["text", "empty text", "html", "both", "inline image", "inline image and file", "message"],
)
async def test_the_structure_arrives_as_it_was_made(mailbox: Mailbox, values: dict[str, Any], expected: Any) -> None:
    await send_email("to@example.com", "structure", **values)
    (message,) = await mailbox.read()
    assert shape(message) == expected


@pytest.mark.parametrize("offer", ["chunking"])
async def test_an_attached_message_can_be_read(mailbox: Mailbox) -> None:
    await send_email("to@example.com", "fwd", "t", attachments=[("m.eml", FORWARDED, "message/rfc822")])
    (message,) = await mailbox.read()
    (part,) = message.iter_attachments()
    inner = part.get_content()
    assert (inner["Subject"], inner["From"]) == ("café", "a@example.com")
    assert inner.get_payload().replace("\r\n", "\n") == "From here on\n.\n..\nend\n"


async def test_blind_recipients_are_delivered_and_nowhere_in_any_copy(mailbox: Mailbox) -> None:
    recipients = ["Ann <ann@example.com>", "bob@Example.COM"]
    blind = ["blind@example.com", "Very Blind <hidden@example.com>", "bob@example.com"]
    receipt = await submit_email(recipients, "to whom", "t", cc="ann@EXAMPLE.com", bcc=blind)
    assert receipt.accepted == ("ann@example.com", "bob@Example.COM", "blind@example.com", "hidden@example.com")
    messages = await mailbox.read(4)
    delivered = {str(message["Delivered-To"]).lower() for message in messages}
    assert delivered == {f"{name}@example.com" for name in ("ann", "bob", "blind", "hidden")}
    for message in messages:
        del message["Delivered-To"], message["X-Original-To"]
        assert message["Bcc"] is None
        for secret in (b"blind", b"hidden"):
            assert secret not in message.as_bytes().lower()
        assert message["To"] == "Ann <ann@example.com>, bob@Example.COM"


@pytest.mark.parametrize("offer", ["chunking"])
async def test_an_international_mailbox_is_the_same_in_header_and_envelope(mailbox: Mailbox) -> None:
    """The local part stands in the header as it is (RFC 6532), the name in an encoded word all the same."""
    receipt = await submit_email("Jörg Müller <jörg@example.com>", "Grüße", "t", reply_to="用户@example.com")
    assert receipt.accepted == ("jörg@example.com",)
    (message,) = await mailbox.read()
    assert message["Delivered-To"] == "jörg@example.com"
    for field, spec in (("To", "jörg@example.com"), ("Reply-To", "用户@example.com")):
        assert message[field].addresses[0].addr_spec == spec
    assert message["To"].addresses[0].display_name == "Jörg Müller"


@pytest.mark.parametrize(
    "text",
    [
        ".\n..\n...\n.\r\n.\r.\n\n.",
        "From me\nFrom you\n\nFrom them",
        "a\rb\nc\r\nd\n\re\r\r\n\n",
        "end of data?\r\n.\r\nMAIL FROM:<evil@example.com>\r\n",
        "smuggled\n.\nMAIL FROM:<evil@example.com>\nRCPT TO:<evil@example.com>\nDATA\nx\n.\n",
        "smuggled\r.\rMAIL FROM:<evil@example.com>\r",
        "smuggled\r\n.\nMAIL FROM:<evil@example.com>\n",
        "smuggled\n.\r\nMAIL FROM:<evil@example.com>\r\n",
        "x" * 20_000,
        "é" * 20_000,
        ("word " * 400 + "\n") * 20,
        "nothing \x00 to see \x00\x00\n\x00",
        "\x01\x0b\x0c\x1a\x1b\x7f\u2028\u2029\x85\ufeff\u202e",
        "trailing \n\t\n \n  ",
        "",
        "\n",
        "\r",
    ],
)
async def test_texts_that_break_mail_arrive_as_they_were(mailbox: Mailbox, text: str) -> None:
    assert await send_email("to@example.com", "text", text, html=text)
    (message,) = await mailbox.read()
    for kind in ("plain", "html"):
        assert text_of(message, kind) == lines(text)
    assert message["Return-Path"] == "<shop@example.com>"


@pytest.mark.parametrize("offer", ["pipelining"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(subject=HEADER_TEXT, name=HEADER_TEXT, header=HEADER_TEXT, text=BODY_TEXT, file=HEADER_TEXT, content=st.binary())
@example("=?utf-8?q?x=0D=0ABcc=3A_e=40x.test?=", '"; <a@b>', "=?utf-8?b?eA==?=", "\n.\n", 'a"; b=c', b"\r\n.\r\n")
@example("é" * 100, "日本語" * 20, "日" * 70, "From here\n" * 3, "日本語" * 30, b"\x00" * 300)
@example(" ", " x ", "  ", " ", " ", b" ")
async def test_whatever_is_said_arrives(
    mailbox: Mailbox, subject: str, name: str, header: str, text: str, file: str, content: bytes
) -> None:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    receipt: Receipt = await submit_email(
        [f'"{quoted}" <to@example.com>', "second@example.com"],
        subject,
        text,
        text,
        sender=f'"{quoted}" <from@example.com>',
        reply_to=f'"{quoted}" <reply@example.com>',
        headers={"X-Anything": header},
        attachments=[(file, content, "application/octet-stream")],
        envelope_sender=f"bounce-{secrets.token_hex(4)}@example.com",
    )
    assert receipt.accepted == ("to@example.com", "second@example.com")
    for message in await mailbox.read(2):
        assert message["Message-ID"] == receipt.message_id
        assert (message["Subject"], message["X-Anything"]) == (subject, header)
        for field, address in (("From", "from"), ("To", "to"), ("Reply-To", "reply")):
            assert mailboxes(message, field)[0] == (name.strip(" "), f"{address}@example.com")
        assert text_of(message, "plain") == text_of(message, "html") == lines(text)
        (attachment,) = message.iter_attachments()
        assert attachment["Content-Disposition"].params["filename"] == file
        assert payload(attachment) == content


async def test_the_notice_that_was_asked_for_comes_back(mailbox: Mailbox) -> None:
    """Postfix reads every parameter: the notice names the envelope and the recipient as they were given."""
    receipt = await submit_email("o'neil+a=b@example.com", "Hello", "The body.", dsn="success")
    assert receipt.dsn is True
    sent, notice = sorted(await mailbox.read(2), key=lambda message: message.get_content_type())[::-1]
    assert (sent["Subject"], notice.get_content_type()) == ("Hello", "multipart/report")
    fields = str(notice)
    assert f"Original-Envelope-Id: {receipt.message_id[1:-1]}" in fields
    assert "Original-Recipient: rfc822;o'neil+a=b@example.com" in fields
    assert "Action: " in fields
    assert notice["To"] == "shop@example.com"
    assert "The body." not in fields
