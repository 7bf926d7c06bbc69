"""What a broker keeps gives the same message, and what nobody knows is refused."""

import asyncio
import json
import pickle
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openviper.core.email import Address, AddressLike, AttachmentData, EmailMessageData
from openviper.core.email.attachments import FileContent, resolve_attachments
from openviper.core.email.message import PreparedMessage, check_message
from openviper.core.email.message.serialiser import serialise
from openviper.core.email.message.storage import (
    DamagedPayload,
    NewerPayload,
    Payload,
    decode,
    encode,
    fingerprint,
    join,
    split,
)

SECRET = "reset-link-4711"


def full_message() -> PreparedMessage:
    data = EmailMessageData(
        recipients=["Ärzte <a@exämple.com>", "ünï@example.com"],
        subject="Grüße",
        text=f"Hi {SECRET}\n",
        html=f"<p>Hi {SECRET}</p><img src='cid:logo'>",
        cc=['"quoted..local"@example.com'],
        bcc=["hidden@example.com"],
        attachments=[
            AttachmentData("logo.png", b"\x89PNG\x00\xff", "image/png", inline=True, content_id="logo"),
            AttachmentData("räport.pdf", bytes(range(256)) * 300, "application/pdf"),
            AttachmentData("empty.txt", b""),
        ],
        sender="Shop <shop@example.com>",
        reply_to=["help@example.com"],
        headers={"List-Unsubscribe": "<https://example.com/u>", "X-Order": "7"},
        envelope_sender="",
    )
    return check_message(data, default_sender=None, auto_submitted=True)


def changed(**fields: Any) -> Payload:
    payload = encode(full_message())
    return Payload(json.dumps(json.loads(payload.head) | fields).encode(), payload.parts)


def test_a_message_comes_back_as_it_was_and_gives_the_same_bytes() -> None:
    message = full_message()
    again = decode(split(join(encode(message))))
    assert again == message
    assert serialise(again) == serialise(message)


@given(text=st.text(max_size=50), html=st.none() | st.text(max_size=50), content=st.binary(max_size=300))
def test_any_body_and_attachment_comes_back(text: str, html: str | None, content: bytes) -> None:
    data = EmailMessageData(
        ["a@example.com"], "s", text=text, html=html, attachments=[AttachmentData("a.bin", content)]
    )
    message = check_message(data, default_sender="shop@example.com")
    assert decode(split(join(encode(message)))) == message


def test_bodies_and_attachments_are_kept_as_they_are() -> None:
    """Not in base64, and not in the head."""
    payload = encode(full_message())
    assert bytes(range(256)) * 300 in payload.parts
    assert SECRET.encode() not in payload.head
    assert len(payload.head) < 2000


@pytest.mark.parametrize("version", [0, "1", None, [1], True])
def test_what_is_no_version_is_refused(version: Any) -> None:
    with pytest.raises(DamagedPayload, match="its version is"):
        decode(changed(version=version))


@pytest.mark.parametrize("fields", [{"version": 3}, {"version": 3, "sizes": "zstd", "body": {}}])
def test_a_later_version_is_told_from_damage_whatever_its_fields_are(fields: dict[str, Any]) -> None:
    payload = changed(**fields)
    for read in (lambda: decode(payload), lambda: split(join(payload))):
        with pytest.raises(NewerPayload, match="its version is 3, and this program reads versions up to 2") as caught:
            read()
        assert caught.value.temporary
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


async def test_an_attachment_in_a_file_is_kept_as_its_bytes() -> None:
    content = bytes(range(256)) * 5000

    async def pieces() -> AsyncIterator[bytes]:
        yield content

    (attachment,) = await resolve_attachments(("a.bin", pieces()))
    assert isinstance(attachment.stored, FileContent)
    data = EmailMessageData(["a@example.com"], "Hi", text="", attachments=[attachment], sender="b@example.com")
    message = check_message(data, default_sender=None)
    payload = await asyncio.to_thread(encode, message)
    again = decode(split(join(payload)))
    assert again.attachments[0].stored == content
    for one, other in ((again, message), (message, pickle.loads(pickle.dumps(message)))):
        assert b"".join(serialise(one)) == b"".join(serialise(other))


def test_version_1_is_written_while_nothing_is_new() -> None:
    head = json.loads(encode(full_message()).head)
    assert head["version"] == 1
    assert not {"extra", "must"} & head.keys()


def test_what_travels_with_a_message_comes_back_and_changes_none_of_its_bytes() -> None:
    message = full_message()._replace(extra={"trace": "00-ab-01", "tags": ("a", {"b": None})}, must={"mailer": "bulk"})
    payload = encode(message)
    assert json.loads(payload.head)["version"] == 2
    again = decode(split(join(payload)), supported={"mailer"})
    assert again == message
    assert serialise(again) == serialise(message._replace(extra={}, must={}))


def test_what_must_be_known_and_is_not_is_named_without_its_value() -> None:
    message = full_message()._replace(extra={"trace": "1"}, must={"stream": SECRET, "mailer": "bulk", "key": 1})
    with pytest.raises(NewerPayload, match="it requires 'mailer', 'stream', which this version does not") as caught:
        decode(encode(message), supported={"key"})
    assert SECRET not in str(caught.value)


