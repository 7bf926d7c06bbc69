"""A corpus of hostile addresses and header values: each is refused with the right error, or arrives as exactly itself.

``hostile_headers.json`` holds one string a line: ``where`` it is given, what it is ``about``, the ``value``, and either
the error that it is ``refused`` with or, for recipients, the mailbox and name that it ``arrives`` as.
"""

import email
import email.header
import email.policy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from openviper.core.email import errors
from openviper.core.email.attachments import AttachmentData
from openviper.core.email.message import EmailMessageData, OutgoingMessage, check_message
from openviper.core.email.message.serialiser import serialise_message

CORPUS = json.loads(Path(__file__).with_name("hostile_headers.json").read_text())
HEADERS = ["From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type", "Content-Transfer-Encoding"]


def message_with(where: str, value: str) -> EmailMessageData:
    values: dict[str, Any] = {"recipients": ["to@example.com"], "subject": "Subject", "sender": "shop@example.com"}
    if where == "recipient":
        values["recipients"] = [value]
    elif where in {"sender", "envelope_sender", "subject"}:
        values[where] = value
    elif where in {"cc", "bcc", "reply_to"}:
        values[where] = [value]
    elif where == "header":
        values["headers"] = {"X-Test": value}
    elif where == "header_name":
        values["headers"] = {value: "value"}
    elif where == "structured":
        values["headers"] = {"List-Unsubscribe": value}
    elif where == "message_id":
        values["headers"] = {"Message-ID": value}
    elif where == "file_name":
        values["attachments"] = [AttachmentData(value, b"content")]
    elif where == "content_id":
        values["attachments"] = [AttachmentData("a.png", b"content", "image/png", inline=True, content_id=value)]
    else:
        assert where == "mime_type"
        values["attachments"] = [AttachmentData("a.bin", b"content", value)]
    return EmailMessageData(text="Text", **values)


async def sent(entry: dict[str, Any]) -> OutgoingMessage:
    prepared = check_message(message_with(entry["where"], entry["value"]), default_sender=None)
    return await serialise_message(prepared, max_message_bytes=1_000_000)


def raw_headers(content: bytes) -> list[tuple[str, str]]:
    """Names and unfolded values by the plainest reading of RFC 5322: no encoded word is decoded."""
    head = content.partition(b"\r\n\r\n")[0].decode()
    lines = re.sub(r"\r\n(?=[ \t])", "", head).split("\r\n")
    return [(name, value.removeprefix(" ")) for name, _, value in (line.partition(":") for line in lines)]


def read_mailbox(raw: str) -> tuple[str, str]:
    """Name and address of a header with one mailbox; what the standard library makes of it depends on its version."""
    name, opening, spec = raw.rpartition("<")
    if not opening:
        return "", raw
    name = name.removesuffix(" ")
    if name.startswith('"'):
        return re.sub(r"\\(.)", r"\1", name[1:-1]), spec.removesuffix(">")
    return str(email.header.make_header(email.header.decode_header(name))), spec.removesuffix(">")


def label(entry: dict[str, Any]) -> str:
    return f"{entry['where']}: {ascii(entry['value'])[:60]}"


@pytest.mark.parametrize("entry", [entry for entry in CORPUS if "refused" in entry], ids=label)
async def test_it_is_refused_with_the_error_of_its_field(entry: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidMessage) as caught:
        await sent(entry)
    assert type(caught.value).__name__ == entry["refused"]
    text = str(caught.value)
    assert text.isprintable() or "\u3000" in text
    assert len(text) < 2_000
    fields = {
        "recipient": "recipients: ",
        "header": "headers['X-Test']: ",
        "header_name": "headers[",
        "structured": "headers['List-Unsubscribe']: ",
        "message_id": "headers['Message-ID']: ",
        "file_name": ": filename: ",
        "content_id": ": content_id: ",
        "mime_type": ": mimetype: ",
    }
    assert fields.get(entry["where"], f"{entry['where']}: ") in text


@pytest.mark.parametrize("entry", [entry for entry in CORPUS if "refused" not in entry], ids=label)
async def test_it_arrives_as_exactly_itself_and_adds_nothing(entry: dict[str, Any]) -> None:
    message = await sent(entry)
    content = b"".join(message.content)
    where, value = entry["where"], entry["value"]
    raw = raw_headers(content)
    read = email.message_from_bytes(content, policy=email.policy.default)
    expected = [name for name in HEADERS if where != "file_name" or name != "Content-Transfer-Encoding"]
    if where == "header":
        expected.insert(5, "X-Test")
    assert [name for name, _ in raw] == expected
    assert read.keys() == expected
    assert all(len(line) <= 998 for line in content.split(b"\r\n"))
    assert content.isascii()
    recipient = entry.get("arrives", "to@example.com")
    assert message.envelope.recipients == (recipient,)
    assert message.envelope.sender == "shop@example.com"
    # The standard library takes the quotes off a local part.
    assert [f"{address.username}@{address.domain}" for address in read["To"].addresses] == [recipient.replace('"', "")]
    parts = [part for part in read.walk() if not part.is_multipart()]
    assert len(parts) == (2 if where == "file_name" else 1)
    if where == "recipient":
        assert read_mailbox(dict(raw)["To"]) == (entry["name"], recipient)
    elif where == "subject":
        assert read["Subject"] == value
    elif where == "header":
        assert read["X-Test"] == value
    else:
        assert parts[1]["Content-Disposition"].params["filename"] == value
        assert parts[1].keys() == ["Content-Type", "Content-Transfer-Encoding", "Content-Disposition"]
        assert parts[1].get_content() == b"content"


def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    where = Counter(entry["where"] for entry in CORPUS)
    assert sum(where.values()) >= 600
    assert where["recipient"] >= 300
    assert len({(entry["where"], entry["value"]) for entry in CORPUS}) == len(CORPUS)
