"""What a broker keeps gives the same message, and what nobody knows is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openviper.core.email import AttachmentData, EmailMessageData
from openviper.core.email.message import PreparedMessage, check_message
from openviper.core.email.message.serialiser import serialise
from openviper.core.email.message.storage import Payload, UnknownPayload, decode, encode, join, split

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


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_another_version_is_refused(version: Any) -> None:
    with pytest.raises(UnknownPayload, match="its version is"):
        decode(changed(version=version))


def test_an_unknown_field_is_refused_by_its_name() -> None:
    with pytest.raises(UnknownPayload, match="unknown fields: priority"):
        decode(changed(priority=1))


def test_a_missing_field_is_refused() -> None:
    payload = encode(full_message())
    head = json.loads(payload.head)
    del head["bcc"]
    with pytest.raises(UnknownPayload, match="missing: bcc"):
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
    with pytest.raises(UnknownPayload, match=f"'{field}'") as caught:
        decode(changed(**{field: value}))
    assert "evil" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("cut", [0, 3, 4, 100, -1])
def test_a_damaged_payload_is_refused(cut: int) -> None:
    with pytest.raises(UnknownPayload):
        decode(split(join(encode(full_message()))[:cut]))


def test_nothing_of_the_message_is_in_its_repr() -> None:
    assert repr(encode(full_message())) == f"<Payload {encode(full_message()).size} bytes>"


def test_a_person_can_see_which_message_it_is() -> None:
    about = encode(full_message()).about()
    assert about["Subject"] == "Grüße"
    assert about["Bcc"] == "hidden@example.com"
    assert Payload(b"{", ()).about()["To"] == ""