def test_a_trace_context_changes_no_fingerprint() -> None:
    """A repeated message is known by it, although the first send was not traced."""
    message = full_message()
    traced = message._replace(extra={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    assert fingerprint(encode(traced)) == fingerprint(encode(message))
    labelled = message._replace(must={"stream": "news"})
    assert fingerprint(encode(labelled)) != fingerprint(encode(message))


@pytest.mark.parametrize("field", ["extra", "must"])
def test_of_version_2_both_fields_are_objects(field: str) -> None:
    message = full_message()._replace(extra={"trace": "1"})
    payload = encode(message)
    head = json.loads(payload.head) | {field: ["mailer"]}
    with pytest.raises(DamagedPayload, match=f"'{field}'"):
        decode(Payload(json.dumps(head).encode(), payload.parts))


def test_an_unknown_field_is_refused_by_its_name() -> None:
    with pytest.raises(DamagedPayload, match="unknown fields: priority"):
        decode(changed(priority=1))


def test_a_missing_field_is_refused() -> None:
    payload = encode(full_message())
    head = json.loads(payload.head)
    del head["bcc"]
    with pytest.raises(DamagedPayload, match="missing: bcc"):
        decode(Payload(json.dumps(head).encode(), payload.parts))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subject", "a\r\nBcc: evil@example.com"),
        ("message_id", "<a@b>\r\nBcc: evil@example.com"),
        ("sender", ["", "a@evil.com>\r\nx", "example.com"]),
        ("to", [["", "a", "example.com>\r\nRCPT TO:<b@example.com"]]),
        ("to", [["name\n", "a", "example.com"]]),
        ("to", "a@example.com"),
        ("headers", [["X-A", "b\nBcc: evil@example.com"]]),
        ("headers", [["Bcc", "evil@example.com"]]),
        ("date", "2026-01-01T00:00:00"),
        ("envelope_sender", "a@example.com> SIZE=1"),
        ("text", 99),
        ("attachments", [{"filename": "a"}]),
    ],
)
def test_what_no_application_could_send_is_refused_without_being_shown(field: str, value: Any) -> None:
    """Whoever can write to the broker gets no more than send_email allows."""
    with pytest.raises(DamagedPayload, match=f"'{field}'") as caught:
        decode(changed(**{field: value}))
    assert "evil" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("cut", [0, 3, 4, 100, -1])
def test_a_damaged_payload_is_refused(cut: int) -> None:
    with pytest.raises(DamagedPayload):
        decode(split(join(encode(full_message()))[:cut]))


def test_nothing_of_the_message_is_in_its_repr() -> None:
    assert repr(encode(full_message())) == f"<Payload {encode(full_message()).size} bytes>"


def test_a_person_can_see_which_message_it_is() -> None:
    about = encode(full_message()).summary()
    assert about["Subject"] == "Grüße"
    assert about["Bcc"] == "hidden@example.com"
    assert Payload(b"{", ()).summary()["To"] == ""


@pytest.mark.parametrize("name", ["Costa, Ana", "=?utf-8?q?M=C3=BCller?=", 'A "B" \\', "🐍" * 500, "n" * 1000])
def test_any_name_of_a_pair_travels(name: str) -> None:
    recipient: AddressLike = (name, "ana@example.com")
    data = EmailMessageData(
        [recipient], "Hello", text="", sender=recipient, reply_to=Address.of(name, "ana@example.com")
    )
    prepared = check_message(data, default_sender=None)
    assert prepared.to == (prepared.sender,) == prepared.reply_to
    assert prepared.sender.display_name == name
    assert decode(encode(prepared)) == prepared


@pytest.mark.parametrize(
    "written",
    [["A\nB", "a", "b.c"], ["", "a b", "b.c"], ["", "a", "bücher.example"], [" A", "a", "b.c"], ["", "<a", "b.c>"]],
)
def test_an_address_that_no_message_can_have_is_damaged(written: list[str]) -> None:
    payload = encode(check_message(EmailMessageData("a@b.c", "Hello", text=""), default_sender="a@b.c"))
    head = {**json.loads(payload.head), "to": [written]}
    with pytest.raises(DamagedPayload, match="its field 'to' cannot be read"):
        decode(Payload(json.dumps(head).encode(), payload.parts))


def test_headers_of_one_name_travel_to_workers_that_keep_them_all() -> None:
    data = EmailMessageData("a@b.c", "Hello", text="", headers={"X-Tag": ["1", "2"], "X-A": "x"}, in_reply_to="<i@b.c>")
    prepared = check_message(data, default_sender="a@b.c")
    payload = encode(prepared)
    head = json.loads(payload.head)
    assert (head["version"], head["must"]) == (2, {"repeated_headers": True})
    decoded = decode(payload)
    assert decoded == prepared
    assert serialise(decoded) == serialise(prepared)
    with pytest.raises(NewerPayload, match="it requires 'repeated_headers'"):
        decode(payload, supported=())


def test_a_reply_travels_in_the_first_version() -> None:
    data = EmailMessageData("a@b.c", "Hello", text="", headers={"X-Tag": ["1"]}, in_reply_to="<i@b.c>")
    payload = encode(check_message(data, default_sender="a@b.c"))
    assert json.loads(payload.head)["version"] == 1
