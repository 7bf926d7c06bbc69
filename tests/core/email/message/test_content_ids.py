"""Content ids as they are sent: msg-ids, the same in the HTML and in every attempt."""

import re
from urllib.parse import quote

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


def _with_files(html: str | None, *files: AttachmentData) -> PreparedMessage:
    data = EmailMessageData("a@b.example", "Hello", text="", html=html, sender="s@shop.example", attachments=[*files])
    return check_message(data, default_sender=None)


def _file(name: str, **more: str) -> AttachmentData:
    return AttachmentData(name, b"x", "image/png", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("html", "name"),
    [
        ('<img src="cid:logo.png">', "logo.png"),
        ("<p style='background:url(cid:logo.png)'>", "logo.png"),
        ('<img src="CID:a%20logo.png">', "a logo.png"),
        ("<img srcset='cid:a%28b%29.png 2x'>", "a(b).png"),
        ("<img src='cid:größe.png'>", "größe.png"),
        ("<img src='cid:gr%C3%B6%C3%9Fe.png'>", "größe.png"),
        ("<img src='cid:a&amp;b.png'>", "a&b.png"),
    ],
)
def test_a_file_that_the_html_names_is_inline_by_itself(html: str, name: str) -> None:
    prepared = _with_files(f"{html}<p>cid:other.png</p>", _file("other.png"), _file(name))
    other, named = prepared.attachments
    assert (other.inline, other.content_id) == (False, None)
    assert (named.inline, named.filename) == (True, name)
    assert decode(encode(prepared)) == prepared
    sent = with_msg_ids(prepared)
    assert sent.html is not None
    content_id = sent.attachments[1].content_id
    assert content_id is not None
    assert f"cid:{quote(content_id, safe='@')}" in sent.html
    assert "related" in b"".join(serialise(prepared)).decode()


def test_an_id_counts_before_a_file_name_and_the_first_of_two_files() -> None:
    prepared = _with_files(
        "<img src='cid:logo'><img src='cid:a.png'>",
        _file("logo"),
        _file("b.png", content_id="logo"),
        _file("a.png"),
        _file("a.png"),
    )
    assert [part.inline for part in prepared.attachments] == [False, True, True, False]


def test_a_made_id_is_no_given_one() -> None:
    prepared = _with_files("<img src='cid:a%20b'><img src='cid:file-1'>", _file("a b"), _file("c", content_id="file-1"))
    assert [part.content_id for part in prepared.attachments] == ["file-1_", "file-1"]


@pytest.mark.parametrize("html", [None, "", "<p>cid:logo.png</p>", "<img src='cid:Logo.png'>", "<img src='logo.png'>"])
def test_without_its_url_a_file_stays_attached(html: str | None) -> None:
    (part,) = _with_files(html, _file("logo.png")).attachments
    assert (part.inline, part.content_id) == (False, None)
