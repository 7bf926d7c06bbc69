"""Content ids as they are sent: msg-ids, the same in the HTML and in every attempt."""

import re

import pytest

from openviper.core.email.attachments import AttachmentData
from openviper.core.email.message import EmailMessageData, PreparedMessage, check_message
from openviper.core.email.message.content_ids import with_msg_ids
from openviper.core.email.message.serialiser import serialise
from openviper.core.email.message.storage import decode, encode


def _message(html: str | None, *names: str | None, sender: str = "shop@shop.example") -> PreparedMessage:
    images = [AttachmentData("l.png", b"x", "image/png", inline=True, content_id=name) for name in names]
    data = EmailMessageData("a@b.example", "Hello", text="Hello", html=html, sender=sender, attachments=images)
    return check_message(data, default_sender=None)


@pytest.mark.parametrize(
    "html",
    [
        '<img src="cid:logo">',
        "<IMG SRC='CID:logo'>",
        "<img src=cid:logo alt=x>",
        "<img src=' cid:l%6Fgo '>",
        "<img src='cid:l&#111;go'>",
        "<td background='cid:logo'>",
        "<p style=\"background:url('cid:logo') no-repeat\">",
        "<p style='background:url(cid:logo)'>",
        "<style>p{background:url(cid:logo)}</style><p>",
        '<style>p{background:url("cid:logo")}',
        "<!--[if mso]><v:fill src='cid:logo'/><![endif]--><p>",
        "<img srcset='cid:logo 1x'>",
        "<img srcset='https://a.example/b.png 1x, cid:logo, x 2x'>",
        "<svg><image xlink:href='cid:logo'/></svg>",
    ],
)
def test_every_url_of_an_image_has_the_id_that_is_sent(html: str) -> None:
    sent = with_msg_ids(_message(html, "logo"))
    content_id = sent.attachments[0].content_id
    assert re.fullmatch(r"logo\.[0-9a-f]{16}@shop\.example", content_id or "")
    spelling = re.compile("cid:(?:logo|l%6Fgo|l&#111;go)", re.IGNORECASE)
    assert sent.html == spelling.sub(f"cid:{content_id}", html)


@pytest.mark.parametrize(
    "html",
    [
        "<img src='cid:logo2'>",
        "<img src='cid:logo.png'>",
        "<img src='cid:Logo'>",
        "<img src='https://a.example/?x-cid:logo'>",
        "<p title='cid:logo'>cid:logo</p>",
        "<!-- cid:logo --><title>cid:logo</title>",
        "<img alt='<img src=cid:logo>'>",
        "<img src='cid:logo@other.example'>",
    ],
)
def test_what_is_not_exactly_that_url_stays(html: str) -> None:
    assert with_msg_ids(_message(html, "logo")).html == html


def test_an_id_that_is_a_message_id_and_a_message_without_ids_stay_as_they_are() -> None:
    for message in (_message("<img src='cid:a@b.example'>", "a@b.example"), _message("<p>cid:logo")):
        assert with_msg_ids(message) is message


@pytest.mark.parametrize("name", ["a+b", "a..b", ".a", "a=b", "x" * 100, "l/2"])
def test_an_id_that_no_message_id_may_hold_is_replaced_whole(name: str) -> None:
    sent = with_msg_ids(_message(f"<img src='cid:{name}'>", name))
    assert re.fullmatch(r"part\.[0-9a-f]{16}@shop\.example", sent.attachments[0].content_id or "")
    assert sent.html == f"<img src='cid:{sent.attachments[0].content_id}'>"


def test_the_file_name_counts_without_an_id_and_an_address_literal_is_escaped_in_urls() -> None:
    sent = with_msg_ids(_message("<img src='cid:l.png'>", None, sender="a@[192.0.2.1]"))
    assert re.fullmatch(r"l\.png\.[0-9a-f]{16}@\[192\.0\.2\.1\]", sent.attachments[0].content_id or "")
    assert re.fullmatch(r"<img src='cid:l\.png\.[0-9a-f]{16}@%5B192\.0\.2\.1%5D'>", sent.html or "")


def test_ids_are_unique_by_message_and_part_and_the_same_after_storage() -> None:
    first, second = (_message("<img src='cid:a'><img src='cid:b'>", "a", "b") for _ in range(2))
    ids = {part.content_id for message in (first, second) for part in with_msg_ids(message).attachments}
    assert len(ids) == 4
    stored = decode(encode(first))
    assert b"".join(serialise(stored)) == b"".join(serialise(first))
    assert [part.content_id for part in stored.attachments] == ["a", "b"]
